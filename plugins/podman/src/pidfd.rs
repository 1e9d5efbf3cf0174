//! Processes held by a descriptor instead of a number: the number may belong to another process a moment later, the
//! descriptor never does. An adapter over pidfd_open(2).

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process that lives, or has just ended.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
}

impl PidFd {
    /// The process that has this number now. Whether it is the one that is meant must be asked afterwards.
    ///
    /// # Errors
    /// ESRCH if there is none; ENOSYS before Linux 5.3.
    pub fn open(pid: Pid) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two numbers and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
        let Some(fd) = i32::try_from(fd).ok().filter(|fd| *fd >= 0) else {
            return Err(io::Error::last_os_error());
        };
        // SAFETY: the kernel just gave us this descriptor; nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// Sends a signal; to a process that has ended, none is sent and that is fine.
    ///
    /// # Errors
    /// EPERM.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let (fd, no_info) = (self.fd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: pidfd_send_signal takes numbers and a null pointer, which means no additional information.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as libc::c_int, no_info, 0) };
        let error = io::Error::last_os_error();
        if sent == 0 || error.raw_os_error() == Some(libc::ESRCH) {
            Ok(())
        } else {
            Err(error)
        }
    }

    /// Waits until the process has ended (it need not have been waited for by its parent).
    ///
    /// # Errors
    /// Of registering with the runtime.
    pub async fn ended(self) -> io::Result<()> {
        // SAFETY: the AsyncFd owns the descriptor, so it stays registered no longer than it is open.
        let fd = unsafe { AsyncFd::register_with_interest(self.fd, Interest::READABLE) };
        fd.map_err(|error| error.into_parts().1)?
            .readable()
            .await?
            .retain_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_signalled_and_its_end_is_seen() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let pidfd = PidFd::open(pid).unwrap();
        pidfd.signal(Signal::SIGKILL).unwrap();
        PidFd::open(pid).unwrap().ended().await.unwrap();
        child.wait().unwrap();
        pidfd.signal(Signal::SIGKILL).unwrap();
        assert_eq!(PidFd::open(pid).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}

//! fcntl(2) locks between processes and between descriptors of one.
//!
//! A volume has one writer, so the kernel of that machine keeps the locks, and a mount that the volume moves away from
//! takes its locks along: a database that was killed never finds its own old lock.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use tests::calls::{done, errno};
use tests::scratch_volume::ScratchVolume;

/// What a child says that got its lock; otherwise it says the error's number.
const GOT_IT: i32 = 0;

fn lock(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn control(file: &File, command: i32, lock: &mut libc::flock) -> std::io::Result<i64> {
    // SAFETY: the descriptor is open, and the lock lives through the call.
    done(i64::from(unsafe {
        libc::fcntl(file.as_raw_fd(), command, &raw mut *lock)
    }))
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).expect("the file opens")
}

/// Runs `act` in a process of its own, whose exit code is what it returns. It may only make system calls.
fn child(act: impl FnOnce() -> i32) -> Pid {
    // SAFETY: what the child does until it ends are system calls; it never returns into the test.
    match unsafe { fork() }.expect("a process") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let code = act();
            // SAFETY: ends this process at once, which is all that is wanted of it.
            unsafe { libc::_exit(code) }
        }
    }
}

fn code(child: Pid) -> i32 {
    match waitpid(child, None).expect("our child") {
        WaitStatus::Exited(_, code) => code,
        other => panic!("{other:?}"),
    }
}

/// What a system call says in a child.
fn said(result: i32) -> i32 {
    if result == 0 {
        GOT_IT
    } else {
        std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)
    }
}

extern "C" fn nothing(_: i32) {}

#[test]
fn processes_lock_ranges_against_each_other() {
    let mut scratch = ScratchVolume::new();
    let mounted = scratch.mount();
    let (ours, theirs) = (open(&mounted.dir().join("locked")), open(&mounted.dir().join("locked")));
    control(&ours, libc::F_SETLK, &mut lock(libc::F_WRLCK, 0, 10)).unwrap();
    let try_range = |start: i64| {
        let (fd, mut wanted) = (theirs.as_raw_fd(), lock(libc::F_WRLCK, start, 10));
        code(child(move || {
            // SAFETY: the descriptor was open when the child was made, and the lock lives through the call.
            said(unsafe { libc::fcntl(fd, libc::F_SETLK, &raw mut wanted) })
        }))
    };
    assert_eq!(try_range(5), libc::EAGAIN);
    assert_eq!(try_range(10), GOT_IT);
    let (fd, mut wanted, us) = (theirs.as_raw_fd(), lock(libc::F_RDLCK, 0, 1), std::process::id() as i32);
    let holder = code(child(move || {
        // SAFETY: as above.
        let asked = unsafe { libc::fcntl(fd, libc::F_GETLK, &raw mut wanted) };
        i32::from(asked != 0 || wanted.l_type != libc::F_WRLCK as i16 || wanted.l_pid != us)
    }));
    assert_eq!(holder, 0, "who holds the lock is told");

    // Who waits hears a signal, so that a program that waits can be stopped.
    let interrupted = code(child(move || {
        let mut wanted = lock(libc::F_WRLCK, 0, 10);
        // SAFETY: a handler that does nothing, a timer, and the call that it interrupts, again and again until one hits.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
            libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
            let often = libc::timeval {
                tv_sec: 0,
                tv_usec: 50_000,
            };
            let timer = libc::itimerval {
                it_interval: often,
                it_value: often,
            };
            libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
            said(libc::fcntl(fd, libc::F_SETLKW, &raw mut wanted))
        }
    }));
    assert_eq!(interrupted, libc::EINTR);

    // Who waits gets it when it is given up.
    let waiter = child(move || {
        let mut wanted = lock(libc::F_WRLCK, 0, 10);
        // SAFETY: as above.
        said(unsafe { libc::fcntl(fd, libc::F_SETLKW, &raw mut wanted) })
    });
    control(&ours, libc::F_SETLK, &mut lock(libc::F_UNLCK, 0, 0)).unwrap();
    assert_eq!(code(waiter), GOT_IT);
}

#[test]
fn locks_of_open_descriptions_exclude_each_other_in_one_process() {
    let mut scratch = ScratchVolume::new();
    let mounted = scratch.mount();
    let (first, second) = (open(&mounted.dir().join("locked")), open(&mounted.dir().join("locked")));
    control(&first, libc::F_OFD_SETLK, &mut lock(libc::F_WRLCK, 0, 10)).unwrap();
    let refused = control(&second, libc::F_OFD_SETLK, &mut lock(libc::F_RDLCK, 9, 1));
    assert_eq!(errno(refused), libc::EAGAIN);
    control(&second, libc::F_OFD_SETLK, &mut lock(libc::F_RDLCK, 10, 1)).unwrap();
    drop(first);
    control(&second, libc::F_OFD_SETLK, &mut lock(libc::F_WRLCK, 0, 100)).unwrap();
}

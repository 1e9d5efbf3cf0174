//! FUSE over io_uring (Linux 6.14 and later): requests reach a thread on the CPU of whoever asks, and a reply is the next wait.
//!
//! The kernel wants a queue for each CPU that there may be, and gives nothing to any before all are there. The greeting, references
//! that are taken back, and interrupts still come by /dev/fuse, which `device.rs` serves as always.
//! A mount of this kind ends with its process: a kernel up to 6.18 gives a successor no way to the requests that were in flight.
//!
//! Invariants: a ring whose thread ends without the connection having ended cuts the connection off, so that nobody waits for ever;
//! the memory of a ring is given back only after the ring is closed. Callers: `session.rs`, and whoever measures what the kernel's
//! side of it costs. Absent: what a request means (`fuse.rs`).

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use super::wire::Serve;
use crate::mountpoint;

mod memory;
mod ring;

use ring::{Outbox, Ring, try_ring};

/// Where the kernel says whether it offers this, and is told to. Absent before Linux 6.14.
const ENABLE: &str = "/sys/module/fuse/parameters/enable_uring";

/// CPUs that there may be, as ranges.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// 32 threads of one mount: where a machine has more CPUs, a thread serves several of them, and runs on these only.
const THREADS_MAX: usize = 32;

/// 64 requests of a CPU's programs at a time, so that 32 that wait for the store leave room for others...
const DEPTH_MAX: usize = 64;

/// ...but 1,024 of a mount, where that leaves each CPU 8 or more: each takes 1 MiB of address space, though hardly any memory.
const REQUESTS_MAX: usize = 1024;
const DEPTH_MIN: usize = 8;

/// Why requests of a mount cannot come by io_uring here, and what would help.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// No such parameter.
    #[error(
        "this kernel has no FUSE over io_uring ({ENABLE} is not there): it takes Linux 6.14 or later, with CONFIG_FUSE_IO_URING"
    )]
    Kernel,
    /// It is switched off, and stays so.
    #[error("FUSE over io_uring is switched off and cannot be switched on: {source}; as root: echo Y > {ENABLE}")]
    Off {
        /// Why.
        source: io::Error,
    },
    /// The system does not let this process have a ring.
    #[error(
        "this process may not use io_uring: {source}; look at the sysctl kernel.io_uring_disabled, and at the seccomp profile of a container"
    )]
    Refused {
        /// Why.
        source: io::Error,
    },
    /// The CPUs are not known.
    #[error("{POSSIBLE} cannot be understood: {source}")]
    Cpus {
        /// Why.
        source: io::Error,
    },
    /// The kernel has it, and did not offer it to this mount.
    #[error("the kernel did not offer FUSE over io_uring to this mount")]
    NotOffered,
}

impl Unavailable {
    /// Tells that a volume's mount, which was to come by io_uring, is one as any other because of this.
    pub(crate) fn tell_of(&self, volume: &impl fmt::Display) {
        tracing::warn!(%volume, "the mount is not served by io_uring but as any other: {self}");
    }
}

/// Whether mounts of this process can be served so. Switches it on in the kernel where it is off, for mounts that come later; those
/// that are there, and mounts of others that do not ask for it, stay as they are.
///
/// # Errors
/// `Unavailable`.
pub fn available() -> Result<(), Unavailable> {
    look(Path::new(ENABLE), true)
}

/// As `available`, without changing anything.
///
/// # Errors
/// `Unavailable`; `Off` where a mount that asks for it would switch it on.
pub fn is_available() -> Result<(), Unavailable> {
    look(Path::new(ENABLE), false)
}

fn look(enable: &Path, switches_on: bool) -> Result<(), Unavailable> {
    let is_on = fs::read_to_string(enable).map_err(|_| Unavailable::Kernel)?;
    possible_cpus().map_err(|source| Unavailable::Cpus { source })?;
    try_ring().map_err(|source| Unavailable::Refused { source })?;
    match (is_on.trim(), switches_on) {
        ("Y" | "1", _) => Ok(()),
        (_, true) => fs::write(enable, "Y").map_err(|source| Unavailable::Off { source }),
        (_, false) => Err(Unavailable::Off {
            source: io::Error::other("nobody has switched it on yet, a mount that asks for it will"),
        }),
    }
}

/// How many CPUs there may ever be: the kernel wants as many queues.
fn possible_cpus() -> io::Result<usize> {
    cpus_of(&fs::read_to_string(POSSIBLE)?).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn cpus_of(ranges: &str) -> Option<usize> {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    ranges.trim().split(',').map(count).sum()
}

/// How many requests of each CPU there can be at a time.
fn depth(cpus: usize) -> usize {
    (REQUESTS_MAX / cpus.max(1)).clamp(DEPTH_MIN, DEPTH_MAX)
}

/// What of a connection a ring must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// The longest content of a request or reply, in bytes.
    pub request_bytes_max: usize,
    /// The kernel's number of it, where it is known: to cut it off.
    pub device: Option<(u32, u32)>,
}

/// The rings of one connection.
#[derive(Debug)]
pub struct Rings {
    outboxes: Vec<Arc<Outbox>>,
    threads: Vec<JoinHandle<()>>,
}

impl Rings {
    /// Serves a connection whose greeting was answered with its consent to rings.
    ///
    /// # Errors
    /// What the system refuses; then nothing of the connection is served by a ring, and it must be ended.
    pub fn start(device: &OwnedFd, connection: Connection, server: &Arc<impl Serve>) -> io::Result<Self> {
        let cpus = possible_cpus()?;
        let threads = cpus.min(THREADS_MAX);
        let mut rings = Self {
            outboxes: Vec::new(),
            threads: Vec::new(),
        };
        for nth in 0..threads {
            let started = rings.start_one(device.try_clone()?, (connection, cpus), (nth, threads), server);
            if let Err(error) = started {
                rings.end();
                return Err(error);
            }
        }
        Ok(rings)
    }

    fn start_one(
        &mut self,
        device: OwnedFd,
        (connection, cpus): (Connection, usize),
        (nth, threads): (usize, usize),
        server: &Arc<impl Serve>,
    ) -> io::Result<()> {
        let queues: Vec<u16> = (nth..cpus)
            .step_by(threads)
            .map(|cpu| u16::try_from(cpu).map_err(|_| io::Error::other("more CPUs than a queue's number can name")))
            .collect::<Result<_, _>>()?;
        let outbox = Arc::new(Outbox::new()?);
        let (server, of_ring) = (Arc::clone(server), Arc::clone(&outbox));
        let (tell, told) = channel();
        let serve = move || {
            let made = Ring::new(device, (queues, depth(cpus)), connection.request_bytes_max, of_ring);
            let ring = match made {
                Ok(ring) => ring,
                Err(error) => return drop(tell.send(Err(error))),
            };
            let guard = CutOff(connection.device);
            // Nobody listens any more: the mount has failed, and ends with what `guard` does.
            let _ = tell.send(Ok(()));
            drop(tell);
            match ring.run(&*server) {
                Ok(()) => std::mem::forget(guard),
                Err(error) => tracing::error!(%error, "a ring of a mount has failed"),
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("fuse-ring-{nth}"))
            .spawn(serve)?;
        self.outboxes.push(outbox);
        self.threads.push(thread);
        told.recv()
            .map_err(|_| io::Error::other("the thread of a ring has ended"))?
    }

    /// Returns when all threads have ended and their memory is given back. The connection must have ended, or never have begun.
    pub fn end(self) {
        self.outboxes.iter().for_each(|outbox| outbox.close());
        for thread in self.threads {
            // It has said why, and the mount is cut off.
            let _ = thread.join();
        }
    }
}

/// Cuts a connection off: without this thread some of its programs would wait for ever.
struct CutOff(Option<(u32, u32)>);

impl Drop for CutOff {
    fn drop(&mut self) {
        tracing::error!("a mount is cut off, because one of its threads has ended");
        match self.0.map(mountpoint::cut) {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::error!(%error, "the mount could not be cut off"),
            None => tracing::error!("the mount could not be cut off: it was not found"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted_as_the_kernel_lists_them() {
        assert_eq!(cpus_of("0\n"), Some(1));
        assert_eq!(cpus_of("0-1\n"), Some(2));
        assert_eq!(cpus_of("0-3,8-11"), Some(8));
        for odd in ["", "a", "3-1", "0-"] {
            assert_eq!(cpus_of(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn many_cpus_share_what_a_mount_may_have_in_flight() {
        assert_eq!([1, 2, 16, 64, 128, 512].map(depth), [64, 64, 64, 16, 8, 8]);
    }

    #[test]
    fn a_kernel_without_it_and_one_that_has_it_off_are_told_apart_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let none = look(&dir.path().join("none"), true).unwrap_err().to_string();
        assert!(none.contains("6.14"), "{none}");
        let file = dir.path().join("enable_uring");
        fs::write(&file, "N\n").unwrap();
        if try_ring().is_err() {
            return;
        }
        let off = look(&file, false).unwrap_err().to_string();
        assert!(off.contains("echo Y"), "{off}");
        look(&file, true).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "Y");
        look(&file, false).unwrap();
    }
}

//! One ring and its thread: requests of some CPUs come in, replies go out, and each reply asks for the next request.
//!
//! A reply may be given on the ring's own thread, before it looks for more, or later on any other: it waits in the outbox, and the
//! thread is woken through a descriptor that the ring reads. So only this thread ever touches the ring and its memory.
//! Invariant: each request has one `RingReply`, and so gets one reply; what an entry holds is ours from the completion that brings a
//! request until the reply is handed over.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;

use super::memory::{KEPT_BYTES, Memory};
use crate::session::wire::{Asked, Carrier, Serve};

/// FUSE_IO_URING_CMD_REGISTER and FUSE_IO_URING_CMD_COMMIT_AND_FETCH.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// How many places an entry has.
const PLACES: u32 = 2;

/// Where in a submission its length lies, which names them.
const LEN_AT: usize = 24;

/// What the completion of a wake-up is known by; entries are known by their place in the ring.
const WAKE: u64 = u64::MAX;

/// 1 s without a request: the memory of large ones is given back.
const IDLE: Timespec = Timespec::new().sec(1);

type Uring = IoUring<squeue::Entry128, cqueue::Entry>;

fn build(entries: u32) -> io::Result<Uring> {
    IoUring::<squeue::Entry128, cqueue::Entry>::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(entries * 2)
        .build(entries)
}

/// Whether this process may have a ring at all.
pub fn try_ring() -> io::Result<()> {
    build(1).map(drop)
}

/// An answer on its way to the kernel.
#[derive(Debug)]
pub struct Done {
    entry: u16,
    unique: u64,
    body: Result<Body, Errno>,
}

/// What an answer says.
#[derive(Debug)]
pub enum Body {
    /// These bytes.
    Fields(Vec<u8>),
    /// These, one after another.
    Parts(Vec<Bytes>),
}

/// Answers that wait for the ring's thread: at most one for each entry.
#[derive(Debug)]
pub struct Outbox {
    inner: Mutex<Answers>,
    wake: EventFd,
}

#[derive(Debug, Default)]
struct Answers {
    done: Vec<Done>,
    /// The thread looks here before it waits again.
    is_awake: bool,
    /// Nobody wants them any more.
    is_closed: bool,
}

impl Outbox {
    /// Without answers.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            inner: Mutex::default(),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?,
        })
    }

    /// Ends the thread.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.wake();
    }

    fn put(&self, done: Done) {
        let mut answers = self.lock();
        if answers.is_closed {
            return;
        }
        answers.done.push(done);
        let sleeps = !std::mem::replace(&mut answers.is_awake, true);
        drop(answers);
        if sleeps {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Err(error) = self.wake.write(1) {
            tracing::error!(%error, "the thread of a ring is not woken");
        }
    }

    /// What is there; if nothing is, the thread is taken to wait from here on. `None` at the end.
    fn take(&self, into: &mut Vec<Done>) -> Option<()> {
        let mut answers = self.lock();
        into.append(&mut answers.done);
        answers.is_awake = !into.is_empty();
        (!answers.is_closed).then_some(())
    }

    fn stay_awake(&self) {
        self.lock().is_awake = true;
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reply to one request of a ring. Dropped unsent, it says EIO.
#[derive(Debug)]
pub struct RingReply {
    /// `None` once it is sent.
    outbox: Option<Arc<Outbox>>,
    entry: u16,
    unique: u64,
}

impl Carrier for RingReply {
    fn send_error(mut self, errno: Errno) {
        self.put(Err(errno));
    }

    fn send_fields(mut self, fields: Vec<u8>) {
        self.put(Ok(Body::Fields(fields)));
    }

    fn send_parts(mut self, parts: Vec<Bytes>) {
        self.put(Ok(Body::Parts(parts)));
    }
}

impl RingReply {
    fn put(&mut self, body: Result<Body, Errno>) {
        if let Some(outbox) = self.outbox.take() {
            outbox.put(Done {
                entry: self.entry,
                unique: self.unique,
                body,
            });
        }
    }
}

impl Drop for RingReply {
    fn drop(&mut self) {
        self.put(Err(Errno::EIO));
    }
}

/// The queues of some CPUs.
pub struct Ring {
    /// Closed before the memory goes, which it knows.
    uring: Uring,
    memory: Memory,
    device: OwnedFd,
    outbox: Arc<Outbox>,
    /// Which queue each entry is of.
    queues: Vec<u16>,
    /// Whether an entry holds a request that is not answered.
    held: Vec<bool>,
    /// What the kernel has completed, and nobody has looked at: of which entry, and how.
    completed: Vec<(u64, i32)>,
    /// Where the kernel counts wake-ups.
    woken: Box<u64>,
}

impl Ring {
    /// A ring for these queues, each with `depth` entries, on the thread that will run it. The kernel has all of them then.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn new(
        device: OwnedFd,
        (queues, depth): (Vec<u16>, usize),
        request_bytes_max: usize,
        outbox: Arc<Outbox>,
    ) -> io::Result<Self> {
        pin(&queues);
        let entries = queues.len() * depth;
        // One more for the wake-up: so each entry always finds room.
        let size = u32::try_from((entries + 1).next_power_of_two()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut ring = Self {
            uring: build(size)?,
            memory: Memory::new(entries, request_bytes_max)?,
            device,
            outbox,
            queues: queues
                .iter()
                .flat_map(|queue| std::iter::repeat_n(*queue, depth))
                .collect(),
            held: vec![false; entries],
            completed: Vec::new(),
            woken: Box::new(0),
        };
        for entry in 0..entries {
            let command = ring.command((REGISTER, 0), entry);
            ring.push(&command)?;
        }
        ring.await_wake_up()?;
        ring.uring.submit()?;
        // A refusal is there at once; anything else is a request, as soon as all rings of the connection are there.
        ring.take_completed();
        match ring.completed.iter().find(|(_, result)| *result < 0) {
            Some((_, refused)) => Err(io::Error::from_raw_os_error(-refused)),
            None => Ok(ring),
        }
    }

    /// Serves until the connection ends.
    ///
    /// # Errors
    /// What the kernel says that no ring of a living connection hears.
    pub fn run(mut self, server: &impl Serve) -> io::Result<()> {
        let (mut completed, mut answers) = (Vec::new(), Vec::new());
        loop {
            let kept_bytes = match self.completed.is_empty() {
                true => self.wait()?,
                false => KEPT_BYTES,
            };
            self.outbox.stay_awake();
            self.take_completed();
            completed.append(&mut self.completed);
            // What is neither here nor told just now, the kernel has, and has put nothing into it.
            let holds = |entry| self.held[entry] || completed.iter().any(|(of, _)| *of == entry as u64);
            self.memory.trim(kept_bytes, holds);
            for (of, result) in completed.drain(..) {
                if of == WAKE {
                    self.await_wake_up()?;
                    continue;
                }
                match result {
                    0.. => self.serve(of as usize, server),
                    failed if ended(failed) => return Ok(()),
                    failed => return Err(io::Error::from_raw_os_error(-failed)),
                }
            }
            loop {
                if self.outbox.take(&mut answers).is_none() {
                    return Ok(());
                }
                if answers.is_empty() {
                    break;
                }
                for done in answers.drain(..) {
                    self.reply(done)?;
                }
            }
        }
    }

    fn take_completed(&mut self) {
        let done = self.uring.completion();
        self.completed
            .extend(done.map(|done| (done.user_data(), done.result())));
    }

    /// Hands over what is ready and waits for something to do. How much memory of large requests may stay.
    fn wait(&mut self) -> io::Result<usize> {
        let waited = match self.memory.has_spare() {
            true => {
                let limit = SubmitArgs::new().timespec(&IDLE);
                self.uring.submitter().submit_with_args(1, &limit)
            }
            false => self.uring.submit_and_wait(1),
        };
        match waited {
            Ok(_) => Ok(KEPT_BYTES),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ETIME) => Ok(0),
                Some(Errno::EINTR | Errno::EAGAIN | Errno::EBUSY) => Ok(KEPT_BYTES),
                _ => Err(error),
            },
        }
    }

    fn serve(&mut self, entry: usize, server: &impl Serve) {
        let (header, operation, content) = self.memory.request(entry);
        let asked = Asked::new(header, operation, content);
        self.held[entry] = true;
        let reply = RingReply {
            outbox: Some(Arc::clone(&self.outbox)),
            entry: u16::try_from(entry).expect("a ring has some thousand entries at most"),
            unique: asked.unique,
        };
        // A panic must not end the thread: the reply is dropped, which answers EIO.
        let served = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| server.serve(&asked, reply)));
        if served.is_err() {
            tracing::error!("an operation panicked; its caller got EIO");
        }
    }

    fn reply(&mut self, done: Done) -> io::Result<()> {
        let Done { entry, unique, body } = done;
        let entry = usize::from(entry);
        let fits = match &body {
            Ok(Body::Fields(fields)) => self.memory.reply(entry, (unique, 0), [&fields[..]].into_iter()),
            Ok(Body::Parts(parts)) => self
                .memory
                .reply(entry, (unique, 0), parts.iter().map(|part| &part[..])),
            Err(errno) => self.memory.reply(entry, (unique, -(*errno as i32)), [].into_iter()),
        };
        if !fits {
            tracing::error!("an answer is longer than the kernel has room for; its caller got EIO");
            self.memory.reply(entry, (unique, -(Errno::EIO as i32)), [].into_iter());
        }
        self.held[entry] = false;
        let command = self.command((COMMIT_AND_FETCH, self.memory.commit_id(entry)), entry);
        self.push(&command)
    }

    fn command(&self, (command, commit_id): (u32, u64), entry: usize) -> squeue::Entry128 {
        let mut fields = [0; 80];
        fields[8..16].copy_from_slice(&commit_id.to_ne_bytes());
        fields[16..18].copy_from_slice(&self.queues[entry].to_ne_bytes());
        let places = (command == REGISTER).then(|| self.memory.places(entry));
        let mut submission = opcode::UringCmd80::new(Fd(self.device.as_raw_fd()), command)
            .cmd(fields)
            .addr(places)
            .build()
            .user_data(entry as u64);
        // SAFETY: a submission is 128 bytes of which the kernel defines each, these four as its length; the library has no other way to
        // set it for this kind. Any number is a valid one.
        unsafe {
            (&raw mut submission)
                .cast::<u8>()
                .add(LEN_AT)
                .cast::<u32>()
                .write_unaligned(PLACES);
        }
        submission
    }

    fn await_wake_up(&mut self) -> io::Result<()> {
        let (at, len) = ((&raw mut *self.woken).cast::<u8>(), size_of::<u64>() as u32);
        let read = opcode::Read::new(Fd(self.outbox.wake.as_raw_fd()), at, len);
        self.push(&read.build().user_data(WAKE).into())
    }

    fn push(&mut self, submission: &squeue::Entry128) -> io::Result<()> {
        // SAFETY: what a submission names lives as long as the ring: the memory of its entries and the counter of wake-ups lie in `self`
        // and go after the ring, and so does the descriptor that is read.
        let pushed = unsafe { self.uring.submission().push(submission) };
        pushed.map_err(|_| io::Error::other("a ring has no room for one submission of each entry"))
    }
}

/// What rings hear of a connection that has ended.
fn ended(failed: i32) -> bool {
    matches!(
        Errno::from_raw(-failed),
        Errno::ENOTCONN | Errno::ECONNABORTED | Errno::ENODEV
    )
}

/// Keeps this thread on the CPUs whose requests it serves: a request then needs no other CPU to wake up.
fn pin(queues: &[u16]) {
    let mut cpus = CpuSet::new();
    let set = queues.iter().try_for_each(|cpu| cpus.set(usize::from(*cpu)));
    let pinned = set.and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus));
    if let Err(error) = pinned {
        // None of them runs now, or it is not this process's: the thread serves them from where it is.
        tracing::debug!(%error, ?queues, "a thread of a ring is not bound to its CPUs");
    }
}

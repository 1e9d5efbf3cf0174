//! Requests that nobody has answered yet, in memory that outlives this process: for kernels that cannot send a request again
//! (before Linux 6.9).
//!
//! A slot holds a request from before it is read off the connection until its reply was written there. The kernel copies it straight
//! into the slot, so there is no moment at which a request is ours and not in a slot. A short reply lies in the slot as well from
//! before it is written until after: a successor writes it again and need not ask whether it was, because the kernel refuses a
//! second one. A long reply only tells what was read, so its request is done again.
//!
//! Shape of the file: a page with magic 8, version 4, slots 4, bytes of a slot 4; then the slots, each a page with state 4, bytes of
//! the reply 4, at 64 the reply; then the request as the kernel wrote it, whose first word is its length, 0 before it is there.
//!
//! Caller: `device.rs`. Absent: who holds the memory meanwhile (`keeper.rs`).

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// 128 KiB: the longest write or read of a connection whose requests are kept. It bounds the memory of all slots.
pub const WRITE_BYTES_MAX: u32 = 128 * 1024;

/// 8 KiB beside it, for the header and what the kernel wants room for.
const REQUEST_BYTES_MAX: usize = WRITE_BYTES_MAX as usize + 8 * 1024;

/// 512 requests at a time; programs wait in the kernel for more.
const SLOTS: usize = 512;

const PAGE: usize = 4096;
const SLOT_BYTES: usize = PAGE + REQUEST_BYTES_MAX;
const FILE_BYTES: usize = PAGE + SLOTS * SLOT_BYTES;

const MAGIC: &[u8; 8] = b"PnrReqs\n";
const VERSION: u32 = 1;

/// Where in a slot its reply lies.
const REPLY_AT: usize = 64;

/// 2 KiB: longer than every reply that says what was done, or made.
const REPLY_BYTES_MAX: usize = 2048;

/// Length of a request's header; its length, its kind and its number come first.
const HEADER_BYTES: usize = 40;

/// Of a slot: nobody uses it.
const FREE: u32 = 0;
/// Of a slot: it has a request, or will have.
const ASKED: u32 = 1;
/// Of a slot: it has the reply, which may have left.
const REPLIED: u32 = 2;

/// Requests of one connection.
#[derive(Debug)]
pub struct Requests {
    file: OwnedFd,
    at: NonNull<u8>,
    slots: Mutex<Slots>,
    freed: Condvar,
}

#[derive(Debug)]
struct Slots {
    /// The one that was used last is used next: its pages are there.
    free: Vec<usize>,
    /// Slots whose pages are there: the kernel reads into them also while this process is being killed.
    has_pages: Vec<bool>,
    of_number: HashMap<u64, usize>,
}

/// A slot to read the next request into.
#[derive(Debug)]
#[must_use = "nobody else can use it"]
pub struct Slot<'a> {
    requests: &'a Requests,
    index: usize,
}

/// What a predecessor has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// A request that nobody has answered.
    Request(Vec<u8>),
    /// A reply that may not have left.
    Reply(Vec<u8>),
}

// SAFETY: the memory is shared with nobody but a successor, after this process; a slot is used by the one thread that has taken it
// from `slots`, or found it there by its request's number.
unsafe impl Send for Requests {}
// SAFETY: as above.
unsafe impl Sync for Requests {}

impl Requests {
    /// Room for the requests of a new connection.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn new() -> io::Result<Self> {
        let file = File::from(memfd_create("pannier-requests", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(FILE_BYTES as u64)?;
        let requests = Self::map(file.into())?;
        for (at, field) in [(8, VERSION), (12, SLOTS as u32), (16, SLOT_BYTES as u32)] {
            requests.write(at, &field.to_le_bytes());
        }
        requests.write(0, MAGIC);
        Ok(requests)
    }

    /// What a predecessor has left.
    ///
    /// # Errors
    /// `InvalidData` where it is of another version.
    pub fn left(file: OwnedFd) -> io::Result<Self> {
        let file = File::from(file);
        let mut head = [0; 20];
        let is_ours = file.metadata()?.len() == FILE_BYTES as u64;
        if is_ours {
            file.read_exact_at(&mut head, 0)?;
        }
        let field = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        if head[..8] != *MAGIC || (field(8), field(12), field(16)) != (VERSION, SLOTS as u32, SLOT_BYTES as u32) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the requests of the engine before lie in another way",
            ));
        }
        let requests = Self::map(file.into())?;
        let mut slots = requests.slots();
        slots
            .free
            .retain(|index| requests.state(*index).load(Ordering::Acquire) == FREE);
        drop(slots);
        Ok(requests)
    }

    fn map(file: OwnedFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                FILE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            file,
            at: NonNull::new(at.cast()).expect("a mapping is nowhere near zero"),
            slots: Mutex::new(Slots {
                free: (0..SLOTS).rev().collect(),
                has_pages: vec![false; SLOTS],
                of_number: HashMap::new(),
            }),
            freed: Condvar::new(),
        })
    }

    /// A slot for the next request; waits for one.
    pub fn take(&self) -> Slot<'_> {
        let mut slots = self.slots();
        let index = loop {
            match slots.free.pop() {
                Some(index) => break index,
                None => slots = self.freed.wait(slots).unwrap_or_else(PoisonError::into_inner),
            }
        };
        if !std::mem::replace(&mut slots.has_pages[index], true) {
            for page in (0..SLOT_BYTES).step_by(PAGE) {
                self.write(at_slot(index) + page, &[0]);
            }
        }
        drop(slots);
        self.write(at_slot(index) + PAGE, &0u32.to_ne_bytes());
        self.state(index).store(ASKED, Ordering::Release);
        Slot { requests: self, index }
    }

    /// Whether a reply of this length is noted.
    pub fn has_room_for(&self, reply_bytes: usize) -> bool {
        reply_bytes <= REPLY_BYTES_MAX
    }

    /// Notes a reply before it leaves if it is not too long, lets `leave` write it to the connection, and frees the slot of its request.
    pub fn reply<T>(&self, number: u64, reply: Option<&[u8]>, leave: impl FnOnce() -> T) -> T {
        let Some(index) = self.slots().of_number.remove(&number) else {
            return leave();
        };
        if let Some(reply) = reply.filter(|reply| self.has_room_for(reply.len())) {
            self.write(at_slot(index) + REPLY_AT, reply);
            let len = u32::try_from(reply.len()).expect("2 KiB at most");
            self.write(at_slot(index) + 4, &len.to_le_bytes());
            self.state(index).store(REPLIED, Ordering::Release);
        }
        let left = leave();
        self.free(index);
        left
    }

    /// What a predecessor has left, oldest first. All of it stays until `reply`, for a successor of this process.
    pub fn leftovers(&self) -> Vec<Leftover> {
        let mut found = Vec::new();
        for index in 0..SLOTS {
            let (state, at) = (self.state(index).load(Ordering::Acquire), at_slot(index));
            let len_at = if state == REPLIED { at + 4 } else { at + PAGE };
            let len = u32::from_ne_bytes(self.read(len_at, 4).try_into().expect("four bytes")) as usize;
            match state {
                FREE => continue,
                REPLIED if (16..=REPLY_BYTES_MAX).contains(&len) => {
                    let reply = self.read(at + REPLY_AT, len);
                    let number = number_of(&reply);
                    found.push((number, Leftover::Reply(reply)));
                    self.slots().of_number.insert(number, index);
                }
                ASKED if (HEADER_BYTES..=REQUEST_BYTES_MAX).contains(&len) => {
                    let request = self.read(at + PAGE, len);
                    let number = number_of(&request);
                    found.push((number, Leftover::Request(request)));
                    self.slots().of_number.insert(number, index);
                }
                // It was about to be read, and was not.
                _ => self.free(index),
            }
        }
        found.sort_by_key(|(number, _)| *number);
        found.into_iter().map(|(_, left)| left).collect()
    }

    fn free(&self, index: usize) {
        self.state(index).store(FREE, Ordering::Release);
        self.slots().free.push(index);
        self.freed.notify_one();
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self, index: usize) -> &AtomicU32 {
        // SAFETY: within the mapping, which lives as long as `self`; a slot begins at a multiple of 4 KiB, and its first word is
        // used by nothing but this.
        unsafe { AtomicU32::from_ptr(self.at.as_ptr().add(at_slot(index)).cast()) }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= FILE_BYTES, "within the mapping");
        // SAFETY: within the mapping, and what is not of this value cannot lie there; the slot is the caller's alone.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.as_ptr().add(at), bytes.len()) }
    }

    fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= FILE_BYTES, "within the mapping");
        // SAFETY: within the mapping, which the kernel has zeroed; the slot is the caller's alone.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().add(at), len) }.to_vec()
    }
}

impl AsFd for Requests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length and is unmapped once; nothing borrowed from it is left.
        unsafe { libc::munmap(self.at.as_ptr().cast(), FILE_BYTES) };
    }
}

impl Slot<'_> {
    /// Lets `read` fill the slot, and notes the request as one that waits for its reply if it does.
    ///
    /// # Errors
    /// What `read` says.
    pub fn fill(self, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<Filled> {
        let at = at_slot(self.index) + PAGE;
        // SAFETY: within the mapping; the slot is this value's alone, and it outlives the slice.
        let room = unsafe { std::slice::from_raw_parts_mut(self.requests.at.as_ptr().add(at), REQUEST_BYTES_MAX) };
        let len = match read(room) {
            Ok(len) if len >= HEADER_BYTES => len,
            read => {
                self.requests.free(self.index);
                return read.and(Err(io::ErrorKind::InvalidData.into()));
            }
        };
        let filled = Filled(self.requests.read(at, len));
        match filled.wants_reply() {
            true => drop(self.requests.slots().of_number.insert(filled.number(), self.index)),
            // Done or not, the kernel does not ask for it again either.
            false => self.requests.free(self.index),
        }
        Ok(filled)
    }
}

/// A copy of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filled(pub Vec<u8>);

impl Filled {
    fn number(&self) -> u64 {
        number_of(&self.0)
    }

    fn wants_reply(&self) -> bool {
        const FORGET: u32 = 2;
        const BATCH_FORGET: u32 = 42;
        let kind = u32::from_ne_bytes(self.0[4..8].try_into().expect("four bytes"));
        !matches!(kind, FORGET | BATCH_FORGET)
    }
}

fn at_slot(index: usize) -> usize {
    PAGE + index * SLOT_BYTES
}

/// The number of a request, or of the one that a reply is for: it lies in the same place in both.
pub fn number_of(message: &[u8]) -> u64 {
    u64::from_ne_bytes(message[8..16].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: u32 = 16;
    const FORGET: u32 = 2;

    fn request(number: u64, kind: u32) -> Vec<u8> {
        let mut request = vec![0; 56];
        request[..4].copy_from_slice(&56u32.to_ne_bytes());
        request[4..8].copy_from_slice(&kind.to_ne_bytes());
        request[8..16].copy_from_slice(&number.to_ne_bytes());
        request[40..].fill(number as u8);
        request
    }

    fn reply(number: u64, len: usize) -> Vec<u8> {
        let mut reply = vec![7; len];
        reply[8..16].copy_from_slice(&number.to_ne_bytes());
        reply
    }

    fn ask(requests: &Requests, number: u64, kind: u32) {
        let asked = request(number, kind);
        let fill = |room: &mut [u8]| {
            room[..asked.len()].copy_from_slice(&asked);
            Ok(asked.len())
        };
        assert_eq!(requests.take().fill(fill).unwrap().0, asked);
    }

    /// What a successor finds.
    fn left_by(requests: &Requests) -> Vec<Leftover> {
        let file = requests.as_fd().try_clone_to_owned().unwrap();
        // It frees what it takes, so it looks at a copy.
        let copy = Requests::new().unwrap();
        std::io::copy(&mut File::from(file), &mut &File::from(copy.file.try_clone().unwrap())).unwrap();
        let rewound = [requests, &copy].map(|of| io::Seek::rewind(&mut &File::from(of.file.try_clone().unwrap())));
        assert!(rewound.iter().all(Result::is_ok));
        Requests::left(copy.file.try_clone().unwrap()).unwrap().leftovers()
    }

    /// A request is never missing: before its reply leaves it is there, while a short one leaves that is, and then nothing is.
    #[test]
    fn a_successor_finds_what_nobody_has_answered_and_each_reply_that_may_not_have_left() {
        let requests = Requests::new().unwrap();
        assert_eq!(left_by(&requests), []);
        ask(&requests, 4, WRITE);
        ask(&requests, 2, WRITE);
        ask(&requests, 6, FORGET);
        let both = [2, 4].map(|number| Leftover::Request(request(number, WRITE)));
        assert_eq!(left_by(&requests), both, "oldest first, and nothing that has no reply");
        let (short, long) = (reply(4, 32), reply(2, REPLY_BYTES_MAX + 1));
        requests.reply(4, Some(&short), || {
            let left = [both[0].clone(), Leftover::Reply(short.clone())];
            assert_eq!(left_by(&requests), left);
            // A successor that dies as well, before it has written the reply, leaves it to the next one.
            let successor = Requests::left(requests.as_fd().try_clone_to_owned().unwrap()).unwrap();
            assert_eq!(successor.leftovers(), left);
            drop(successor);
            assert_eq!(left_by(&requests), left);
        });
        requests.reply(2, Some(&long), || assert_eq!(left_by(&requests), both[..1]));
        assert_eq!(left_by(&requests), []);
        assert!(
            requests
                .take()
                .fill(|_| Err(io::ErrorKind::Interrupted.into()))
                .is_err()
        );
        assert!(requests.take().fill(|_| Ok(HEADER_BYTES - 1)).is_err());
        assert_eq!(left_by(&requests), []);
    }

    /// A successor answers what was left like what it was asked itself, and never reads another request over it.
    #[test]
    fn a_request_that_was_left_keeps_its_slot_until_it_is_answered() {
        let before = Requests::new().unwrap();
        ask(&before, 2, WRITE);
        let requests = Requests::left(before.as_fd().try_clone_to_owned().unwrap()).unwrap();
        drop(before);
        assert_eq!(requests.leftovers(), [Leftover::Request(request(2, WRITE))]);
        (1..SLOTS as u64).for_each(|n| ask(&requests, 2 + 2 * n, WRITE));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| ask(&requests, 9_000, WRITE));
            assert_eq!(left_by(&requests).len(), SLOTS, "all are in use");
            requests.reply(2, Some(&reply(2, 16)), || ());
            waits.join().unwrap();
        });
        let left = left_by(&requests);
        assert_eq!(left.len(), SLOTS);
        assert_eq!(left.last(), Some(&Leftover::Request(request(9_000, WRITE))));
    }

    #[test]
    fn requests_that_lie_in_another_way_are_refused() {
        let requests = Requests::new().unwrap();
        requests.write(8, &(VERSION + 1).to_le_bytes());
        let refused = Requests::left(requests.as_fd().try_clone_to_owned().unwrap()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        let short = File::from(memfd_create("short", MFdFlags::MFD_CLOEXEC).unwrap());
        assert!(Requests::left(short.into()).is_err());
    }
}

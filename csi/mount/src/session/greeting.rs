//! The kernel's greeting of a connection: answered once, and remembered, so that a successor can be greeted in the kernel's place.
//!
//! fuser wants to be greeted before it serves. So it is greeted through a pair of sockets, with what the kernel said at the
//! mount, and its socket is then replaced by the connection itself, or relayed (`relay.rs`). At the mount its answer goes to the kernel; to a
//! successor's answer nobody listens, because the kernel has its own since the mount: a successor must agree to the same.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use fuser::{Config, SessionACL};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use crate::fuse::Classic;

/// 8 KiB: what the kernel wants to have room for at least, whatever it says.
const GREETING_BYTES_MAX: usize = 8192;

/// Bytes of a page as the kernel counts requests.
const PAGE_BYTES: usize = 4096;

/// Where the second word of flags lies in a greeting: after its header of 40 bytes, the version, the read-ahead and the first.
const MORE_FLAGS_AT: usize = 56;

/// Bit 39 of the flags: the kernel can send requests again that nobody has answered.
const SENDS_AGAIN: u32 = 1 << (39 - 32);

/// Bit 41 of the flags: the kernel can send requests by io_uring.
const OFFERS_RINGS: u32 = 1 << (41 - 32);

/// Where in an answer the longest write in bytes lies, after its header of 16 bytes, and where the longest request in pages.
const WRITE_BYTES_AT: usize = 16 + 20;
const PAGES_AT: usize = 16 + 28;

/// FUSE_NOTIFY_INVAL_INODE and FUSE_NOTIFY_RESEND, as the kernel numbers its notifications.
const NOTIFY_INVAL_INODE: u32 = 2;
const NOTIFY_RESEND: u32 = 7;

/// What the kernel said at the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting(Vec<u8>);

impl Greeting {
    /// What somebody kept.
    pub fn kept(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// To be kept.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// True if the kernel can give a successor what was asked of its predecessor.
    pub fn can_send_again(&self) -> bool {
        self.has(SENDS_AGAIN)
    }

    /// True if the kernel offers requests by io_uring.
    pub fn offers_rings(&self) -> bool {
        self.has(OFFERS_RINGS)
    }

    fn has(&self, flag: u32) -> bool {
        let word = self.0.get(MORE_FLAGS_AT..MORE_FLAGS_AT + 4);
        word.is_some_and(|word| u32::from_ne_bytes(word.try_into().expect("four bytes")) & flag != 0)
    }

    /// What a kernel before Linux 6.9 would have said.
    pub fn of_an_older_kernel(mut self) -> Self {
        if let Some(word) = self.0.get_mut(MORE_FLAGS_AT..MORE_FLAGS_AT + 4) {
            let flags = u32::from_ne_bytes((&*word).try_into().expect("four bytes")) & !SENDS_AGAIN;
            word.copy_from_slice(&flags.to_ne_bytes());
        }
        self
    }
}

/// A session that was greeted.
#[derive(Debug)]
pub struct Greeted {
    /// It.
    pub session: fuser::Session<Classic>,
    /// The other end is the session's.
    pub socket: OwnedFd,
    /// The longest content of a request or reply that was agreed on, in bytes.
    pub request_bytes_max: usize,
}

/// What the kernel wants room for in each entry of a ring.
fn request_bytes_max(answer: &[u8]) -> usize {
    let write = answer.get(WRITE_BYTES_AT..WRITE_BYTES_AT + 4);
    let write = write.map_or(0, |word| {
        u32::from_ne_bytes(word.try_into().expect("four bytes")) as usize
    });
    let pages = answer.get(PAGES_AT..PAGES_AT + 2);
    let pages = pages.map_or(0, |word| {
        usize::from(u16::from_ne_bytes(word.try_into().expect("two bytes")))
    });
    write.max(pages * PAGE_BYTES).max(GREETING_BYTES_MAX)
}

/// Reads the kernel's greeting of a new connection.
///
/// # Errors
/// What the kernel says.
pub fn hear(device: &OwnedFd) -> io::Result<Greeting> {
    let mut device = std::fs::File::from(device.try_clone()?);
    let mut bytes = vec![0; GREETING_BYTES_MAX];
    loop {
        match device.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => {
                bytes.truncate(read?);
                return Ok(Greeting(bytes));
            }
        }
    }
}

/// Makes a session that was greeted as the kernel greets. It is connected with the end of a pair of sockets that comes with it.
/// `answers` where the kernel still waits for the answer.
///
/// # Errors
/// What the kernel or fuser says.
pub fn greet(
    skin: Classic,
    (device, greeting): (&OwnedFd, &Greeting),
    config: Config,
    answers: bool,
) -> io::Result<Greeted> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    send(ours.as_raw_fd(), greeting.as_bytes(), MsgFlags::empty())?;
    // The kernel has checked who may (`allow_other`, `default_permissions`); a second check here would only differ.
    let session = fuser::Session::from_fd(skin, theirs, SessionACL::All, config)?;
    let mut answer = vec![0; GREETING_BYTES_MAX];
    let len = recv(ours.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    if answers {
        let mut device = std::fs::File::from(device.try_clone()?);
        device.write_all(&answer[..len])?;
    }
    Ok(Greeted {
        session,
        socket: ours,
        request_bytes_max: request_bytes_max(&answer[..len]),
    })
}

/// Connects a session with the kernel itself.
///
/// # Errors
/// What the system refuses.
pub fn connect(session: &fuser::Session<Classic>, device: &OwnedFd) -> io::Result<()> {
    // SAFETY: both descriptors are open: `device` is borrowed, and the other is the session's own, which lives on. dup3
    // replaces what the number stands for at once, and the session reads and writes by that number only.
    let replaced = unsafe { libc::dup3(device.as_raw_fd(), session.as_fd().as_raw_fd(), libc::O_CLOEXEC) };
    match replaced < 0 {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
}

/// Makes the kernel write back what it has not written yet of a file, from a page on, and forget it; a negative offset stands for no
/// page, only for what it knows of the file. Blocks while it does.
///
/// # Errors
/// `NotFound` where the kernel knows nothing of the file.
pub fn forget_pages(mut device: &std::fs::File, ino: u64, offset: i64) -> io::Result<()> {
    let mut message = [0; 40];
    message[..4].copy_from_slice(&40u32.to_ne_bytes());
    message[4..8].copy_from_slice(&NOTIFY_INVAL_INODE.to_ne_bytes());
    message[16..24].copy_from_slice(&ino.to_ne_bytes());
    message[24..32].copy_from_slice(&offset.to_ne_bytes());
    device.write_all(&message)
}

/// Asks the kernel for every request that a predecessor has read and not answered.
///
/// # Errors
/// `InvalidInput` from a kernel that cannot.
pub fn ask_again(device: &OwnedFd) -> io::Result<()> {
    let mut message = [0; 16];
    message[..4].copy_from_slice(&16u32.to_ne_bytes());
    message[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    std::fs::File::from(device.try_clone()?).write_all(&message)
}

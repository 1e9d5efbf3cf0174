//! The kernel's greeting of a connection: answered once, and remembered, because a successor must keep to what was agreed on: to its
//! answer nobody listens.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;

use super::requests::WRITE_BYTES_MAX;
use super::wire::u32_at;
use super::{SessionError, Way};

/// 8 KiB: what the kernel wants to have room for at least, whatever it says.
const GREETING_BYTES_MAX: usize = 8192;

/// Bytes of a page as the kernel counts requests.
const PAGE_BYTES: u32 = 4096;

/// Where in a greeting its number lies, and, after its header of 40 bytes, the version, the longest read-ahead in bytes and both words of
/// flags. Kernels before Linux 5.17 have only one.
const UNIQUE_AT: usize = 8;
const MAJOR_AT: usize = 40;
const MINOR_AT: usize = 44;
const READ_AHEAD_AT: usize = 48;
const FLAGS_AT: usize = 52;
const MORE_FLAGS_AT: usize = 56;
const SHORTEST_BYTES: usize = 56;

/// Version 7.40 is what we answer, of any that is not older than 7.31 (that of Linux 5.4): what both say is laid out alike in all of them.
const MAJOR: u32 = 7;
const MINOR: u32 = 40;
const MINOR_MIN: u32 = 31;

/// Length of our answer with its header.
const ANSWER_BYTES: usize = 16 + 64;

/// 1 MiB: the kernel's own largest request (256 pages). Larger ones were not faster.
const REQUEST_BYTES_MAX: u32 = 1024 * 1024;

/// 32 reads ahead and writes behind at a time; above it the kernel makes their callers wait. A write that waits for room holds
/// its 1 MiB in our memory, beside what is dirty.
const BACKGROUND_REQUESTS_MAX: u16 = 32;

/// Of as many the kernel says that it is busy.
const BUSY_REQUESTS: u16 = BACKGROUND_REQUESTS_MAX / 4 * 3;

/// FUSE_NOTIFY_INVAL_INODE and FUSE_NOTIFY_RESEND, as the kernel numbers its notifications.
const NOTIFY_INVAL_INODE: u32 = 2;
const NOTIFY_RESEND: u32 = 7;

/// Flags of the greeting, as fuse.h names them.
mod flag {
    pub const ASYNC_READ: u64 = 1;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub const HAS_RESEND: u64 = 1 << 39;
    pub const OVER_IO_URING: u64 = 1 << 41;
}

/// What every mount wants. Locks are not asked for, so the kernel keeps them by itself. The umask comes to us, because a directory's
/// default list may take its place.
const ALWAYS: u64 = flag::ASYNC_READ
    | flag::PARALLEL_DIROPS
    | flag::ATOMIC_O_TRUNC
    | flag::EXPORT_SUPPORT
    | flag::BIG_WRITES
    | flag::MAX_PAGES
    | flag::DO_READDIRPLUS
    | flag::ASYNC_DIO
    | flag::CACHE_SYMLINKS
    | flag::NO_OPENDIR_SUPPORT
    | flag::DIRECT_IO_ALLOW_MMAP
    | flag::POSIX_ACL
    | flag::DONT_MASK
    | flag::INIT_EXT;

/// What a mount that writes wants: the kernel answers write(2) from its own memory and sends us whole pages later.
const WRITING: u64 = flag::WRITEBACK_CACHE | flag::HANDLE_KILLPRIV_V2 | flag::EXPLICIT_INVAL_DATA | flag::SETXATTR_EXT;

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
        self.offered() & flag::HAS_RESEND != 0
    }

    /// True if the kernel offers requests by io_uring.
    pub fn offers_rings(&self) -> bool {
        self.offered() & flag::OVER_IO_URING != 0
    }

    fn word(&self, at: usize) -> Option<u32> {
        self.0.get(at..at + 4).map(|word| u32_at(word, 0))
    }

    fn offered(&self) -> u64 {
        let low = u64::from(self.word(FLAGS_AT).unwrap_or_default());
        match low & flag::INIT_EXT {
            0 => low,
            _ => low | u64::from(self.word(MORE_FLAGS_AT).unwrap_or_default()) << 32,
        }
    }

    /// What a kernel before Linux 6.9 would have said.
    pub fn of_an_older_kernel(mut self) -> Self {
        if let Some(word) = self.0.get_mut(MORE_FLAGS_AT..MORE_FLAGS_AT + 4) {
            let flags = u32_at(word, 0) & !((flag::HAS_RESEND >> 32) as u32);
            word.copy_from_slice(&flags.to_ne_bytes());
        }
        self
    }

    /// What is agreed on for a volume.
    ///
    /// # Errors
    /// `Greeting` from a kernel that is too old, or that says something else.
    pub fn agree(&self, read_only: bool, way: Way) -> Result<Agreement, SessionError> {
        let failed = |text: String| SessionError::Greeting {
            source: io::Error::new(io::ErrorKind::Unsupported, text),
        };
        let version = self.word(MAJOR_AT).zip(self.word(MINOR_AT));
        match version {
            Some((MAJOR, MINOR_MIN..)) if self.0.len() >= SHORTEST_BYTES => {}
            Some((major, minor)) => {
                return Err(failed(format!(
                    "it speaks version {major}.{minor}, and the oldest that is understood is {MAJOR}.{MINOR_MIN} (that of Linux 5.4)"
                )));
            }
            None => return Err(failed("its greeting is cut off".into())),
        }
        let mut wanted = ALWAYS;
        wanted |= match read_only {
            false => WRITING,
            // A reader may go on with a newer state, in which a file is another one.
            true => flag::AUTO_INVAL_DATA,
        };
        if way == Way::Rings {
            wanted |= flag::OVER_IO_URING;
        }
        let content_bytes_max = match way {
            Way::Kept => WRITE_BYTES_MAX,
            Way::Direct | Way::Rings => REQUEST_BYTES_MAX,
        };
        Ok(Agreement {
            unique: self.0[UNIQUE_AT..UNIQUE_AT + 8].try_into().expect("eight bytes"),
            read_ahead_bytes: self.word(READ_AHEAD_AT).unwrap_or_default(),
            // An older kernel lacks some: without them it is slower, not wrong.
            flags: wanted & self.offered(),
            content_bytes_max,
        })
    }
}

/// How both talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    unique: [u8; 8],
    read_ahead_bytes: u32,
    flags: u64,
    content_bytes_max: u32,
}

impl Agreement {
    /// The longest content of a request or an answer, in bytes.
    pub fn content_bytes_max(&self) -> usize {
        (self.content_bytes_max.max(self.read_ahead_bytes) as usize).max(GREETING_BYTES_MAX)
    }

    /// Tells the kernel.
    ///
    /// # Errors
    /// What it says.
    pub fn tell(&self, device: &OwnedFd) -> io::Result<()> {
        std::fs::File::from(device.try_clone()?).write_all(&self.as_answer())
    }

    fn as_answer(&self) -> [u8; ANSWER_BYTES] {
        let mut answer = [0; ANSWER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| answer[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(ANSWER_BYTES as u32).to_ne_bytes());
        put(8, &self.unique);
        let pages = self.content_bytes_max.max(self.read_ahead_bytes).div_ceil(PAGE_BYTES);
        put(16, &MAJOR.to_ne_bytes());
        put(20, &MINOR.to_ne_bytes());
        put(24, &self.read_ahead_bytes.to_ne_bytes());
        put(28, &(self.flags as u32).to_ne_bytes());
        put(32, &BACKGROUND_REQUESTS_MAX.to_ne_bytes());
        put(34, &BUSY_REQUESTS.to_ne_bytes());
        put(36, &self.content_bytes_max.to_ne_bytes());
        // Times are to the nanosecond.
        put(40, &1u32.to_ne_bytes());
        put(44, &u16::try_from(pages).unwrap_or(u16::MAX).to_ne_bytes());
        put(48, &((self.flags >> 32) as u32).to_ne_bytes());
        answer
    }
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

/// Makes the kernel write back what it has not written yet of a range of a file, and forget the range and what it knows of the file; no
/// range stands for no page at all. Blocks while it does.
///
/// # Errors
/// `NotFound` where the kernel knows nothing of the file.
pub fn forget_pages(mut device: &std::fs::File, ino: u64, range: Option<Range<u64>>) -> io::Result<()> {
    // A length of zero would stand for all that follows.
    let (offset, len) = match range {
        Some(range) if range.is_empty() => return Ok(()),
        Some(range) => (range.start.cast_signed(), (range.end - range.start).cast_signed()),
        None => (-1, 0),
    };
    let mut message = [0; 40];
    message[..4].copy_from_slice(&40u32.to_ne_bytes());
    message[4..8].copy_from_slice(&NOTIFY_INVAL_INODE.to_ne_bytes());
    message[16..24].copy_from_slice(&ino.to_ne_bytes());
    message[24..32].copy_from_slice(&offset.to_ne_bytes());
    message[32..40].copy_from_slice(&len.to_ne_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(minor: u32, flags: u64, len: usize) -> Greeting {
        let mut bytes = vec![0; len];
        let words = [
            (UNIQUE_AT, 2),
            (MAJOR_AT, 7),
            (MINOR_AT, minor),
            (READ_AHEAD_AT, 128 * 1024),
            (FLAGS_AT, flags as u32),
            (MORE_FLAGS_AT, (flags >> 32) as u32),
        ];
        for (at, word) in words {
            if at + 4 <= len {
                bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
            }
        }
        Greeting(bytes)
    }

    #[test]
    fn only_what_the_kernel_offers_is_agreed_on() {
        let offers = ALWAYS | WRITING | flag::HAS_RESEND;
        let agreed = greeting(45, offers, 104).agree(false, Way::Direct).unwrap();
        assert_eq!(agreed.flags, ALWAYS | WRITING);
        let answer = agreed.as_answer();
        assert_eq!((u32_at(&answer, 0), answer[8]), (80, 2));
        assert_eq!((u32_at(&answer, 16), u32_at(&answer, 20)), (7, 40));
        assert_eq!(u32_at(&answer, 36), 1 << 20);
        assert_eq!(u16::from_ne_bytes([answer[44], answer[45]]), 256);
        let few = greeting(45, flag::ASYNC_READ, 104).agree(false, Way::Rings).unwrap();
        assert_eq!(few.flags, flag::ASYNC_READ);
    }

    #[test]
    fn a_reader_does_without_the_writeback_cache_and_follows_what_changes() {
        let agreed = greeting(45, u64::MAX, 104).agree(true, Way::Direct).unwrap();
        assert_eq!(
            agreed.flags & (flag::WRITEBACK_CACHE | flag::AUTO_INVAL_DATA),
            flag::AUTO_INVAL_DATA
        );
    }

    #[test]
    fn a_kernel_without_a_second_word_of_flags_offers_nothing_by_it() {
        let old = greeting(31, flag::ASYNC_READ | flag::HAS_RESEND, SHORTEST_BYTES);
        assert!(!old.can_send_again());
        assert!(
            !greeting(40, flag::HAS_RESEND, 104).can_send_again(),
            "it does not say that there is one"
        );
        let new = greeting(40, flag::INIT_EXT | flag::HAS_RESEND, 104);
        assert!(new.can_send_again() && !new.of_an_older_kernel().can_send_again());
    }

    #[test]
    fn a_greeting_that_is_too_old_or_cut_off_is_refused_with_the_reason() {
        let told = |greeting: Greeting| greeting.agree(false, Way::Direct).unwrap_err().to_string();
        assert!(told(greeting(26, 0, 104)).contains("Linux 5.4"));
        for len in 0..SHORTEST_BYTES {
            told(greeting(45, 0, len));
        }
    }
}

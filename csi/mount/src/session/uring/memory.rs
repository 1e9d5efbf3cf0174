//! The memory of one ring, which the kernel writes requests to and reads replies from: a header and room for content for each entry.
//!
//! Content of 1 MiB for each of many entries is address space. Memory it is only where content has been, and what large content has
//! touched is given back when there is more of it than `KEPT_BYTES`, or when the ring has nothing to do.
//!
//! Invariant: the kernel touches an entry only within a call of this thread that waits or submits, and only one that was handed over
//! to it (`Entries` in `ring.rs`); so between two calls all of it is ours to read, write and give back.

use std::io;
use std::ptr::NonNull;

use crate::session::wire::{u32_at, u64_at};

/// Length of an entry's header: what the kernel calls fuse_uring_req_header.
pub const HEADER_BYTES: usize = 288;

/// Where in it the header of the request or of the reply lies, where the operation's own fields, and where its place.
const OPERATION_AT: usize = 128;
const PLACE_AT: usize = 256;
const COMMIT_ID_AT: usize = PLACE_AT + 8;
const CONTENT_BYTES_AT: usize = PLACE_AT + 16;

/// Length of the header of a reply.
const REPLY_HEADER_BYTES: usize = 16;

/// 4 KiB.
const PAGE: usize = 4096;

/// 16 KiB: what small requests touch is not worth a call to the kernel.
const SMALL_BYTES: usize = 16 * 1024;

/// 4 MiB of a ring: as much as a stream of large requests has in flight. It costs a page fault for each 4 KiB to give memory back.
pub const KEPT_BYTES: usize = 4 * 1024 * 1024;

/// The memory.
#[derive(Debug)]
pub struct Memory {
    at: NonNull<u8>,
    entries: usize,
    content_bytes: usize,
    /// For each entry, how much of its content may have memory.
    touched: Vec<usize>,
    touched_bytes: usize,
    /// What the kernel is told of each entry: where its header lies, and where its content.
    places: Box<[[libc::iovec; 2]]>,
}

impl Memory {
    /// Room for `entries`, each with `content_bytes`.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn new(entries: usize, content_bytes: usize) -> io::Result<Self> {
        let content_bytes = content_bytes.next_multiple_of(PAGE);
        let headers = headers_bytes(entries);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                headers + entries * content_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast::<u8>()).expect("a mapping is nowhere near zero");
        let place = |offset: usize, len| libc::iovec {
            // SAFETY: within the mapping.
            iov_base: unsafe { at.as_ptr().add(offset) }.cast(),
            iov_len: len,
        };
        let places = (0..entries).map(|entry| {
            [
                place(entry * HEADER_BYTES, HEADER_BYTES),
                place(headers + entry * content_bytes, content_bytes),
            ]
        });
        Ok(Self {
            places: places.collect(),
            at,
            entries,
            content_bytes,
            touched: vec![0; entries],
            touched_bytes: 0,
        })
    }

    /// Where the kernel finds the two places of an entry; for as long as `self` lives.
    pub fn places(&self, entry: usize) -> u64 {
        (&raw const self.places[entry]) as u64
    }

    /// The request of an entry: its header, the fields of its operation, and its content.
    pub fn request(&mut self, entry: usize) -> (&[u8], &[u8], &[u8]) {
        let len = u32_at(self.header(entry), CONTENT_BYTES_AT) as usize;
        // The kernel has written no more than there is room for; should it say otherwise, the request is refused as too short.
        let len = len.min(self.content_bytes);
        self.touch(entry, len);
        let header = self.header(entry);
        (&header[..40], &header[OPERATION_AT..PLACE_AT], self.content(entry, len))
    }

    /// By which number the kernel wants the reply.
    pub fn commit_id(&self, entry: usize) -> u64 {
        u64_at(self.header(entry), COMMIT_ID_AT)
    }

    /// Puts a reply in place of a request: an error, or pieces of content. False if they have no room.
    pub fn reply<'a>(
        &mut self,
        entry: usize,
        (unique, error): (u64, i32),
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> bool {
        let mut len = 0;
        for piece in pieces {
            if piece.len() > self.content_bytes - len {
                return false;
            }
            let at = self.content_at(entry) + len;
            self.write(at, piece);
            len += piece.len();
        }
        self.touch(entry, len);
        let at = entry * HEADER_BYTES;
        let whole = u32::try_from(REPLY_HEADER_BYTES + len).expect("content has some MiB at most");
        self.write(at, &whole.to_ne_bytes());
        self.write(at + 4, &error.to_ne_bytes());
        self.write(at + 8, &unique.to_ne_bytes());
        let len = u32::try_from(len).expect("content has some MiB at most");
        self.write(at + CONTENT_BYTES_AT, &len.to_ne_bytes());
        true
    }

    /// True if there is memory to give back.
    pub fn has_spare(&self) -> bool {
        self.touched_bytes > 0
    }

    /// Gives memory back until no more than `kept_bytes` of it may be left, but for entries that hold a request or a reply.
    pub fn trim(&mut self, kept_bytes: usize, holds: impl Fn(usize) -> bool) {
        for entry in 0..self.entries {
            if self.touched_bytes <= kept_bytes {
                return;
            }
            let touched = self.touched[entry];
            if touched == 0 || holds(entry) {
                continue;
            }
            // SAFETY: within the mapping, and nobody reads what is there: the entry holds neither a request nor a reply.
            let given = unsafe {
                libc::madvise(
                    self.pointer(self.content_at(entry)).cast(),
                    touched,
                    libc::MADV_DONTNEED,
                )
            };
            if given != 0 {
                return tracing::debug!(error = %io::Error::last_os_error(), "memory of a ring is not given back");
            }
            self.touched_bytes -= touched;
            self.touched[entry] = 0;
        }
    }

    fn touch(&mut self, entry: usize, len: usize) {
        let len = len.next_multiple_of(PAGE);
        if len > SMALL_BYTES && len > self.touched[entry] {
            self.touched_bytes += len - self.touched[entry];
            self.touched[entry] = len;
        }
    }

    fn content_at(&self, entry: usize) -> usize {
        headers_bytes(self.entries) + entry * self.content_bytes
    }

    fn header(&self, entry: usize) -> &[u8] {
        assert!(entry < self.entries, "an entry of this ring");
        // SAFETY: within the mapping, which the kernel has zeroed, and which it does not touch before the next call.
        unsafe { std::slice::from_raw_parts(self.pointer(entry * HEADER_BYTES), HEADER_BYTES) }
    }

    fn content(&self, entry: usize, len: usize) -> &[u8] {
        assert!(entry < self.entries && len <= self.content_bytes, "content of an entry");
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.pointer(self.content_at(entry)), len) }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len(), "within the mapping");
        // SAFETY: within the mapping, which nothing else refers to while `self` is borrowed as a whole; what is written comes from
        // elsewhere, because it is borrowed too.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.pointer(at), bytes.len()) }
    }

    fn pointer(&self, at: usize) -> *mut u8 {
        debug_assert!(at <= self.len(), "within the mapping");
        // SAFETY: within the mapping, as each caller has seen to.
        unsafe { self.at.as_ptr().add(at) }
    }

    fn len(&self) -> usize {
        headers_bytes(self.entries) + self.entries * self.content_bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length and is unmapped once; nothing borrowed from it is left, and the ring that the
        // kernel knew it by is closed before (`Ring` has it in this order).
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len()) };
    }
}

fn headers_bytes(entries: usize) -> usize {
    (entries * HEADER_BYTES).next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_lies_where_the_kernel_looks_for_it() {
        let mut memory = Memory::new(3, 8192).unwrap();
        assert!(memory.reply(1, (77, 0), [&b"abc"[..], b"de"].into_iter()));
        let header = memory.header(1);
        assert_eq!(header[..4], 21u32.to_ne_bytes());
        assert_eq!(header[8..16], 77u64.to_ne_bytes());
        assert_eq!(header[CONTENT_BYTES_AT..CONTENT_BYTES_AT + 4], 5u32.to_ne_bytes());
        assert_eq!(memory.content(1, 5), b"abcde");
        assert_eq!(memory.content(0, 8192), [0; 8192], "the neighbours are as they were");
        assert_eq!(memory.content(2, 8192), [0; 8192]);
    }

    #[test]
    fn a_reply_without_room_is_refused() {
        let mut memory = Memory::new(2, 8192).unwrap();
        assert!(!memory.reply(0, (1, 0), [&[1; 8192][..], &[2]].into_iter()));
        assert_eq!(memory.content(1, 1), [0], "nothing reaches the next entry");
    }

    #[test]
    fn a_length_beyond_the_room_is_cut() {
        let mut memory = Memory::new(1, 8192).unwrap();
        memory.write(CONTENT_BYTES_AT, &u32::MAX.to_ne_bytes());
        assert_eq!(memory.request(0).2.len(), 8192);
    }

    #[test]
    fn memory_of_large_content_is_given_back_and_what_is_held_stays() {
        let mut memory = Memory::new(3, 1 << 20).unwrap();
        let large = vec![7; 1 << 20];
        for entry in 0..3 {
            assert!(memory.reply(entry, (1, 0), [&large[..]].into_iter()));
        }
        assert_eq!(memory.touched_bytes, 3 << 20);
        memory.trim(1 << 20, |entry| entry == 1);
        assert_eq!(memory.touched, [0, 1 << 20, 0]);
        assert_eq!((memory.content(0, 1), memory.content(1, 1)), (&[0][..], &[7][..]));
        memory.trim(0, |_| false);
        assert!(!memory.has_spare());
    }
}

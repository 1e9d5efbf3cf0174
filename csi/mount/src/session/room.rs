//! Where a request is read to.
//!
//! Invariant: every page of it is there before the kernel is asked to fill it. A page that was never used, or that the system has taken
//! away, is put there only while the kernel copies; where this process is killed in that moment the kernel cannot, and tells the
//! program that asked EIO, although a successor would have served it.
//! Absent: what is read (`device.rs`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use bytes::Bytes;

/// 512 KiB: a request as long as this leaves with its memory, and the next one gets other memory; a shorter one is copied.
const HANDED_OVER_BYTES_MIN: usize = 512 * 1024;

/// Memory for one request at a time.
#[derive(Debug)]
pub struct Room {
    bytes: Vec<u8>,
    capacity: usize,
}

impl Room {
    /// Room for this many bytes.
    pub fn new(capacity: usize) -> Self {
        let mut room = Self {
            bytes: Vec::new(),
            capacity,
        };
        room.renew();
        room
    }

    /// Reads one request.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read(&mut self, device: &OwnedFd) -> io::Result<()> {
        self.bytes.clear();
        // SAFETY: the vector has `capacity` bytes of memory, which is ours alone and which the call may write.
        let read = unsafe { libc::read(device.as_raw_fd(), self.bytes.as_mut_ptr().cast(), self.capacity) };
        let len = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        // SAFETY: the kernel has written this many bytes, and was told not to write more than there is room for.
        unsafe { self.bytes.set_len(len) };
        Ok(())
    }

    /// The request.
    pub fn message(&self) -> &[u8] {
        &self.bytes
    }

    /// The request with its memory, if it is long: then there is other memory for the next one.
    pub fn take_long(&mut self) -> Option<Bytes> {
        if self.bytes.len() < HANDED_OVER_BYTES_MIN {
            return None;
        }
        unlock(&self.bytes);
        let long = Bytes::from(std::mem::take(&mut self.bytes));
        self.renew();
        Some(long)
    }

    fn renew(&mut self) {
        self.bytes = Vec::with_capacity(self.capacity);
        lock(&mut self.bytes, self.capacity);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Whoever gets the memory next may not want it locked.
        unlock(&self.bytes);
    }
}

/// Puts all pages there, and has them stay.
fn lock(bytes: &mut Vec<u8>, capacity: usize) {
    // SAFETY: the range is the vector's own memory; locking changes nothing in it.
    if unsafe { libc::mlock(bytes.as_ptr().cast(), capacity) } == 0 {
        return;
    }
    // More than this process may lock: then they are at least there.
    bytes.resize(capacity, 0);
    bytes.clear();
}

fn unlock(bytes: &Vec<u8>) {
    if bytes.capacity() == 0 {
        return;
    }
    // SAFETY: the range is the vector's own memory. That it was not locked is no failure.
    unsafe { libc::munlock(bytes.as_ptr().cast(), bytes.capacity()) };
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const PAGE: usize = 4096;

    fn is_there(bytes: &[u8]) -> bool {
        let start = (bytes.as_ptr() as usize).next_multiple_of(PAGE);
        let mut there = vec![0u8; bytes.len() / PAGE - 1];
        // SAFETY: the range lies within memory that is ours, and there is a byte for each of its pages.
        let asked = unsafe { libc::mincore(start as *mut libc::c_void, there.len() * PAGE, there.as_mut_ptr()) };
        assert_eq!(asked, 0);
        there.iter().all(|page| page & 1 == 1)
    }

    fn whole(room: &Room) -> &[u8] {
        let (at, len) = (room.bytes.as_ptr(), room.capacity);
        // SAFETY: the vector's own memory; only its address and pages are looked at.
        unsafe { std::slice::from_raw_parts(at, len) }
    }

    #[test]
    fn all_of_a_room_is_there_before_it_is_used_also_of_the_next_one() {
        let mut room = Room::new(1024 * 1024 + PAGE);
        assert!(is_there(whole(&room)));
        let (reads, writes) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let reads: OwnedFd = reads.into();
        // A short one is read again and again to the same place.
        writes.send(&[1; 100]).unwrap();
        room.read(&reads).unwrap();
        assert_eq!(room.take_long(), None);
        assert_eq!(room.message(), [1; 100]);
        // A long one leaves with its memory.
        let mut file = tempfile::tempfile().unwrap();
        let long = vec![2; HANDED_OVER_BYTES_MIN];
        file.write_all(&long).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        room.read(&file.into()).unwrap();
        let taken = room.take_long().unwrap();
        assert!(is_there(whole(&room)));
        writes.send(&[3; 100]).unwrap();
        room.read(&reads).unwrap();
        assert_eq!((&taken[..], room.message()), (&long[..], &[3; 100][..]));
    }
}

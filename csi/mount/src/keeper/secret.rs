//! Bytes that may hold keys: in pages of their own, which are not swapped out and not dumped, and emptied at the end.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

/// Bytes in locked memory.
pub struct Secret {
    at: NonNull<u8>,
    len: usize,
    mapped: NonZeroUsize,
}

// SAFETY: the memory is this value's own, nobody else has its address, and it is changed only through `&mut`.
unsafe impl Send for Secret {}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({} bytes)", self.len)
    }
}

impl Secret {
    /// As many zeros.
    ///
    /// # Errors
    /// What the system refuses. That the pages cannot be locked is only told.
    pub fn zeros(len: usize) -> io::Result<Self> {
        let mapped = NonZeroUsize::new(len.max(1)).expect("at least one");
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory of ours.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped.get(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping was made just now, with this length.
        let locked = unsafe { libc::mlock(at, mapped.get()) };
        if locked != 0 {
            tracing::warn!(error = %io::Error::last_os_error(), "keys in memory cannot be locked there");
        }
        // SAFETY: as above.
        unsafe { libc::madvise(at, mapped.get(), libc::MADV_DONTDUMP) };
        Ok(Self {
            at: NonNull::new(at.cast()).expect("a mapping is nowhere near zero"),
            len,
            mapped,
        })
    }

    /// A copy of bytes that lie elsewhere.
    ///
    /// # Errors
    /// As of `zeros`.
    pub fn copy_of(bytes: &[u8]) -> io::Result<Self> {
        let mut secret = Self::zeros(bytes.len())?;
        secret.as_mut().copy_from_slice(bytes);
        Ok(secret)
    }
}

impl Secret {
    /// The same once more.
    ///
    /// # Errors
    /// As of `zeros`.
    pub fn again(&self) -> io::Result<Self> {
        Self::copy_of(self.as_ref())
    }
}

impl AsRef<[u8]> for Secret {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the mapping is as long, it was zeroed by the kernel, and it lives as long as this value.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl AsMut<[u8]> for Secret {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_ref`, and nobody else reads it while it is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.as_mut().fill(0);
        // SAFETY: the mapping is this value's own, and nobody borrows it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.mapped.get()) };
    }
}

/// Makes this process one whose memory no core dump and no tracer but root's shows.
pub fn hide_from_dumps() {
    // SAFETY: prctl(2) with this option takes one number and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } != 0 {
        tracing::warn!(error = %io::Error::last_os_error(), "a core dump of this process could show keys");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_what_it_was_made_of_and_does_not_show_it() {
        let secret = Secret::copy_of(b"key").unwrap();
        assert_eq!(secret.as_ref(), b"key");
        assert_eq!(format!("{secret:?}"), "Secret(3 bytes)");
        assert!(Secret::copy_of(b"").unwrap().as_ref().is_empty());
    }
}

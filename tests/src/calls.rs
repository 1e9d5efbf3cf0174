//! System calls that the standard library does not have, and what tests need to look at files.
//!
//! Everything here panics where a test cannot go on.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A path for C.
pub fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no path of a test has a NUL")
}

/// The result of a C call as Rust has it.
pub fn done(result: i64) -> std::io::Result<i64> {
    if result < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Why a call failed, which it must.
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result
        .expect_err("this must fail")
        .raw_os_error()
        .expect("the kernel said why")
}

/// lsetxattr(2).
pub fn set_xattr(path: &Path, name: &str, value: &[u8], flags: i32) -> std::io::Result<i64> {
    let (path, name) = (c(path), CString::new(name).expect("no name of a test has a NUL"));
    // SAFETY: both strings end in NUL and live through the call; the value's length is its own.
    done(i64::from(unsafe {
        libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags)
    }))
}

/// lgetxattr(2).
pub fn get_xattr(path: &Path, name: &str) -> std::io::Result<Vec<u8>> {
    let (path, name) = (c(path), CString::new(name).expect("no name of a test has a NUL"));
    let mut value = vec![0u8; 70_000];
    // SAFETY: both strings end in NUL and live through the call; the buffer is as long as said.
    let length =
        done(unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) as i64 })?;
    value.truncate(length as usize);
    Ok(value)
}

/// llistxattr(2), in the order given.
pub fn list_xattrs(path: &Path) -> Vec<String> {
    let path = c(path);
    let mut names = vec![0u8; 4096];
    // SAFETY: the path ends in NUL and lives through the call; the buffer is as long as said.
    let length = done(unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) as i64 })
        .expect("llistxattr");
    let words = names[..length as usize]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    words.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

/// renameat2(2).
pub fn rename2(from: &Path, to: &Path, flags: u32) -> std::io::Result<i64> {
    let (from, to) = (c(from), c(to));
    // SAFETY: both paths end in NUL and live through the call.
    done(i64::from(unsafe {
        libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags)
    }))
}

/// fallocate(2).
pub fn fallocate(file: RawFd, mode: i32, offset: i64, len: i64) -> std::io::Result<i64> {
    // SAFETY: plain numbers.
    done(i64::from(unsafe { libc::fallocate(file, mode, offset, len) }))
}

/// lseek(2), for holes and data.
pub fn seek(file: &File, offset: i64, whence: i32) -> std::io::Result<i64> {
    // SAFETY: plain numbers.
    done(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
}

/// Bytes that differ from place to place, so that a misplaced block is seen.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// copy_file_range(2) with offsets of our own; how many bytes it copied.
pub fn copy_range(from: (&File, u64), to: (&File, u64), len: usize) -> std::io::Result<usize> {
    let (mut from_at, mut to_at) = (from.1 as i64, to.1 as i64);
    // SAFETY: both descriptors are open, and both offsets live through the call.
    let copied = done(unsafe {
        libc::copy_file_range(from.0.as_raw_fd(), &mut from_at, to.0.as_raw_fd(), &mut to_at, len, 0) as i64
    })?;
    Ok(copied as usize)
}

/// posix_fadvise(2), POSIX_FADV_DONTNEED: clean pages of the file leave the kernel's memory.
pub fn drop_pages(file: &File) {
    // SAFETY: plain numbers.
    let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(result, 0, "the kernel takes advice");
}

/// A shared mapping of a part of a file.
#[derive(Debug)]
pub struct Mapping {
    base: *mut libc::c_void,
    mapped: usize,
    skip: usize,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes from `offset` on, to read and to write; all of them lie within the file.
    pub fn new(file: &File, offset: u64, len: usize) -> Self {
        let skip = (offset % 4096) as usize;
        let mapped = skip + len;
        // SAFETY: a fresh mapping where the kernel likes, of a descriptor that is open for reading and writing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                (offset - skip as u64) as i64,
            )
        };
        assert_ne!(base, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Self {
            base,
            mapped,
            skip,
            len,
        }
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `mapped` bytes long, lives as long as the value, and is reached through it alone.
        unsafe { std::slice::from_raw_parts_mut(self.base.cast::<u8>().add(self.skip), self.len) }
    }

    /// msync(2) with MS_SYNC.
    pub fn sync(&mut self) {
        // SAFETY: the range is the mapping itself.
        let result = unsafe { libc::msync(self.base, self.mapped, libc::MS_SYNC) };
        assert_eq!(result, 0, "msync: {}", std::io::Error::last_os_error());
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody uses it after this.
        unsafe { libc::munmap(self.base, self.mapped) };
    }
}

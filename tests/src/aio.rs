//! Linux AIO (io_submit(2)), one write at a time, and memory that O_DIRECT takes.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;

use crate::calls::done;

/// IOCB_CMD_PWRITE.
const PWRITE: u16 = 1;

/// Zeros, and then what a test puts there, at the bounds of a page.
#[derive(Debug)]
pub struct Aligned {
    memory: *mut u8,
    layout: Layout,
}

impl Aligned {
    /// Some bytes; not none.
    pub fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len, 4096).expect("a test's memory is small");
        assert!(len > 0, "not none");
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            handle_alloc_error(layout);
        }
        Self { memory, layout }
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory has this length, is set, and lives as long as the value.
        unsafe { std::slice::from_raw_parts(self.memory, self.layout.size()) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and it is reached through this value alone.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.layout.size()) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: it was taken with this layout, and nobody has it any more.
        unsafe { dealloc(self.memory, self.layout) };
    }
}

/// Room for one call at a time.
#[derive(Debug)]
pub struct Aio {
    context: libc::c_ulong,
}

impl Default for Aio {
    fn default() -> Self {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes the context's number where it is told.
        done(unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) }).expect("io_setup");
        Self { context }
    }
}

impl Aio {
    /// Writes from `offset` on without waiting in the call, then waits for its end; how many bytes were written.
    pub fn write(&self, file: &File, bytes: &Aligned, offset: u64) -> std::io::Result<usize> {
        // SAFETY: plain numbers, of which zero is one.
        let mut call: libc::iocb = unsafe { std::mem::zeroed() };
        call.aio_lio_opcode = PWRITE;
        call.aio_fildes = file.as_raw_fd().cast_unsigned();
        call.aio_buf = bytes.as_ptr() as u64;
        call.aio_nbytes = bytes.len() as u64;
        call.aio_offset = offset.cast_signed();
        let mut calls = [&raw mut call];
        // SAFETY: one call, which lives until its end is told below, as the bytes do.
        done(unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, calls.as_mut_ptr()) })?;
        // What was submitted, its number, and its two results.
        let mut ended = [0i64; 4];
        // SAFETY: room for the one end that is asked for, and no time limit.
        let waits = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                1,
                1,
                ended.as_mut_ptr(),
                std::ptr::null_mut::<libc::timespec>(),
            )
        };
        assert_eq!(done(waits)?, 1, "the end of what was submitted");
        match usize::try_from(ended[2]) {
            Ok(written) => Ok(written),
            Err(_) => Err(std::io::Error::from_raw_os_error(-ended[2] as i32)),
        }
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and no call is under way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

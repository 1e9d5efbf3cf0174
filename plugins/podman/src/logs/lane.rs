//! One stream on its way from the log file into one of Nomad's FIFOs.
//!
//! Nomad's reader is a process that comes and goes. Invariants: a byte counts as delivered when the FIFO took it, not
//! before; and the FIFO stays open from the first reader on until the end, since what readers have not read yet lives in
//! it only as long as somebody has it open, and since a reader stops for good at end of file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::record::{Cursor, Splitter, Stream};

/// 64 KiB from the file at a time, the size of a pipe: what is read fits.
const READ_BYTES: usize = 64 << 10;

/// 1 GiB of output that nobody reads is kept on the disk. Above it the oldest half is left out, with a remark in its
/// place: the alternative is a full disk, which ends other tasks too.
pub(super) const BACKLOG_BYTES_MAX: u64 = 1 << 30;

/// Between tries to find a reader: of one that waits for the FIFO's first writer, no event tells.
const READER_RETRY_MIN: Duration = Duration::from_millis(20);

/// The longest of these waits. A node whose agent is down has one process per task that wakes up this often.
const READER_RETRY_MAX: Duration = Duration::from_secs(1);

/// A stream and where it goes.
#[derive(Debug)]
pub(super) struct Lane {
    splitter: Splitter,
    path: PathBuf,
    fifo: Option<File>,
    /// Nobody reads: not before this time, or the next sign of a reader, is it tried again.
    not_before: Option<Instant>,
    retry: Duration,
    buffer: Vec<u8>,
}

/// What a lane waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// More output of the container.
    Output,
    /// Room in the FIFO.
    Room,
    /// A reader, until then at the latest.
    Reader(Instant),
}

impl Lane {
    pub(super) fn new(stream: Stream, cursor: Cursor, path: PathBuf) -> Self {
        Self {
            splitter: Splitter::new(stream, cursor),
            path,
            fifo: None,
            not_before: None,
            retry: READER_RETRY_MIN,
            buffer: vec![0; READ_BYTES],
        }
    }

    /// Where another process would have to go on.
    pub(super) fn resume_at(&self) -> Cursor {
        self.splitter.resume_at()
    }

    /// The FIFO, for poll.
    pub(super) fn fifo(&self) -> Option<&File> {
        self.fifo.as_ref()
    }

    /// There may be a reader now.
    pub(super) fn reader_seen(&mut self) {
        self.not_before = None;
        self.retry = READER_RETRY_MIN;
    }

    /// Delivers what there is, as far as the FIFO takes it, and has `keep` note after each piece how far that is: were this
    /// process killed before it is noted, the piece would come twice. A bounded amount, so that the other lane has its turn.
    ///
    /// # Errors
    /// Of reading the log, or of `keep`.
    pub(super) fn advance(
        &mut self,
        log: &File,
        now: Instant,
        mut keep: impl FnMut(Cursor) -> io::Result<()>,
    ) -> io::Result<Waits> {
        // An idle container must have a writer too: a reader that comes finds one, and does not see end of file.
        let reader_away = self.open(now);
        for _turn in 0..8 {
            if self.splitter.pending().is_empty() && !self.read(log)? {
                return Ok(match reader_away {
                    Some(until) if self.fifo.is_none() => Waits::Reader(until),
                    _ => Waits::Output,
                });
            }
            if let Some(waits) = self.write(now) {
                return Ok(waits);
            }
            keep(self.resume_at())?;
        }
        Ok(Waits::Room)
    }

    /// Whether readers have taken everything out of the FIFO.
    pub(super) fn is_read(&self) -> bool {
        self.fifo.as_ref().is_none_or(|fifo| unread_bytes(fifo) == 0)
    }

    /// Everything in `log` up to its end has been put into the FIFO, or is no complete record.
    pub(super) fn is_through(&mut self, log: &File) -> io::Result<bool> {
        Ok(self.splitter.pending().is_empty() && !self.read(log)?)
    }

    /// The container's log begins anew, in another file or in the same one, cut off.
    pub(super) fn begin_anew(&mut self) {
        self.splitter.skip_to(Cursor::default(), "");
    }

    /// Leaves the oldest output out if too much has piled up.
    pub(super) fn bound_backlog(&mut self, log_bytes: u64, backlog_bytes_max: u64) {
        let at = self.splitter.reads_at();
        if log_bytes.saturating_sub(at) <= backlog_bytes_max {
            return;
        }
        let offset = log_bytes - backlog_bytes_max / 2;
        let remark = format!(
            "\n[{} bytes of log records were left out here: nobody read them]\n",
            offset - at
        );
        let within = super::record::Within::Other;
        self.splitter.skip_to(Cursor { offset, within }, &remark);
    }

    fn read(&mut self, log: &File) -> io::Result<bool> {
        loop {
            let at = self.splitter.reads_at();
            let len = log.read_at(&mut self.buffer, at)?;
            if len == 0 || !self.splitter.feed(&self.buffer[..len]) {
                return Ok(false);
            }
            // A piece may hold records of the other stream only.
            if !self.splitter.pending().is_empty() {
                return Ok(true);
            }
        }
    }

    /// Writes once; says what to wait for if it did not go.
    fn write(&mut self, now: Instant) -> Option<Waits> {
        if let Some(until) = self.not_before.filter(|until| now < *until) {
            return Some(Waits::Reader(until));
        }
        let Some(fifo) = &mut self.fifo else {
            return Some(self.no_reader(now));
        };
        match fifo.write(self.splitter.pending()) {
            Ok(len) => {
                self.reader_seen();
                self.splitter.delivered(len);
                None
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(Waits::Room),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            // EPIPE: the reader went away. The FIFO stays open, with what it holds, for the next one.
            Err(_) => Some(self.no_reader(now)),
        }
    }

    fn no_reader(&mut self, now: Instant) -> Waits {
        let until = now + self.retry;
        self.retry = (self.retry * 2).min(READER_RETRY_MAX);
        self.not_before = Some(until);
        Waits::Reader(until)
    }

    /// Opens the FIFO if it is not; says until when to wait if it cannot be.
    fn open(&mut self, now: Instant) -> Option<Instant> {
        if self.fifo.is_some() {
            return None;
        }
        if let Some(until) = self.not_before.filter(|until| now < *until) {
            return Some(until);
        }
        match open_fifo(&self.path) {
            Ok(fifo) => {
                self.fifo = Some(fifo);
                self.reader_seen();
                None
            }
            Err(_) => {
                self.no_reader(now);
                self.not_before
            }
        }
    }
}

/// Opens a FIFO for writing without waiting.
///
/// # Errors
/// ENXIO if nobody reads it; ENOENT if it is not there, or no more.
pub(super) fn open_fifo(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
}

/// How much of a pipe its readers have not taken yet; 0 for anything else.
fn unread_bytes(fifo: &File) -> u64 {
    let mut unread: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, through a pointer to one that lives across the call.
    let told = unsafe { libc::ioctl(fifo.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
    if told == 0 {
        u64::try_from(unread).unwrap_or(0)
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Goal: output that nobody reads does not fill the disk without end, and what is left out is told. Method: a small
    /// bound, a FIFO whose reader comes too late.
    #[test]
    fn a_backlog_beyond_its_bound_is_cut_with_a_remark() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let line = |number: u32| format!("2026-11-21T08:19:12.473433929+00:00 stdout F {number:06}\n");
        let log_path = dir.path().join("log");
        std::fs::write(&log_path, (0..1000).map(line).collect::<String>()).unwrap();
        let log = File::open(&log_path).unwrap();
        let log_bytes = log.metadata().unwrap().len();
        let mut lane = Lane::new(Stream::Stdout, Cursor::default(), fifo.clone());
        assert!(matches!(
            lane.advance(&log, Instant::now(), |_| Ok(())).unwrap(),
            Waits::Reader(_)
        ));
        // It has read a piece ahead; a bound above what is left changes nothing.
        lane.bound_backlog(log_bytes, log_bytes);
        assert_eq!(
            lane.resume_at().offset,
            45,
            "the first payload is behind the first header"
        );
        let mut lane = Lane::new(Stream::Stdout, Cursor::default(), fifo.clone());
        lane.bound_backlog(log_bytes, 1000);
        let mut reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&fifo)
            .unwrap();
        assert_eq!(lane.advance(&log, Instant::now(), |_| Ok(())).unwrap(), Waits::Output);
        let mut text = vec![0; 64 << 10];
        let len = reader.read(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text[..len]);
        assert!(
            text.starts_with("\n[") && text.contains("bytes of log records were left out here"),
            "{text}"
        );
        assert!(text.ends_with("000999\n") && text.len() < 500, "{text}");
    }
}

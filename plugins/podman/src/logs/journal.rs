//! A container's output on its way into the host's journal: the log process writes entries by journald's own protocol, with the
//! fields that conmon's entries have, so that `journalctl CONTAINER_NAME=…` finds them.
//!
//! The journal has it beside Nomad, not instead: neither waits for the other. A line is one entry. Each entry is sent
//! once, but for a log process that was killed between sending and remembering. Invariant: a journald that is away or
//! busy delays nobody but its own entries.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::lane::Waits;
use super::plan::{LogPlan, Position, PositionFile};
use super::record::{Cursor, Splitter, Stream};

/// Where journald listens.
pub const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// 32 KiB of a line at most are one entry: more does not fit into a datagram everywhere. Longer lines become several
/// entries, marked as parts.
const ENTRY_BYTES_MAX: usize = 32 << 10;

/// 64 KiB from the file at a time.
const READ_BYTES: usize = 64 << 10;

/// Between tries while journald is away.
const RETRY_MIN: Duration = Duration::from_millis(20);

/// The longest of these waits.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// 64 entries in one go, so that Nomad's streams have their turn.
const TURN_ENTRIES: usize = 64;

/// What entries of a container carry, and who takes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalPlan {
    /// journald's socket.
    pub socket: PathBuf,
    /// Fields of every entry.
    pub fields: BTreeMap<String, String>,
}

/// The way of both streams into the journal.
#[derive(Debug)]
pub(super) struct Journal {
    plan: JournalPlan,
    socket: Option<UnixDatagram>,
    stdout: Splitter,
    stderr: Splitter,
    position: PositionFile,
    not_before: Option<Instant>,
    retry: Duration,
    buffer: Vec<u8>,
    has_all: bool,
    /// When journald last took something.
    taken_at: Option<Instant>,
}

impl JournalPlan {
    /// For a container with these names.
    #[must_use]
    pub fn new(container_id: &str, container_name: &str, tag: Option<&str>) -> Self {
        let short = container_id.get(..12).unwrap_or(container_id);
        let tag = tag.map_or_else(
            || container_name.to_owned(),
            |tag| filled(tag, container_id, container_name),
        );
        let fields = [
            ("CONTAINER_ID", short),
            ("CONTAINER_ID_FULL", container_id),
            ("CONTAINER_NAME", container_name),
            ("CONTAINER_TAG", &tag),
            ("SYSLOG_IDENTIFIER", &tag),
        ];
        Self {
            socket: PathBuf::from(JOURNAL_SOCKET),
            fields: fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        }
    }
}

/// A tag with what Podman's templates stand for.
fn filled(tag: &str, id: &str, name: &str) -> String {
    let short = id.get(..12).unwrap_or(id);
    let mut tag = tag.to_owned();
    for (field, value) in [(".Name", name), (".ID", short), (".FullID", id)] {
        tag = tag.replace(&format!("{{{{{field}}}}}"), value);
        tag = tag.replace(&format!("{{{{ {field} }}}}"), value);
    }
    tag
}

impl Journal {
    /// Goes on where an earlier log process was, if the log is still the same file.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) fn open(plan: &LogPlan, journal: &JournalPlan, log_inode: u64) -> io::Result<Self> {
        let position = PositionFile::open_journal(plan)?;
        let last = position.last();
        let (stdout, stderr) = if last.inode == log_inode {
            (last.stdout, last.stderr)
        } else {
            Default::default()
        };
        Ok(Self {
            plan: journal.clone(),
            socket: None,
            stdout: Splitter::new(Stream::Stdout, stdout),
            stderr: Splitter::new(Stream::Stderr, stderr),
            position,
            not_before: None,
            retry: RETRY_MIN,
            buffer: vec![0; READ_BYTES],
            has_all: false,
            taken_at: None,
        })
    }

    /// The first byte of the log that the journal does not have.
    pub(super) fn resume_offset(&self) -> u64 {
        self.stdout.resume_at().offset.min(self.stderr.resume_at().offset)
    }

    /// Whether nothing is left to be sent, and nothing more will come.
    pub(super) fn has_all(&self) -> bool {
        self.has_all
    }

    /// Whether journald has taken nothing since `since` for `limit` or longer.
    pub(super) fn is_stuck(&self, since: Instant, limit: Duration, now: Instant) -> bool {
        let since = self.taken_at.map_or(since, |taken| taken.max(since));
        now.duration_since(since) >= limit
    }

    /// The socket, for poll.
    pub(super) fn socket(&self) -> Option<&UnixDatagram> {
        self.socket.as_ref()
    }

    /// Sends what there is. `last`: no more will come, so what is left of a line is one.
    ///
    /// # Errors
    /// Of reading the log, or of keeping the position.
    pub(super) fn advance(&mut self, log: (&File, u64), now: Instant, last: bool) -> io::Result<Waits> {
        let (log, inode) = log;
        if let Some(until) = self.not_before.filter(|until| now < *until) {
            return Ok(Waits::Reader(until));
        }
        let mut waits = Waits::Output;
        for stream in [Stream::Stdout, Stream::Stderr] {
            match self.carry(stream, log, last, now)? {
                Carried::All => {}
                // Now, but after Nomad's streams.
                Carried::Turn => waits = Waits::Reader(now),
                Carried::Busy => {
                    waits = Waits::Room;
                    break;
                }
                Carried::Away => {
                    let until = now + self.retry;
                    self.retry = (self.retry * 2).min(RETRY_MAX);
                    self.not_before = Some(until);
                    waits = Waits::Reader(until);
                    break;
                }
            }
        }
        self.has_all = last && waits == Waits::Output;
        self.position.keep(Position {
            inode,
            stdout: self.stdout.resume_at(),
            stderr: self.stderr.resume_at(),
            finished: false,
        })?;
        Ok(waits)
    }

    /// The container's log begins anew.
    pub(super) fn begin_anew(&mut self) {
        for splitter in [&mut self.stdout, &mut self.stderr] {
            splitter.skip_to(Cursor::default(), "");
        }
    }

    /// Leaves the oldest output out if too much has piled up.
    pub(super) fn bound_backlog(&mut self, log_bytes: u64, backlog_bytes_max: u64) {
        for splitter in [&mut self.stdout, &mut self.stderr] {
            if log_bytes.saturating_sub(splitter.reads_at()) > backlog_bytes_max {
                let offset = log_bytes - backlog_bytes_max / 2;
                let remark = format!(
                    "[{} bytes of log records were left out here: journald took none]\n",
                    offset - splitter.reads_at()
                );
                let within = super::record::Within::Other;
                splitter.skip_to(Cursor { offset, within }, &remark);
            }
        }
    }

    fn carry(&mut self, stream: Stream, log: &File, last: bool, now: Instant) -> io::Result<Carried> {
        for _entry in 0..TURN_ENTRIES {
            let splitter = match stream {
                Stream::Stdout => &mut self.stdout,
                Stream::Stderr => &mut self.stderr,
            };
            let Some(line) = next_line(splitter, log, &mut self.buffer, last)? else {
                return Ok(Carried::All);
            };
            let entry = entry(&self.plan.fields, stream, &line);
            match send(&mut self.socket, &self.plan.socket, &entry) {
                Sent::Taken => self.taken_at = Some(now),
                Sent::Busy => return Ok(Carried::Busy),
                Sent::Away => return Ok(Carried::Away),
            }
            let splitter = match stream {
                Stream::Stdout => &mut self.stdout,
                Stream::Stderr => &mut self.stderr,
            };
            splitter.delivered(line.bytes.len() + usize::from(line.newline));
            (self.not_before, self.retry) = (None, RETRY_MIN);
        }
        Ok(Carried::Turn)
    }
}

/// How far a stream was carried.
enum Carried {
    All,
    Turn,
    Busy,
    Away,
}

/// What became of an entry.
enum Sent {
    Taken,
    Busy,
    Away,
}

/// A line, or a part of one.
struct Line {
    bytes: Vec<u8>,
    newline: bool,
}

fn next_line(splitter: &mut Splitter, log: &File, buffer: &mut [u8], last: bool) -> io::Result<Option<Line>> {
    loop {
        let pending = splitter.pending_whole();
        let window = &pending[..pending.len().min(ENTRY_BYTES_MAX)];
        if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
            let bytes = window[..end].to_vec();
            return Ok(Some(Line { bytes, newline: true }));
        }
        if window.len() == ENTRY_BYTES_MAX {
            let bytes = window.to_vec();
            return Ok(Some(Line { bytes, newline: false }));
        }
        let rest = window.to_vec();
        let len = log.read_at(buffer, splitter.reads_at())?;
        if len == 0 || !splitter.feed(&buffer[..len]) {
            let newline = false;
            return Ok((last && !rest.is_empty()).then_some(Line { bytes: rest, newline }));
        }
    }
}

/// One entry in journald's format: `NAME=value`, or the name, the value's length and the value where it may be anything.
fn entry(fields: &BTreeMap<String, String>, stream: Stream, line: &Line) -> Vec<u8> {
    // syslog's "informational" and "error", as conmon has it.
    let priority = match stream {
        Stream::Stdout => "6",
        Stream::Stderr => "3",
    };
    let mut entry = Vec::with_capacity(line.bytes.len() + 512);
    let mut put = |name: &str, value: &[u8]| {
        entry.extend_from_slice(name.as_bytes());
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
        entry.extend_from_slice(value);
        entry.push(b'\n');
    };
    put("PRIORITY", priority.as_bytes());
    for (name, value) in fields {
        put(name, value.as_bytes());
    }
    if !line.newline {
        put("CONTAINER_PARTIAL_MESSAGE", b"true");
    }
    put("MESSAGE", &line.bytes);
    entry
}

/// Sends an entry. A socket that fails is opened anew: journald may have been restarted.
fn send(socket: &mut Option<UnixDatagram>, path: &Path, entry: &[u8]) -> Sent {
    for _try in 0..2 {
        let open = || {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.connect(path)?;
            Ok::<_, io::Error>(socket)
        };
        let connected = match socket.take() {
            Some(socket) => socket,
            None => match open() {
                Ok(socket) => socket,
                Err(_) => return Sent::Away,
            },
        };
        match connected.send(entry) {
            Ok(_) => {
                *socket = Some(connected);
                return Sent::Taken;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                *socket = Some(connected);
                return Sent::Busy;
            }
            Err(_) => {}
        }
    }
    Sent::Away
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_may_stand_for_the_containers_names() {
        let id = "0123456789abcdef";
        for (tag, want) in [
            ("shop", "shop"),
            ("{{.Name}}/{{ .ID }}", "web-1/0123456789ab"),
            ("{{.FullID}}", id),
            ("{{.Other}}", "{{.Other}}"),
        ] {
            assert_eq!(filled(tag, id, "web-1"), want);
        }
        assert_eq!(JournalPlan::new(id, "web-1", None).fields["SYSLOG_IDENTIFIER"], "web-1");
    }
}

//! The log process: carries one container's output into Nomad's FIFOs, whatever becomes of the plugin.
//!
//! Nomad's reader stops for good once the last writer of a FIFO is gone, so a writer must outlive the plugin: this
//! process, the plugin's own binary started anew in a session of its own. It follows the file that conmon writes, keeps
//! what it has delivered in `position`, and gives the disk space of what both streams have passed back by punching holes,
//! so that nothing needs to be rotated and nothing can be lost by it.
//!
//! It ends when the container has and every byte was read, or when its directory is gone. Invariants: it inherits no
//! descriptor, it never waits in a system call other than poll, and it never writes to a FIFO more than it can take back.
//! Absent: control by the plugin, other than the files of `plan.rs`. One thread, no runtime: a node runs one per task.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::journal::Journal;
use super::lane::{BACKLOG_BYTES_MAX, Lane, Waits};
use super::plan::{LogLock, LogPlan, Position, PositionFile};
use super::record::Stream;

/// 1 MiB: holes smaller than this are not worth the system call, and that much may lie on the disk twice.
const HOLE_BYTES_MIN: u64 = 1 << 20;

/// File systems free whole blocks; 4 KiB is the least common size.
const BLOCK_BYTES: u64 = 4096;

/// Ten seconds between looks at what inotify does not tell, such as a directory that was moved away.
const LOOK_AROUND: Duration = Duration::from_secs(10);

/// While the last bytes are being read by Nomad, which no event tells of.
const LAST_BYTES_LOOK: Duration = Duration::from_millis(20);

/// Five seconds after the plugin said that the container has ended, the log counts as complete though a process has it
/// open: a child that conmon left behind must not keep the task's end from Nomad for ever.
const ENDED_GRACE: Duration = Duration::from_secs(5);

/// Runs the log process of a directory to its end; returns the exit code for the process.
#[must_use]
pub fn run(dir: &Path) -> i32 {
    let plan = match LogPlan::read(dir) {
        Ok(plan) => plan,
        // Without a plan there is nowhere to tell it.
        Err(_) => return 2,
    };
    match Relay::run(&plan, BACKLOG_BYTES_MAX) {
        Ok(()) => 0,
        // The task was destroyed while this process ran: nothing is left to be done.
        Err(_) if !dir.exists() => 0,
        Err(error) => {
            plan.tell_failure(&error.to_string());
            1
        }
    }
}

/// The log process at work.
struct Relay<'a> {
    plan: &'a LogPlan,
    position: PositionFile,
    log: Log,
    stdout: Lane,
    stderr: Lane,
    /// The way into the journal, if the plan has one.
    journal: Option<Journal>,
    watches: Watches,
    backlog_bytes_max: u64,
    /// When the plugin's mark was first seen.
    ended_since: Option<Instant>,
    /// The container has ended; what is left is that somebody reads.
    ending: bool,
}

/// conmon's file.
struct Log {
    path: PathBuf,
    file: File,
    inode: u64,
    /// Up to here the file is a hole.
    freed_bytes: u64,
}

/// What inotify watches.
struct Watches {
    inotify: Inotify,
    log: WatchDescriptor,
    fifos: [Option<WatchDescriptor>; 2],
}

/// Whether anybody may still write to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writers {
    Some,
    None,
    /// The file system cannot tell.
    Unknown,
}

impl<'a> Relay<'a> {
    fn run(plan: &'a LogPlan, backlog_bytes_max: u64) -> io::Result<()> {
        let Some(_lock) = LogLock::take(plan)? else {
            return Ok(());
        };
        let position = PositionFile::open(plan)?;
        if position.last().finished {
            return Ok(());
        }
        let mut relay = Self::open(plan, position, backlog_bytes_max)?;
        loop {
            let now = Instant::now();
            let waits = relay.advance(now)?;
            if relay.is_finished(waits, now)? {
                return relay.keep_position(true);
            }
            relay.wait(waits, now)?;
            if !plan.dir.exists() {
                return Ok(());
            }
        }
    }

    fn open(plan: &'a LogPlan, position: PositionFile, backlog_bytes_max: u64) -> io::Result<Self> {
        let watches = Watches::begin(plan)?;
        let mut log = Log::open(&plan.container_log())?;
        let last = position.last();
        let (stdout, stderr) = if last.inode == log.inode {
            log.freed_bytes = last.stdout.offset.min(last.stderr.offset) / BLOCK_BYTES * BLOCK_BYTES;
            (last.stdout, last.stderr)
        } else {
            Default::default()
        };
        let journal = plan.journal.as_ref();
        let journal = journal
            .map(|journal| Journal::open(plan, journal, log.inode))
            .transpose()?;
        Ok(Self {
            plan,
            position,
            log,
            stdout: Lane::new(Stream::Stdout, stdout, plan.stdout.clone()),
            stderr: Lane::new(Stream::Stderr, stderr, plan.stderr.clone()),
            journal,
            watches,
            backlog_bytes_max,
            ended_since: None,
            ending: false,
        })
    }

    /// Moves both streams on as far as they go without waiting.
    fn advance(&mut self, now: Instant) -> io::Result<[Waits; 3]> {
        let log_bytes = self.log.file.metadata()?.len();
        if log_bytes < self.stdout.resume_at().offset.min(self.stderr.resume_at().offset) {
            // Somebody cut the file off, as log rotation by copying does. What comes now stands at its start.
            self.stdout.begin_anew();
            self.stderr.begin_anew();
            self.journal.iter_mut().for_each(Journal::begin_anew);
            self.log.freed_bytes = 0;
        }
        self.stdout.bound_backlog(log_bytes, self.backlog_bytes_max);
        self.stderr.bound_backlog(log_bytes, self.backlog_bytes_max);
        let journal = match &mut self.journal {
            Some(journal) => {
                journal.bound_backlog(log_bytes, self.backlog_bytes_max);
                journal.advance((&self.log.file, self.log.inode), now, self.ending)?
            }
            None => Waits::Output,
        };
        let (log, position) = (&self.log, &mut self.position);
        let at = |stdout, stderr| Position {
            inode: log.inode,
            stdout,
            stderr,
            finished: false,
        };
        let stderr = self.stderr.resume_at();
        let keep = |stdout| position.keep(at(stdout, stderr));
        let stdout_waits = self.stdout.advance(&log.file, now, keep)?;
        let stdout = self.stdout.resume_at();
        let keep = |stderr| position.keep(at(stdout, stderr));
        let waits = [stdout_waits, self.stderr.advance(&log.file, now, keep)?, journal];
        self.keep_position(false)?;
        let delivered = self.stdout.resume_at().offset.min(self.stderr.resume_at().offset);
        let journalled = self.journal.as_ref().map_or(u64::MAX, Journal::resume_offset);
        self.log.free_up_to(delivered.min(journalled));
        Ok(waits)
    }

    fn keep_position(&mut self, finished: bool) -> io::Result<()> {
        let (stdout, stderr) = (self.stdout.resume_at(), self.stderr.resume_at());
        self.position.keep(Position {
            inode: self.log.inode,
            stdout,
            stderr,
            finished,
        })
    }

    fn is_finished(&mut self, waits: [Waits; 3], now: Instant) -> io::Result<bool> {
        let [stdout, stderr, _journal] = waits;
        if [stdout, stderr].contains(&Waits::Room) {
            return Ok(false);
        }
        if self.ended_since.is_none() && self.plan.is_marked_ended() {
            self.ended_since = Some(now);
        }
        let patience_over = self
            .ended_since
            .is_some_and(|since| now.duration_since(since) >= ENDED_GRACE);
        let ended = match self.log.writers() {
            Writers::Some => patience_over,
            Writers::Unknown => self.ended_since.is_some(),
            // An empty log may be one that conmon has yet to open.
            Writers::None => self.ended_since.is_some() || self.log.file.metadata()?.len() > 0,
        };
        self.ending = ended;
        if !ended {
            return Ok(false);
        }
        if self.log.is_replaced() {
            return self.change_log().map(|()| false);
        }
        let given_up = |journal: &Journal| {
            let since = self.ended_since.filter(|_| patience_over);
            since.is_some_and(|since| journal.is_stuck(since, ENDED_GRACE, now))
        };
        let journal = self.journal.as_ref();
        if !journal.is_none_or(|journal| journal.has_all() || given_up(journal)) {
            return Ok(false);
        }
        // Looked at only now: what was written before the last writer left is in the file.
        let through = self.stdout.is_through(&self.log.file)? && self.stderr.is_through(&self.log.file)?;
        Ok(through && self.stdout.is_read() && self.stderr.is_read())
    }

    /// Goes over to the file that took the log's name, once the old one is through.
    fn change_log(&mut self) -> io::Result<()> {
        if !(self.stdout.is_through(&self.log.file)? && self.stderr.is_through(&self.log.file)?) {
            return Ok(());
        }
        self.log = Log::open(&self.log.path)?;
        self.watches.log = self.watches.add_log(self.plan)?;
        self.stdout.begin_anew();
        self.stderr.begin_anew();
        self.journal.iter_mut().for_each(Journal::begin_anew);
        self.keep_position(false)
    }

    /// Sleeps until something may have changed.
    fn wait(&mut self, waits: [Waits; 3], now: Instant) -> io::Result<()> {
        let mut timeout = match (self.ending, self.ended_since) {
            (true, _) if waits.iter().all(|waits| *waits == Waits::Output) => LAST_BYTES_LOOK,
            (false, Some(_)) => LAST_BYTES_LOOK,
            _ => LOOK_AROUND,
        };
        let mut fds = vec![PollFd::new(self.watches.inotify.as_fd(), PollFlags::POLLIN)];
        match (waits[2], self.journal.as_ref().and_then(Journal::socket)) {
            (Waits::Room, Some(socket)) => fds.push(PollFd::new(socket.as_fd(), PollFlags::POLLOUT)),
            (Waits::Reader(until), _) => timeout = timeout.min(until.saturating_duration_since(now)),
            (Waits::Room, None) | (Waits::Output, _) => {}
        }
        for (lane, waits) in [&self.stdout, &self.stderr].into_iter().zip(waits) {
            match (waits, lane.fifo()) {
                (Waits::Room, Some(fifo)) => fds.push(PollFd::new(fifo.as_fd(), PollFlags::POLLOUT)),
                (Waits::Reader(until), _) => timeout = timeout.min(until.saturating_duration_since(now)),
                (Waits::Room, None) | (Waits::Output, _) => {}
            }
        }
        // Rounded up: a timeout of less than a millisecond must not become a busy loop.
        let timeout_ms = u16::try_from(timeout.as_millis()).unwrap_or(u16::MAX).saturating_add(1);
        match poll(&mut fds, PollTimeout::from(timeout_ms)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        drop(fds);
        self.take_events()
    }

    fn take_events(&mut self) -> io::Result<()> {
        let events = match self.watches.inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        for event in events {
            let [stdout, stderr] = self.watches.fifos;
            if Some(event.wd) == stdout {
                self.stdout.reader_seen();
            }
            if Some(event.wd) == stderr {
                self.stderr.reader_seen();
            }
        }
        Ok(())
    }
}

impl Watches {
    fn begin(plan: &LogPlan) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // Not IN_MODIFY of the directory: it would tell of our own position.
        let directory = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE_SELF;
        inotify.add_watch(&plan.dir, directory)?;
        // A FIFO that is not there yet is looked for by the clock.
        let fifos = [&plan.stdout, &plan.stderr].map(|path| inotify.add_watch(path, AddWatchFlags::IN_OPEN).ok());
        let log = add_log(&inotify, plan)?;
        Ok(Self { inotify, log, fifos })
    }

    fn add_log(&self, plan: &LogPlan) -> io::Result<WatchDescriptor> {
        // The old file's watch ends by itself with the file.
        add_log(&self.inotify, plan)
    }
}

fn add_log(inotify: &Inotify, plan: &LogPlan) -> io::Result<WatchDescriptor> {
    let written = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB;
    Ok(inotify.add_watch(&plan.container_log(), written)?)
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self {
            path: path.to_owned(),
            file,
            inode,
            freed_bytes: 0,
        })
    }

    /// Whether its name belongs to another file now.
    fn is_replaced(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| found.ino() != self.inode)
    }

    /// A read lease is granted only while nobody has the file open for writing; it is given back at once. Needs no pid
    /// of conmon, and holds over any change of processes. SIGIO, which tells the holder of a lease that somebody wants
    /// to write, is ignored: the writer waits for less than it takes to tell.
    fn writers(&self) -> Writers {
        // SAFETY: F_SETLEASE takes an int and touches no memory of ours; the descriptor is open as long as `self`.
        let granted = unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) };
        let errno = Errno::last();
        if granted == 0 {
            // SAFETY: as above.
            unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
            return Writers::None;
        }
        if errno == Errno::EAGAIN {
            Writers::Some
        } else {
            Writers::Unknown
        }
    }

    /// Gives the space before `offset` back. File systems that cannot are left as they are: the log goes away with the
    /// task.
    fn free_up_to(&mut self, offset: u64) {
        let offset = offset / BLOCK_BYTES * BLOCK_BYTES;
        if offset < self.freed_bytes + HOLE_BYTES_MIN {
            return;
        }
        let (start, len) = (self.freed_bytes, offset - self.freed_bytes);
        self.freed_bytes = offset;
        // Opened for the moment only: an own descriptor for writing would look like conmon's.
        let Ok(file) = OpenOptions::new().write(true).open(&self.path) else {
            return;
        };
        if !file.metadata().is_ok_and(|found| found.ino() == self.inode) {
            return;
        }
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (Ok(start), Ok(len)) = (i64::try_from(start), i64::try_from(len)) else {
            return;
        };
        let _ = fallocate(&file, hole, start, len);
    }
}

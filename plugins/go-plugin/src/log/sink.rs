//! Where log lines go: a thread of its own writes them to the host's pipe, so that a host that does not read never
//! blocks the plugin. A full queue loses lines, and says so. When the host is gone for good (it was killed and the pipe
//! broke), lines go to the machine's syslog socket, for the plugin lives on and the next agent has no pipe to it.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::net::UnixDatagram,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

use serde_json::{Map, json};

use super::line::{self, Record};

/// 1,024 lines: some seconds of a busy plugin. Beyond it lines are lost, never waited for.
const QUEUE_LINES_MAX: usize = 1024;

/// 200 ms: the end of a process waits so long for its last lines, well inside the 2 s that a host grants.
const FLUSH_LIMIT: Duration = Duration::from_millis(200);

/// The log of this process. Clones are the same log.
#[derive(Clone)]
pub(crate) struct Sink {
    queue: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

enum Item {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

impl Sink {
    /// Starts the thread that writes to `pipe`, and to the datagram socket `fallback` once the pipe is broken.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(crate) fn start(plugin: &'static str, pipe: File, fallback: PathBuf) -> io::Result<Self> {
        let (queue, lines) = mpsc::sync_channel(QUEUE_LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            plugin,
            pipe: Some(pipe),
            fallback,
            lost: lost.clone(),
        };
        thread::Builder::new()
            .name("log".into())
            .spawn(move || writer.run(&lines))?;
        Ok(Self { queue, lost })
    }

    /// Queues a line, or loses it.
    pub(super) fn write(&self, line: Vec<u8>) {
        match self.queue.try_send(Item::Line(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Waits until what was queued is written, or 200 ms.
    pub(crate) fn flush(&self) {
        let (done, waiting) = mpsc::sync_channel(1);
        if self.queue.try_send(Item::Flush(done)).is_ok() {
            let _ = waiting.recv_timeout(FLUSH_LIMIT);
        }
    }
}

struct Writer {
    plugin: &'static str,
    pipe: Option<File>,
    fallback: PathBuf,
    lost: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self, lines: &Receiver<Item>) {
        while let Ok(item) = lines.recv() {
            match item {
                Item::Line(line) => {
                    self.confess();
                    self.write(&line);
                }
                Item::Flush(done) => {
                    self.confess();
                    let _ = done.try_send(());
                }
            }
        }
    }

    /// Writes how many lines were lost since the last time, if any.
    fn confess(&mut self) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let line = line::format(&Record {
                level: "warn",
                module: self.plugin,
                message: "log lines were lost, because they were not read as fast as they were written",
                timestamp: &super::now(),
                fields: Map::from_iter([("lost".to_owned(), json!(lost))]),
            });
            self.write(&line);
        }
    }

    fn write(&mut self, line: &[u8]) {
        if let Some(pipe) = &mut self.pipe {
            if pipe.write_all(line).is_ok() {
                return;
            }
            // EPIPE, for ever: nobody can open the other end again.
            self.pipe = None;
        }
        // <30>: a daemon's information, in syslog's numbers. Nobody listening is no error of ours.
        if let Ok(socket) = UnixDatagram::unbound() {
            let _ = socket.set_nonblocking(true);
            let mut datagram = format!("<30>{}: ", self.plugin).into_bytes();
            datagram.extend_from_slice(line.trim_ascii_end());
            let _ = socket.send_to(&datagram, &self.fallback);
        }
    }
}

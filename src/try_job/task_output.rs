//! Nomad's logmon for one task: makes the two FIFOs, reads them to their end, and passes the bytes to the terminal.

use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::stat::Mode;

use super::TryError;

/// 10 s for the last bytes after the task has ended: the driver's log process may still be writing them.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// The FIFOs of a task and their readers.
#[derive(Debug)]
pub struct TaskOutput {
    /// For TaskConfig.stdout_path.
    pub stdout: PathBuf,
    /// For TaskConfig.stderr_path.
    pub stderr: PathBuf,
    readers: Vec<JoinHandle<u64>>,
}

impl TaskOutput {
    /// Makes `.<task>.stdout.fifo` and `.<task>.stderr.fifo` in `dir` and begins to read them.
    ///
    /// # Errors
    /// `State` if a FIFO cannot be made.
    pub fn open(dir: &Path, task: &str) -> Result<Self, TryError> {
        let path = |stream: &str| dir.join(format!(".{task}.{stream}.fifo"));
        let (stdout, stderr) = (path("stdout"), path("stderr"));
        for fifo in [&stdout, &stderr] {
            nix::unistd::mkfifo(fifo, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| TryError::State {
                path: fifo.clone(),
                source: errno.into(),
            })?;
        }
        let readers = vec![
            pass_on(stdout.clone(), std::io::stdout()),
            pass_on(stderr.clone(), std::io::stderr()),
        ];
        Ok(Self {
            stdout,
            stderr,
            readers,
        })
    }

    /// Waits for both ends and returns how many bytes came. Readers that nobody wrote to are released.
    pub async fn finish(self) -> u64 {
        let Self {
            stdout,
            stderr,
            readers,
        } = self;
        let joined = tokio::task::spawn_blocking(move || {
            readers
                .into_iter()
                .map(|reader| reader.join().unwrap_or_default())
                .sum()
        });
        match tokio::time::timeout(DRAIN_MAX, async {
            // A FIFO that was never opened for writing would hold its reader for ever: open and close it once.
            release(&stdout);
            release(&stderr);
            joined.await
        })
        .await
        {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(_)) | Err(_) => 0,
        }
    }
}

/// Opens a FIFO for writing without waiting, which wakes a reader that waits for its first writer.
fn release(fifo: &Path) {
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    drop(std::fs::OpenOptions::new().write(true).custom_flags(flags).open(fifo));
}

fn pass_on(fifo: PathBuf, mut to: impl std::io::Write + Send + 'static) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        let Ok(mut file) = std::fs::File::open(&fifo) else {
            return 0;
        };
        let mut buffer = vec![0; 64 * 1024];
        let mut bytes = 0;
        while let Ok(count @ 1..) = file.read(&mut buffer) {
            bytes += count as u64;
            // The terminal may be gone: go on reading, so that the task is never blocked.
            drop(to.write_all(&buffer[..count]).and_then(|()| to.flush()));
        }
        bytes
    })
}

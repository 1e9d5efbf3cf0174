//! Programs of others that tests run: each gets a deadline, and everything it said is in the failure's message.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// 300 s for what takes seconds: only a program that hangs meets it, also on a slow machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a program left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output and error, in order.
    pub said: String,
}

/// Runs `command` to its end.
///
/// # Panics
/// If it does not start, or does not end in time; then it and what it started are killed.
pub fn finished(command: &mut Command) -> Finished {
    let mut output = tempfile::tempfile().expect("a file for what it says");
    let again = |file: &File| Stdio::from(file.try_clone().expect("a second handle"));
    command
        .stdin(Stdio::null())
        .stdout(again(&output))
        .stderr(again(&output));
    // A group of its own, so that a program that hangs takes its children along.
    command.process_group(0);
    let mut process = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = process.try_wait().expect("a child can be waited for") {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            let group = Pid::from_raw(process.id().try_into().expect("a pid is positive"));
            // It may have ended just now.
            let _ = killpg(group, Signal::SIGKILL);
            drop(process.wait());
            panic!(
                "{command:?} did not end in {PATIENCE:?}; it said:\n{}",
                text(&mut output)
            );
        }
        std::thread::park_timeout(Duration::from_millis(10));
    };
    Finished {
        status,
        said: text(&mut output),
    }
}

/// Runs `command` to its end, which must be a success, and returns what it said.
///
/// # Panics
/// As `finished`, and if it fails.
pub fn succeeded(command: &mut Command) -> String {
    let finished = finished(command);
    assert!(
        finished.status.success(),
        "{command:?} ended with {}; it said:\n{}",
        finished.status,
        finished.said
    );
    finished.said
}

fn text(output: &mut File) -> String {
    let mut bytes = Vec::new();
    output.seek(SeekFrom::Start(0)).expect("a file can be rewound");
    output.read_to_end(&mut bytes).expect("what it said can be read");
    String::from_utf8_lossy(&bytes).into_owned()
}

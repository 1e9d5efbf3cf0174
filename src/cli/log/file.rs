//! A log file that never fills the disk: when it is full it becomes `FILE.1`, and a new one begins.
//!
//! Invariant: no line is cut between two files. Absent: compression, and more than one predecessor (journald, logrotate).

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file that is written now.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
    takes_output: bool,
}

impl LogFile {
    /// Goes on where the file ends.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub(super) fn open(path: PathBuf, bytes_max: u64) -> io::Result<Self> {
        let file = appended(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            path,
            file,
            bytes,
            bytes_max,
            takes_output: false,
        })
    }

    /// Takes this process's standard output and error into the file, too, and into each that follows.
    ///
    /// # Errors
    /// If they cannot be redirected.
    pub(super) fn taking_output(mut self) -> io::Result<Self> {
        self.takes_output = true;
        redirect(&self.file)?;
        Ok(self)
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        let mut before = self.path.clone().into_os_string();
        before.push(".1");
        fs::rename(&self.path, before)?;
        self.file = appended(&self.path)?;
        self.bytes = 0;
        if self.takes_output {
            redirect(&self.file)?;
        }
        Ok(())
    }
}

impl Write for LogFile {
    /// `line` is one whole event: tracing-subscriber formats it first and writes it at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.bytes_max {
            // A folder that cannot be changed is no reason to lose lines: the file grows on, and the next line tries again.
            drop(self.begin_anew());
        }
        self.file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn appended(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

fn redirect(file: &File) -> io::Result<()> {
    nix::unistd::dup2_stdout(file)?;
    nix::unistd::dup2_stderr(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_becomes_the_predecessor_and_no_line_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.log");
        fs::write(&path, "from an earlier run\n").unwrap();
        let mut log = LogFile::open(path.clone(), 64).unwrap();
        for number in 0..10 {
            log.write_all(format!("line {number} of ten\n").as_bytes()).unwrap();
        }
        let (before, now) = (
            fs::read_to_string(dir.path().join("engine.log.1")).unwrap(),
            fs::read_to_string(&path).unwrap(),
        );
        assert!(before.len() <= 64 && now.len() <= 64, "{before}{now}");
        assert!(now.ends_with("line 9 of ten\n"), "{now}");
        let lines: Vec<String> = before.lines().chain(now.lines()).map(str::to_owned).collect();
        let first = 10 - lines.len();
        for (place, line) in lines.iter().enumerate() {
            assert_eq!(line, &format!("line {} of ten", first + place));
        }
    }

    #[test]
    fn a_line_longer_than_a_file_is_kept_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.log");
        let mut log = LogFile::open(path.clone(), 8).unwrap();
        log.write_all(b"a line of some length\n").unwrap();
        log.write_all(b"another\n").unwrap();
        assert_eq!(
            fs::read_to_string(dir.path().join("engine.log.1")).unwrap(),
            "a line of some length\n"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "another\n");
    }
}

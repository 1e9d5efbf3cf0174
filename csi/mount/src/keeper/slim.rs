//! Gives the memory back that this program does not need while it waits: the keeper is one command of a large program, runs for
//! as long as the node does, and waits nearly all the time.

use std::fs;

use nix::poll::{PollFd, PollTimeout, poll};

/// What is given back.
#[derive(Debug, Default)]
pub struct Slim {
    /// Mappings of this program's files that nobody has changed, once they were looked for.
    files: Option<Vec<(usize, usize)>>,
}

impl Slim {
    /// Waits as poll(2) does, and has let go of everything meanwhile that is found again when it is needed. The kernel reads a page of
    /// code with those around it, so nothing may run between the two but this.
    ///
    /// # Errors
    /// As of poll(2).
    pub fn poll(&mut self, waits: &mut [PollFd<'_>], timeout: PollTimeout) -> nix::Result<i32> {
        let files = self.files.get_or_insert_with(|| {
            // SAFETY: it takes no memory of ours, it gives back what was freed.
            unsafe { libc::malloc_trim(0) };
            unchanged_files(&fs::read_to_string("/proc/self/smaps").unwrap_or_default())
        });
        for (start, end) in files {
            // SAFETY: the range is one whole private mapping of a file, which cannot be written to and has no page of its own, so
            // each page of it is found in the file again, with the same content, when it is next used. A failure changes nothing.
            unsafe { libc::madvise(*start as *mut libc::c_void, *end - *start, libc::MADV_DONTNEED) };
        }
        poll(waits, timeout)
    }
}

/// The mappings in the text of /proc/self/smaps that are of files, cannot be written to and never were.
fn unchanged_files(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(range) = mapping(line) {
            candidate = range;
        } else if let Some(size) = line.strip_prefix("Anonymous:")
            && size.trim() == "0 kB"
        {
            found.extend(candidate.take());
        }
    }
    found
}

/// The range of the mapping that a line begins, if it is one of a file that cannot be written to; `None` where the line begins none.
fn mapping(line: &str) -> Option<Option<(usize, usize)>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let private_and_fixed = words
        .next()
        .is_some_and(|rights| !rights.contains('w') && rights.ends_with('p'));
    let of_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
    Some((private_and_fixed && of_file).then_some((start, end)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::poll::PollFlags;

    use super::*;

    #[test]
    fn only_files_that_nobody_changed_are_given_back() {
        let block = |header: &str, own: u32| format!("{header}\nSize: 4 kB\nAnonymous: {own} kB\nVmFlags: rd mr\n");
        let smaps = [
            block("1000-2000 r--p 00000000 08:01 7 /bin/program", 0),
            block("2000-3000 r-xp 00001000 08:01 7 /bin/program", 0),
            block("3000-4000 r--p 00002000 08:01 7 /bin/program", 4),
            block("4000-5000 rw-p 00003000 08:01 7 /bin/program", 0),
            block("5000-6000 r--p 00000000 00:00 0 ", 0),
            block("6000-7000 r-xs 00000000 08:01 9 /bin/shared", 0),
            block("7000-8000 r-xp 00000000 00:00 0 [vdso]", 0),
        ];
        assert_eq!(unchanged_files(&smaps.concat()), [(0x1000, 0x2000), (0x2000, 0x3000)]);
        assert_eq!(unchanged_files(""), []);
    }

    #[test]
    fn a_wait_that_gives_memory_back_returns_what_came_and_when_the_time_is_up() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut slim = Slim::default();
        for (written, ready) in [(0, 0), (1, 1)] {
            nix::unistd::write(&writer, &b"x"[..written]).unwrap();
            let mut waits = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
            assert_eq!(slim.poll(&mut waits, PollTimeout::from(1u8)), Ok(ready));
        }
        assert!(slim.files.is_some_and(|files| !files.is_empty()));
    }
}

//! Gives the memory back that only the start of this program needed: the keeper is one command of a large program, and runs for
//! as long as the node does.

use std::fs;

/// Lets go of the pages of this program's files that nobody has changed; those that are needed again are read again.
pub fn give_back() {
    let Ok(smaps) = fs::read_to_string("/proc/self/smaps") else {
        return;
    };
    for (start, end) in unchanged_files(&smaps) {
        // SAFETY: the range is one whole private mapping of a file, which cannot be written to and has no page of its own, so each
        // page of it is found in the file again, with the same content, when it is next used.
        if unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) } != 0 {
            tracing::debug!(error = %std::io::Error::last_os_error(), "some memory is not given back");
        }
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
        give_back();
        assert_eq!(unchanged_files(""), []);
    }
}

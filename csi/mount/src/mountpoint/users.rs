//! Who uses a file system that may have no mountpoint here: programs with a file of it open, or that stand in one of its folders.
//!
//! Never here: a question to the file system's server, which may be the very process that asks. Absent: files that are mapped
//! and not open any more; the server knows of those.

use std::fs;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// Where programs can be seen.
const PROC: &str = "/proc";

/// True if a program has a file or folder of this device open, or stands there. What ends or hides meanwhile counts as no user.
pub fn is_used(device: (u32, u32)) -> bool {
    let programs = fs::read_dir(PROC).into_iter().flatten().flatten();
    let programs = programs.filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit());
    programs.map(|entry| entry.path()).any(|program| {
        let open = fs::read_dir(program.join("fd")).into_iter().flatten().flatten();
        let mut open = open.map(|entry| entry.path());
        let stands = ["cwd", "root", "exe"].map(|link| program.join(link));
        stands.iter().any(|link| is_on(link, device)) || open.any(|link| is_on(&link, device))
    })
}

/// True if what a link of /proc leads to lies on the device. The kernel's own memory of it answers.
fn is_on(link: &Path, device: (u32, u32)) -> bool {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let told = statx(CWD, link, flags, StatxFlags::empty());
    told.is_ok_and(|told| (told.stx_dev_major, told.stx_dev_minor) == device)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn an_open_file_is_a_use_of_its_device_and_of_no_other() {
        let file = tempfile::tempfile().unwrap();
        let device = file.metadata().unwrap().dev();
        assert!(is_used((libc::major(device), libc::minor(device))));
        assert!(!is_used((4_000, 4_000)));
    }
}

//! What the kernel says is mounted: `/proc/self/mountinfo`, parsed.
//!
//! Invariant: nothing here touches a mount point. Reading mountinfo cannot hang on a mount whose server is gone, as
//! stat(2) or statfs(2) would, so every decision of `targets.rs` begins with it.
//! Callers: `mounter/kernel.rs` reads it, `targets/` judges it; the command's doctor and `try`. Absent: whether a mount answers (see `Mounter::probe`).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Where the kernel tells it.
pub const TABLE: &str = "/proc/self/mountinfo";

/// The kernel's number of a file system instance: all bind mounts of one mount share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device {
    /// Major number; 0 for file systems without a disk.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Which file system instance.
    pub device: Device,
    /// What part of it: `/` is all.
    pub root: PathBuf,
    /// Where.
    pub path: PathBuf,
    /// True if this very mount refuses writes.
    pub read_only: bool,
    /// True if mounts made below it reach its peers, other mount namespaces among them.
    pub shared: bool,
    /// Type, for example `fuse.pannier`.
    pub fs_type: String,
    /// What the one who mounted it named as its source.
    pub source: String,
}

/// A line that is not as proc(5) describes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of mountinfo cannot be read: {text:?}")]
pub struct MalformedLine {
    /// Its number, from 1.
    pub line: usize,
    /// The line.
    pub text: String,
}

/// The table of this process.
///
/// # Errors
/// What the system says; `InvalidData` for a `MalformedLine`.
pub fn of_this_process() -> io::Result<Vec<MountPoint>> {
    let table = std::fs::read(TABLE)?;
    parse(&table).map_err(|malformed| io::Error::new(io::ErrorKind::InvalidData, malformed))
}

/// Parses the whole table, in the order of the kernel: of two mounts at one path the later one is on top.
///
/// # Errors
/// `MalformedLine` for the first line that lacks a field. proc(5), "/proc/pid/mountinfo".
pub fn parse(table: &[u8]) -> Result<Vec<MountPoint>, MalformedLine> {
    let lines = table.split(|byte| *byte == b'\n').enumerate();
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(at, line)| {
            parse_line(line).ok_or_else(|| MalformedLine {
                line: at + 1,
                text: String::from_utf8_lossy(line).into_owned(),
            })
        })
        .collect()
}

/// The mount that a path look-up of `path` arrives at, if `path` is a mount point.
pub fn top_at<'a>(table: &'a [MountPoint], path: &Path) -> Option<&'a MountPoint> {
    table.iter().rev().find(|mount| mount.path == path)
}

/// The mount that a path lies on: of the longest ones that lead to it, the one on top.
pub fn holding<'a>(table: &'a [MountPoint], path: &Path) -> Option<&'a MountPoint> {
    let above = table.iter().filter(|mount| path.starts_with(&mount.path));
    above.max_by_key(|mount| mount.path.as_os_str().len())
}

fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|byte| *byte == b' ');
    let _mount_id = fields.next()?;
    let _parent_id = fields.next()?;
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = unescape(fields.next()?);
    let path = unescape(fields.next()?);
    let options = fields.next()?;
    // A number of optional fields follows, ended by a lone dash.
    let mut shared = false;
    loop {
        match fields.next()? {
            b"-" => break,
            field => shared |= field.starts_with(b"shared:"),
        }
    }
    let fs_type = fields.next()?;
    let source = fields.next()?;
    Some(MountPoint {
        device: Device {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        },
        root: PathBuf::from(root),
        path: PathBuf::from(path),
        read_only: options.split(|byte| *byte == b',').any(|option| option == b"ro"),
        shared,
        fs_type: unescape(fs_type).to_string_lossy().into_owned(),
        source: unescape(source).to_string_lossy().into_owned(),
    })
}

/// The kernel writes space, tab, line end and backslash as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                plain.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_mount_is_read_with_its_spaces_and_its_optional_fields() {
        let table = parse(
            b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
              91 27 0:77 / /var/my\\040dir/v\\0541 ro,nosuid shared:3 master:9 - fuse.pannier pannier:v1 rw,user_id=0\n",
        )
        .unwrap();
        assert_eq!(table.len(), 2);
        assert!(!table[0].read_only);
        let bind = &table[1];
        assert_eq!(bind.device, Device { major: 0, minor: 77 });
        assert_eq!(bind.path, Path::new("/var/my dir/v,1"));
        assert!(
            bind.read_only,
            "the options of the mount count, not those of the file system"
        );
        assert_eq!((table[0].shared, bind.shared), (false, true));
        assert_eq!(
            (bind.fs_type.as_str(), bind.source.as_str()),
            ("fuse.pannier", "pannier:v1")
        );
    }

    #[test]
    fn of_two_mounts_at_one_path_the_later_is_on_top() {
        let table = parse(b"1 0 0:1 / /a rw - tmpfs one rw\n2 1 0:2 / /a rw - tmpfs two rw\n").unwrap();
        assert_eq!(top_at(&table, Path::new("/a")).unwrap().source, "two");
        assert_eq!(top_at(&table, Path::new("/b")), None);
    }

    #[test]
    fn the_mount_that_holds_a_path_is_found() {
        let table = b"1 0 8:1 / / rw - ext4 root rw\n2 1 0:40 / /opt rw shared:1 - tmpfs one rw\n\
                      3 1 0:41 / /op rw - tmpfs other rw\n4 2 0:42 / /opt rw - tmpfs two rw\n";
        let table = parse(table).unwrap();
        for (path, source) in [
            ("/opt/nomad", "two"),
            ("/opt", "two"),
            ("/optional", "root"),
            ("/srv", "root"),
        ] {
            assert_eq!(holding(&table, Path::new(path)).unwrap().source, source, "{path}");
        }
        assert_eq!(holding(&[], Path::new("/")), None);
    }

    #[test]
    fn a_line_without_its_end_is_named() {
        let error = parse(b"1 0 0:1 / /a rw - tmpfs one rw\n2 1 0:2 / /a rw\n").unwrap_err();
        assert_eq!(error.line, 2);
    }

    #[test]
    fn the_table_of_this_process_is_read() {
        let table = of_this_process().unwrap();
        assert_eq!(top_at(&table, Path::new("/proc")).unwrap().fs_type, "proc");
    }
}

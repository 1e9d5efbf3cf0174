//! Attributes of a file as they are written beside an object.
//!
//! `mode`, `uid`, `gid` and `mtime` as s3fs writes them (whole `st_mode`, decimal; seconds with an optional fraction); rclone
//! reads and writes the same `mtime`. Whatever cannot be read is taken as not given: it is of another program.

use volume::attr::{Attr, SetAttr, SetTime};
use volume::clock::Timestamp;
use volume::row::FileKind;
use volume_s3::Metadata;

/// Beside each object that an export made: the volume's uuid, so that it may be replaced by a later export of it.
const VOLUME: &str = "pannier-volume";

/// `S_IFMT` of stat(2).
const KIND_BITS: u32 = 0o170_000;

/// Which attributes an object has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Given {
    /// Kind, permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Modification time.
    pub mtime: Option<Timestamp>,
}

impl Given {
    /// Those that are written beside an object.
    pub fn read(metadata: &Metadata) -> Self {
        let number = |key: &str| metadata.get(key).and_then(|value| value.trim().parse().ok());
        Self {
            mode: number("mode"),
            uid: number("uid"),
            gid: number("gid"),
            mtime: metadata.get("mtime").and_then(|value| time(value.trim())),
        }
    }

    /// What the object is, where it says so.
    pub fn kind(&self) -> Option<FileKind> {
        match self.mode? & KIND_BITS {
            0o100_000 => Some(FileKind::Regular),
            0o040_000 => Some(FileKind::Directory),
            0o120_000 => Some(FileKind::Symlink),
            _ => None,
        }
    }

    /// As a change of attributes, with what `else_` says where nothing is given.
    pub fn or(&self, else_: &Given) -> SetAttr {
        let mtime = self.mtime.or(else_.mtime).map(SetTime::At);
        SetAttr {
            mode: self.mode.or(else_.mode).map(|mode| (mode & 0o7777) as u16),
            uid: self.uid.or(else_.uid),
            gid: self.gid.or(else_.gid),
            atime: mtime,
            mtime,
            ..SetAttr::default()
        }
    }
}

/// What to write beside the object of a file.
pub fn written(attr: &Attr, volume: &str) -> Metadata {
    let kind: u32 = match attr.kind {
        FileKind::Directory => 0o040_000,
        FileKind::Symlink => 0o120_000,
        _ => 0o100_000,
    };
    let mode = kind | u32::from(attr.mode);
    Metadata::from([
        ("mode".to_owned(), mode.to_string()),
        ("uid".to_owned(), attr.uid.to_string()),
        ("gid".to_owned(), attr.gid.to_string()),
        (
            "mtime".to_owned(),
            format!("{}.{:09}", attr.mtime.seconds, attr.mtime.nanos),
        ),
        (VOLUME.to_owned(), volume.to_owned()),
    ])
}

/// True if the object was made by an export of this volume.
pub fn is_of(metadata: &Metadata, volume: &str) -> bool {
    metadata.get(VOLUME).is_some_and(|of| of == volume)
}

/// `SECONDS` or `SECONDS.FRACTION`, of which nine digits count. Seconds round down, as `written` has them.
fn time(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let nine: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(Timestamp {
        seconds: seconds.parse().ok()?,
        nanos: nine.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> Given {
        let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        Given::read(&pairs.iter().map(own).collect())
    }

    #[test]
    fn what_s3fs_and_rclone_write_is_read() {
        let s3fs = given(&[
            ("mode", "33261"),
            ("uid", "1000"),
            ("gid", "100"),
            ("mtime", "1700000000"),
        ]);
        assert_eq!(s3fs.kind(), Some(FileKind::Regular));
        assert_eq!(s3fs.or(&Given::default()).mode, Some(0o755));
        assert_eq!((s3fs.uid, s3fs.gid), (Some(1000), Some(100)));
        let rclone = given(&[("mtime", "1700000000.1234567891")]);
        let time = rclone.mtime.unwrap();
        assert_eq!((time.seconds, time.nanos), (1_700_000_000, 123_456_789));
        assert_eq!(given(&[("mode", "41471")]).kind(), Some(FileKind::Symlink));
    }

    #[test]
    fn what_cannot_be_read_is_not_given() {
        let odd = given(&[
            ("mode", "rw-r--r--"),
            ("uid", "-1"),
            ("gid", "99999999999"),
            ("mtime", "1.-5"),
        ]);
        assert_eq!(odd, Given::default());
        assert_eq!(given(&[("mtime", "yesterday")]).mtime, None);
    }
}

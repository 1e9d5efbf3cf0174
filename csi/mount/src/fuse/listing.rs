//! Directory listings: as many entries as a reply takes, from one cookie on.

use std::time::Duration;

use volume::error::FsError;
use volume::ids::{DirCookie, InodeNo};
use volume::volume::Volume;

use super::reply::Listing;

/// 128 entries per call: three of the kernel's smallest buffers of names, six with attributes.
const ENTRIES_PER_CALL: usize = 128;

/// Fills a reply of readdir.
pub async fn fill(volume: &Volume, dir: InodeNo, after: DirCookie, reply: &mut impl Listing) -> Result<(), FsError> {
    let mut after = after;
    loop {
        let entries = volume.readdir(dir, after, ENTRIES_PER_CALL, false).await?;
        for entry in &entries {
            if reply.add(entry, Duration::ZERO) {
                return Ok(());
            }
            after = entry.cookie;
        }
        if entries.len() < ENTRIES_PER_CALL {
            return Ok(());
        }
    }
}

/// Fills a reply of readdirplus. Each entry with attributes that goes into it is one more reference of the kernel,
/// except "." and "..". The kernel may rely on the attributes for as long as `valid`.
pub async fn fill_plus(
    (volume, valid): (&Volume, Duration),
    dir: InodeNo,
    after: DirCookie,
    reply: &mut impl Listing,
) -> Result<(), FsError> {
    let mut after = after;
    loop {
        let entries = volume.readdir(dir, after, ENTRIES_PER_CALL, true).await?;
        for entry in &entries {
            // An entry that was removed meanwhile has no attributes any more: it is left out, as if never met.
            if entry.attr.is_some() {
                if reply.add(entry, valid) {
                    return Ok(());
                }
                if !matches!(&entry.name[..], b"." | b"..") {
                    volume.remember(entry.ino);
                }
            }
            after = entry.cookie;
        }
        if entries.len() < ENTRIES_PER_CALL {
            return Ok(());
        }
    }
}

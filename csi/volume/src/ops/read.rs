//! Reading content: from RAM under the lock, from caches and the bucket after it.
//!
//! Access times do not change by reading (as with the mount option `noatime`): a read would otherwise cost a commit.

use bytes::Bytes;

use crate::error::FsError;
use crate::fetch::{FetchError, WantedPart};
use crate::ids::InodeNo;
use crate::mount::Mount;
use crate::outage::{Way, is_outage};
use crate::table::{Part, Stop, Tables};

/// 64 KiB of zeros, sliced for holes.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Three times: an object that vanished while it was to be read was given up because the file changed, so the second
/// look finds where the content is now. Still missing at the third, it is lost.
const LOOKS_MAX: u32 = 3;

/// See `Volume::read`.
pub(crate) async fn read(mount: &Mount, ino: InodeNo, offset: u64, len_bytes: u32) -> Result<Vec<Bytes>, FsError> {
    let mut looks = 0;
    loop {
        looks += 1;
        let seen = mount.renewals();
        let parts = mount
            .look(|tables| plan(tables, ino, offset, u64::from(len_bytes)))
            .await?;
        if parts.iter().any(|part| matches!(part, Part::Stored { .. })) {
            mount.read_ahead(ino, offset, u64::from(len_bytes));
        }
        match gather(mount, (ino, offset), parts).await {
            Ok(bytes) => return Ok(bytes),
            Err(FetchError::Bucket(error)) if is_outage(&error) => {
                looks -= 1;
                mount.watch.pause(Way::Reading).await?;
            }
            Err(error @ FetchError::Missing(_)) if looks < LOOKS_MAX => {
                // Of a mount that only reads the whole state may be gone.
                if let Err(why) = mount.renew(seen).await {
                    tracing::warn!(error = %why, "the newest state of the volume cannot be read");
                    return Err(error.into_fs(ino));
                }
            }
            Err(error) => return Err(error.into_fs(ino)),
        }
    }
}

fn plan(tables: &mut Tables, ino: InodeNo, offset: u64, len: u64) -> Result<Vec<Part>, Stop> {
    let row = tables.regular(ino)?;
    let end = offset.saturating_add(len).min(row.size);
    if offset >= end {
        return Ok(Vec::new());
    }
    if let Some(inline) = &row.inline {
        let stop = end.min(inline.len() as u64);
        let mut parts = Vec::new();
        if offset < stop {
            parts.push(Part::Bytes(inline.slice(offset as usize..stop as usize)));
        }
        if stop.max(offset) < end {
            parts.push(Part::Zeros(end - stop.max(offset)));
        }
        return Ok(parts);
    }
    if row.allocated == 0 {
        return Ok(vec![Part::Zeros(end - offset)]);
    }
    tables.need_extents(ino, offset, end)?;
    Ok(tables.parts(ino, offset, end))
}

async fn gather(mount: &Mount, at: (InodeNo, u64), parts: Vec<Part>) -> Result<Vec<Bytes>, FetchError> {
    let wanted: Vec<WantedPart> = parts
        .iter()
        .filter_map(|part| match part {
            Part::Stored { offset, row, skip, len } => Some(WantedPart {
                offset: *offset,
                row: row.clone(),
                skip: *skip,
                len: *len,
            }),
            Part::Bytes(_) | Part::Zeros(_) => None,
        })
        .collect();
    let mut fetched = if wanted.is_empty() {
        Vec::new()
    } else {
        mount.read_neighbours(at.0, at.1, &wanted);
        mount.fetcher.read(wanted).await?
    }
    .into_iter();
    let mut bytes = Vec::with_capacity(parts.len());
    for part in parts {
        match part {
            Part::Bytes(content) => bytes.push(content),
            Part::Zeros(mut len) => {
                while len > 0 {
                    let piece = len.min(ZEROS.len() as u64);
                    bytes.push(Bytes::from_static(&ZEROS[..piece as usize]));
                    len -= piece;
                }
            }
            Part::Stored { .. } => bytes.extend(fetched.next().expect("one answer for each part")),
        }
    }
    Ok(bytes)
}

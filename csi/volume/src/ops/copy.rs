//! copy_file_range(2), by reading and writing: in steps, as the call allows.

use bytes::{Bytes, BytesMut};

use super::read::read;
use super::write::write;
use crate::attr::CopyRange;
use crate::error::FsError;
use crate::mount::Mount;

/// 4 MiB are copied by one call at most; the caller asks again for the rest.
const STEP_BYTES: u64 = 4 * 1024 * 1024;

/// See `Volume::copy_file_range`.
pub(crate) async fn copy_file_range(mount: &Mount, range: CopyRange) -> Result<u64, FsError> {
    let end = |offset: u64| offset.checked_add(range.len_bytes).ok_or(FsError::TooBig);
    let (from_end, to_end) = (end(range.from_offset)?, end(range.to_offset)?);
    if range.from == range.to && range.from_offset < to_end && range.to_offset < from_end && range.len_bytes > 0 {
        return Err(FsError::Invalid("the ranges overlap"));
    }
    mount.look(|tables| tables.regular(range.to).map(|_| ())).await?;
    let parts = read(
        mount,
        range.from,
        range.from_offset,
        range.len_bytes.min(STEP_BYTES) as u32,
    )
    .await?;
    let content = join(parts);
    let copied = content.len() as u64;
    write(mount, range.to, range.to_offset, content).await?;
    Ok(copied)
}

fn join(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.swap_remove(0);
    }
    let mut joined = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| joined.extend_from_slice(part));
    joined.freeze()
}

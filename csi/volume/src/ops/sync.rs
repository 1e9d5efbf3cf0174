//! What durable means. This is the only file that says it, and this is the promise we publish:
//!
//! `remote`: when fsync, fdatasync or an O_SYNC write returns success, everything done on the volume before the call, by
//! anybody, is in the bucket: content and names alike. Whatever happens to this machine afterwards, the next mount finds
//! it. After a crash the volume is exactly as it was at some moment at or after the last such call that returned: never a
//! mixture of earlier and later. close(2) promises nothing.
//!
//! `local`: the same, but for the place: it is on this node's disk, and in the bucket a second or two later. It survives a crash
//! of any program and of the machine, not the loss of the disk; then the volume is as it was at some moment, a few seconds
//! old. Until the bucket has it no other node writes the volume.
//!
//! `relaxed`: these calls return at once and ask for nothing. The bucket follows by itself, a second or two behind; after a
//! crash the volume is exactly as it was at some moment, never a mixture.
//!
//! Unmounting is `drain` in every mode: everything is in the bucket then.
//!
//! An error says that changes were lost, and that none will be accepted any more. It is said by every call from then on.
//! The one exception is `StoreAway`, by a policy that the operator has chosen: nothing is lost, only not durable yet; a
//! later call waits for all of it again.

use crate::error::FsError;
use crate::head::Durability;
use crate::mount::Mount;
use crate::outage::Way;

/// See `Volume::fsync`.
pub(crate) async fn sync(mount: &Mount) -> Result<(), FsError> {
    match mount.durability {
        Durability::Remote => drain(mount).await,
        Durability::Local => log(mount).await,
        Durability::Relaxed => flush(mount),
    }
}

async fn log(mount: &Mount) -> Result<(), FsError> {
    flush(mount)?;
    {
        let tables = mount.lock();
        if tables.newest_generation() <= tables.durable() {
            return Ok(());
        }
    }
    match &mount.tail {
        Some(tail) if tail.sync().await => flush(mount),
        Some(_) | None => drain(mount).await,
    }
}

/// See `Volume::drain`.
pub(crate) async fn drain(mount: &Mount) -> Result<(), FsError> {
    let target = {
        let tables = mount.lock();
        tables.check_open()?;
        if let Some(lost) = tables.lost() {
            return Err(FsError::Lost(lost.clone()));
        }
        let target = tables.newest_generation();
        if target <= tables.durable() {
            return Ok(());
        }
        target
    };
    let Some(commit) = &mount.commit else { return Ok(()) };
    commit.request_sync();
    let durable = async { commit.wait_durable(target).await.map_err(FsError::Lost) };
    mount.watch.bounded(Way::Writing, durable).await
}

/// See `Volume::flush`.
pub(crate) fn flush(mount: &Mount) -> Result<(), FsError> {
    let tables = mount.lock();
    tables.check_open()?;
    match tables.lost() {
        Some(lost) => Err(FsError::Lost(lost.clone())),
        None => Ok(()),
    }
}

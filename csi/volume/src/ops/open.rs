//! Open descriptions: how many there are keeps an inode without a name alive, nothing else.

use super::attributes::set_size;
use crate::attr::Attr;
use crate::error::FsError;
use crate::ids::InodeNo;
use crate::mount::Mount;

/// See `Volume::open_file`.
pub(crate) async fn open_file(mount: &Mount, ino: InodeNo, truncate: bool) -> Result<Attr, FsError> {
    if truncate {
        return mount
            .change(|tables, now| {
                set_size(tables, ino, 0, now)?;
                let attr = tables.attr(ino)?;
                tables.open_inode(ino);
                Ok(attr)
            })
            .await;
    }
    mount
        .look(|tables| {
            let attr = tables.attr(ino)?;
            tables.open_inode(ino);
            Ok(attr)
        })
        .await
}

/// See `Volume::release`.
pub(crate) fn release(mount: &Mount, ino: InodeNo) {
    let mut tables = mount.lock();
    let purge = tables.release_open(ino);
    let unsealed = tables.unsealed_bytes();
    drop(tables);
    mount.dirtied(unsealed);
    if purge {
        mount.purge.notify_one();
    }
}

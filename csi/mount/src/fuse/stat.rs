//! Modes and sizes as FUSE counts them.
//!
//! Pure conversions. Absent: any decision; and flags of open and rename, which `fuse.rs` reads where it needs them.

use volume::attr::StatFs;
use volume::row::FileKind;

/// 4 KiB: what stat(2) gives as the preferred block. Larger values make some programs allocate huge buffers.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;

/// Bytes of a block in statfs(2).
pub const STATFS_BLOCK_BYTES: u32 = 4096;

/// The file type bits of a mode, as in inode(7).
const TYPE_MASK: u32 = 0o170_000;

/// All blocks of statfs(2), and the free ones.
pub fn statfs_blocks(space: &StatFs) -> (u64, u64) {
    let blocks = |bytes: u64| bytes / u64::from(STATFS_BLOCK_BYTES);
    (blocks(space.total_bytes), blocks(space.free_bytes))
}

/// What mknod(2) is asked to make; `None` for bits that name nothing. No bits at all mean a regular file.
pub fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & TYPE_MASK {
        0 | 0o100_000 => Some(FileKind::Regular),
        0o010_000 => Some(FileKind::Fifo),
        0o020_000 => Some(FileKind::CharDevice),
        0o060_000 => Some(FileKind::BlockDevice),
        0o140_000 => Some(FileKind::Socket),
        _ => None,
    }
}

/// The 12 permission bits of a mode.
pub fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mknod_makes_what_the_type_bits_say() {
        assert_eq!(kind_of_mode(0o644), Some(FileKind::Regular));
        assert_eq!(kind_of_mode(0o010_644), Some(FileKind::Fifo));
        assert_eq!(kind_of_mode(0o040_755), None, "directories have their own call");
    }
}

//! The skin behind the wire: each request becomes one call of `Skin`, whichever transport brought it.

use nix::errno::Errno;
use volume::attr::{CopyRange, Place};
use volume::ids::{DirCookie, InodeNo};

use super::decode::{Asked, Operation, Unserved};
use super::encode::{Names, Statx, WideWritten};
use super::{Carrier, Serve};
use crate::fuse::{Skin, Writing};

impl Serve for Skin {
    fn serve(&self, asked: &Asked<'_>, reply: impl Carrier) {
        let operation = match asked.operation() {
            Ok(operation) => operation,
            // The kernel does without, and stops asking.
            Err(Unserved::Unknown(_)) => return reply.send_error(Errno::ENOSYS),
            Err(error @ Unserved::Malformed(_)) => {
                tracing::error!(%error, "the kernel asks what this program does not understand");
                return reply.send_error(Errno::EIO);
            }
        };
        match operation {
            Operation::Lookup { .. }
            | Operation::Symlink { .. }
            | Operation::Mknod { .. }
            | Operation::Mkdir { .. }
            | Operation::Unlink { .. }
            | Operation::Rmdir { .. }
            | Operation::Rename { .. }
            | Operation::Link { .. }
            | Operation::Create { .. } => self.serve_name(asked, operation, reply),
            other => self.serve_inode(asked, other, reply),
        }
    }

    fn forget(&self, ino: InodeNo, count: u64) {
        Skin::forget(self, ino, count);
    }
}

impl Skin {
    /// What is asked of a name in a folder.
    fn serve_name(&self, asked: &Asked<'_>, operation: Operation<'_>, reply: impl Carrier) {
        let (request, dir) = (&asked.request, asked.ino);
        let at = |name| Place { dir, name };
        match operation {
            Operation::Lookup { name } => self.lookup(at(name), reply),
            Operation::Symlink { name, target } => self.symlink(request, at(name), target, reply),
            Operation::Mknod { name, making, rdev } => self.mknod(request, at(name), (making, rdev), reply),
            Operation::Mkdir { name, making } => self.mkdir(request, at(name), making, reply),
            Operation::Unlink { name } => self.unlink(request, at(name), reply),
            Operation::Rmdir { name } => self.rmdir(request, at(name), reply),
            Operation::Rename {
                name,
                new_dir,
                new_name,
                flags,
            } => {
                let to = Place {
                    dir: new_dir,
                    name: new_name,
                };
                self.rename(request, (at(name), to), flags, reply);
            }
            Operation::Link { of, name } => self.link(request, of, at(name), reply),
            Operation::Create { name, making, flags } => self.create(request, at(name), (making, flags), reply),
            _ => reply.send_error(Errno::ENOSYS),
        }
    }

    /// What is asked of an inode.
    fn serve_inode(&self, asked: &Asked<'_>, operation: Operation<'_>, reply: impl Carrier) {
        let (request, ino) = (&asked.request, asked.ino);
        match operation {
            Operation::Getattr => self.getattr(ino, reply),
            Operation::Statx => self.getattr(ino, Statx(reply)),
            Operation::Setattr { change, clears_suid } => self.setattr((request, ino), change, clears_suid, reply),
            Operation::Readlink => self.readlink(ino, reply),
            Operation::Open { flags, clears_suid } => self.open((request, ino), flags, clears_suid, reply),
            Operation::Tmpfile { making, flags } => self.tmpfile(request, ino, (making, flags), reply),
            Operation::Read { offset, size, direct } => self.read(ino, (offset, size), direct, reply),
            Operation::Write {
                offset,
                data,
                clears_suid,
                direct,
            } => {
                let writing = Writing {
                    offset,
                    data: asked.keep(data),
                    clears_suid,
                    direct,
                };
                self.write((request, ino), writing, reply);
            }
            Operation::Statfs => self.statfs(reply),
            Operation::Release { flags } => self.release(ino, flags, reply),
            Operation::Fsync => self.fsync(ino, reply),
            Operation::Setxattr {
                name,
                value,
                flags,
                clears_sgid,
            } => self.setxattr((request, ino), (name, value), (flags, clears_sgid), reply),
            Operation::Getxattr { name, size } => self.getxattr(ino, name, size, reply),
            Operation::Listxattr { size } => self.listxattr(ino, size, reply),
            Operation::Removexattr { name } => self.removexattr(request, ino, name, reply),
            Operation::Flush => self.flush(ino, reply),
            Operation::Opendir => self.opendir(reply),
            Operation::Readdir { offset, size } => {
                self.readdir(ino, DirCookie(offset), Names::new(reply, size, false));
            }
            Operation::Readdirplus { offset, size } => {
                self.readdirplus(ino, DirCookie(offset), Names::new(reply, size, true));
            }
            Operation::Fallocate { mode, offset, len } => self.fallocate(request, ino, (mode, offset, len), reply),
            Operation::Lseek { offset, whence } => self.lseek(ino, offset, whence, reply),
            Operation::CopyFileRange { range, wide } => {
                let range = CopyRange {
                    from: ino,
                    from_offset: range.from_offset,
                    to: range.to,
                    to_offset: range.to_offset,
                    len_bytes: range.len_bytes,
                };
                match wide {
                    true => self.copy_file_range(request, range, WideWritten(reply)),
                    false => self.copy_file_range(request, range, reply),
                }
            }
            _ => reply.send_error(Errno::ENOSYS),
        }
    }
}

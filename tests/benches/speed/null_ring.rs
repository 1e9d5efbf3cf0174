//! The null file system as the rings of a volume call it: what the kernel's side of io_uring costs, and ours.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use bytes::Bytes;
use fuser::{Errno, FileAttr, FileType, FopenFlags, INodeNo};
use volume::attr::{Attr, Entry};
use volume::clock::Timestamp;
use volume::ids::{DirCookie, InodeNo};
use volume::row::FileKind;
use volume_mount::session::uring::{
    Asked, Attributes, Created, Found, Listing, Names, Opened, Operation, Reply, RingReply, Serve, Written,
};

use crate::null_fs::{NullFs, attr};

/// As long as a volume's kernel may remember.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn of(attr: &FileAttr) -> Attr {
    let time = Timestamp { seconds: 0, nanos: 0 };
    Attr {
        ino: InodeNo(attr.ino.0),
        kind: kind_of(attr.kind),
        mode: attr.perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: attr.size,
        blocks_512: attr.blocks,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
    }
}

fn kind_of(kind: FileType) -> FileKind {
    if kind == FileType::Directory {
        FileKind::Directory
    } else {
        FileKind::Regular
    }
}

fn found(attr: Option<&FileAttr>) -> Found {
    Found {
        attr: attr.map(of),
        valid: FOREVER,
    }
}

fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

impl Serve for NullFs {
    fn serve(&self, asked: &Asked<'_>, reply: RingReply) {
        let ino = INodeNo(asked.ino.0);
        match asked.operation() {
            Ok(Operation::Readdir { offset, size }) => self.list(ino, offset, Names::new(reply, size, false)),
            Ok(Operation::Readdirplus { offset, size }) => self.list(ino, offset, Names::new(reply, size, true)),
            Ok(operation) => self.answer(ino, operation, reply),
            Err(_) => reply.refuse(Errno::ENOSYS),
        }
    }
}

impl NullFs {
    fn answer(&self, ino: INodeNo, operation: Operation<'_>, reply: RingReply) {
        let mut state = self.lock();
        let about = |attr: Option<FileAttr>, reply: RingReply| match attr {
            Some(attr) => reply.give(Attributes {
                attr: of(&attr),
                valid: FOREVER,
            }),
            None => reply.refuse(Errno::ESTALE),
        };
        match operation {
            Operation::Lookup { name: called } => {
                let there = state.find(ino, name(called)).map(|ino| attr(ino, &state.nodes[&ino]));
                reply.give(found(there.as_ref()));
            }
            Operation::Getattr => about(state.nodes.get(&ino.0).map(|node| attr(ino.0, node)), reply),
            Operation::Setattr { change, .. } => {
                let changed = state.nodes.get_mut(&ino.0).map(|node| {
                    if let Some(size) = change.size {
                        node.data.resize(size as usize, 0);
                    }
                    node.mode = change.mode.unwrap_or(node.mode);
                    attr(ino.0, node)
                });
                about(changed, reply);
            }
            Operation::Mkdir { name: called, making } => {
                let made = state.add(ino, name(called), FileType::Directory, making.mode);
                reply.give(found(Some(&made)));
            }
            Operation::Create {
                name: called, making, ..
            } => {
                let made = state.add(ino, name(called), FileType::RegularFile, making.mode);
                reply.give(Created(found(Some(&made)), Opened(FopenFlags::FOPEN_KEEP_CACHE)));
            }
            Operation::Unlink { name: called } | Operation::Rmdir { name: called } => {
                state.unlink(ino, name(called));
                reply.give(());
            }
            Operation::Rename {
                name: called,
                new_dir,
                new_name,
                ..
            } => {
                state.rename((ino, name(called)), (INodeNo(new_dir.0), name(new_name)));
                reply.give(());
            }
            Operation::Open { .. } => reply.give(Opened(FopenFlags::FOPEN_KEEP_CACHE)),
            Operation::Read { offset, size } => match state.nodes.get(&ino.0) {
                Some(node) => {
                    let start = (offset as usize).min(node.data.len());
                    let end = (start + size as usize).min(node.data.len());
                    reply.parts(vec![Bytes::copy_from_slice(&node.data[start..end])]);
                }
                None => reply.refuse(Errno::ESTALE),
            },
            Operation::Write { offset, data, .. } => {
                state.write(ino.0, offset, data);
                reply.give(Written(data.len() as u32));
            }
            Operation::Flush | Operation::Release { .. } | Operation::Fsync => reply.give(()),
            _ => reply.refuse(Errno::ENOSYS),
        }
    }

    fn list(&self, dir: INodeNo, offset: u64, mut reply: Names) {
        for (cookie, called, ino, node) in self.lock().list(dir, offset) {
            let entry = Entry {
                ino: InodeNo(ino),
                kind: kind_of(node.kind),
                name: Bytes::copy_from_slice(called.as_bytes()),
                cookie: DirCookie(cookie),
                attr: Some(of(&attr(ino, node))),
            };
            if reply.add(&entry, FOREVER) {
                break;
            }
        }
        reply.give(());
    }
}

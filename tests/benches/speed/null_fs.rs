//! A file system in RAM that does nothing else: what FUSE itself costs, over the same transports and with the same agreements
//! with the kernel as a volume. Never more than a yardstick: no rights, links or times of its own, and nothing is kept.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use volume::attr::{Attr, Entry};
use volume::clock::Timestamp;
use volume::head::Transport;
use volume::ids::{DirCookie, InodeNo};
use volume::row::FileKind;
use volume_mount::session::wire::{
    Asked, Attributes, Carrier, Content, Created, Found, Listing, Names, Opened, Operation, Reply, Serve, Written,
};
use volume_mount::session::{serve_until_end, uring};

/// As long as a volume's kernel may remember.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

struct Node {
    kind: FileKind,
    mode: u16,
    data: Vec<u8>,
    entries: BTreeMap<Bytes, InodeNo>,
    /// Its name is gone; it goes with the kernel's last reference.
    unlinked: bool,
}

impl Node {
    fn new(kind: FileKind, mode: u16) -> Self {
        Self {
            kind,
            mode,
            data: Vec::new(),
            entries: BTreeMap::new(),
            unlinked: false,
        }
    }

    fn attr(&self, ino: InodeNo) -> Attr {
        let time = Timestamp { seconds: 0, nanos: 0 };
        Attr {
            ino,
            kind: self.kind,
            mode: self.mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: self.data.len() as u64,
            blocks_512: self.data.len().div_ceil(512) as u64,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
        }
    }
}

struct Nodes {
    nodes: HashMap<InodeNo, Node>,
    next: u64,
}

impl Nodes {
    fn find(&self, parent: InodeNo, name: &[u8]) -> Option<Attr> {
        let ino = *self.nodes.get(&parent)?.entries.get(name)?;
        self.attr(ino)
    }

    fn attr(&self, ino: InodeNo) -> Option<Attr> {
        Some(self.nodes.get(&ino)?.attr(ino))
    }

    fn add(&mut self, parent: InodeNo, name: &[u8], kind: FileKind, mode: u32) -> Attr {
        let ino = InodeNo(self.next);
        self.next += 1;
        let node = Node::new(kind, (mode & 0o7777) as u16);
        let attr = node.attr(ino);
        self.nodes.insert(ino, node);
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.entries.insert(Bytes::copy_from_slice(name), ino);
        }
        attr
    }

    fn take(&mut self, parent: InodeNo, name: &[u8]) -> Option<InodeNo> {
        self.nodes.get_mut(&parent)?.entries.remove(name)
    }

    fn unlink(&mut self, parent: InodeNo, name: &[u8]) {
        if let Some(ino) = self.take(parent, name)
            && let Some(node) = self.nodes.get_mut(&ino)
        {
            node.unlinked = true;
        }
    }

    fn rename(&mut self, (parent, name): (InodeNo, &[u8]), (new_parent, new_name): (InodeNo, &[u8])) {
        if let Some(ino) = self.take(parent, name)
            && let Some(dir) = self.nodes.get_mut(&new_parent)
        {
            dir.entries.insert(Bytes::copy_from_slice(new_name), ino);
        }
    }

    fn read(&self, ino: InodeNo, offset: u64, size: u32) -> Option<Bytes> {
        let data = &self.nodes.get(&ino)?.data;
        let start = (offset as usize).min(data.len());
        let end = (start + size as usize).min(data.len());
        Some(Bytes::copy_from_slice(&data[start..end]))
    }

    fn write(&mut self, ino: InodeNo, offset: u64, data: &[u8]) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            let end = offset as usize + data.len();
            if node.data.len() < end {
                node.data.resize(end, 0);
            }
            node.data[offset as usize..end].copy_from_slice(data);
        }
    }

    /// What follows a place in a listing; "." and ".." are left out, which nobody misses here.
    fn list(&self, dir: InodeNo, offset: u64) -> impl Iterator<Item = Entry> {
        let entries = self.nodes.get(&dir).into_iter().flat_map(|node| node.entries.iter());
        entries
            .enumerate()
            .skip(offset as usize)
            .filter_map(|(i, (name, ino))| {
                Some(Entry {
                    ino: *ino,
                    kind: self.nodes.get(ino)?.kind,
                    name: name.clone(),
                    cookie: DirCookie(i as u64 + 1),
                    attr: self.attr(*ino),
                })
            })
    }
}

struct NullFs(Mutex<Nodes>);

impl NullFs {
    fn new() -> Self {
        Self(Mutex::new(Nodes {
            nodes: HashMap::from([(InodeNo::ROOT, Node::new(FileKind::Directory, 0o777))]),
            next: InodeNo::ROOT.0 + 1,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Nodes> {
        self.0.lock().expect("nothing panics under it")
    }

    fn list(&self, dir: InodeNo, offset: u64, mut reply: Names<impl Carrier>) {
        for entry in self.lock().list(dir, offset) {
            if reply.add(&entry, FOREVER) {
                break;
            }
        }
        reply.give(());
    }

    fn answer<C: Carrier>(&self, ino: InodeNo, operation: Operation<'_>, reply: C) {
        let found = |attr| Found { attr, valid: FOREVER };
        let about = |attr: Option<Attr>, reply: C| match attr {
            Some(attr) => reply.give(Attributes { attr, valid: FOREVER }),
            None => reply.send_error(Errno::ESTALE),
        };
        let mut state = self.lock();
        match operation {
            Operation::Lookup { name } => reply.give(found(state.find(ino, name))),
            Operation::Getattr => about(state.attr(ino), reply),
            Operation::Setattr { change, .. } => {
                if let Some(node) = state.nodes.get_mut(&ino) {
                    node.data
                        .resize(change.size.map_or(node.data.len(), |size| size as usize), 0);
                    node.mode = change.mode.unwrap_or(node.mode);
                }
                about(state.attr(ino), reply);
            }
            Operation::Mkdir { name, making } => {
                let made = state.add(ino, name, FileKind::Directory, making.mode);
                reply.give(found(Some(made)));
            }
            Operation::Create { name, making, .. } => {
                let made = state.add(ino, name, FileKind::Regular, making.mode);
                reply.give(Created(found(Some(made)), Opened(Opened::KEEP_CACHE)));
            }
            Operation::Unlink { name } | Operation::Rmdir { name } => {
                state.unlink(ino, name);
                reply.give(());
            }
            Operation::Rename {
                name,
                new_dir,
                new_name,
                ..
            } => {
                state.rename((ino, name), (new_dir, new_name));
                reply.give(());
            }
            Operation::Open { .. } => reply.give(Opened(Opened::KEEP_CACHE)),
            Operation::Read { offset, size, .. } => match state.read(ino, offset, size) {
                Some(content) => reply.give(Content(vec![content])),
                None => reply.send_error(Errno::ESTALE),
            },
            Operation::Write { offset, data, .. } => {
                state.write(ino, offset, data);
                reply.give(Written(data.len() as u32));
            }
            Operation::Flush | Operation::Release { .. } | Operation::Fsync => reply.give(()),
            _ => reply.send_error(Errno::ENOSYS),
        }
    }
}

impl Serve for NullFs {
    fn serve(&self, asked: &Asked<'_>, reply: impl Carrier) {
        match asked.operation() {
            Ok(Operation::Readdir { offset, size }) => self.list(asked.ino, offset, Names::new(reply, size, false)),
            Ok(Operation::Readdirplus { offset, size }) => self.list(asked.ino, offset, Names::new(reply, size, true)),
            Ok(operation) => self.answer(asked.ino, operation, reply),
            Err(_) => reply.send_error(Errno::ENOSYS),
        }
    }

    fn forget(&self, ino: InodeNo, _count: u64) {
        let mut state = self.lock();
        if state.nodes.get(&ino).is_some_and(|node| node.unlinked) {
            state.nodes.remove(&ino);
        }
    }
}

/// Mounts it at `dir` and serves it until it is unmounted.
///
/// # Errors
/// What the kernel refused.
pub fn serve(dir: &Path, transport: Transport) -> io::Result<()> {
    if transport == Transport::IoUring {
        uring::available().map_err(io::Error::other)?;
    }
    let device: OwnedFd = open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    let data = format!(
        "fd={},rootmode=40777,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    mount(
        Some("null"),
        dir,
        Some("fuse.null"),
        MsFlags::MS_NODEV,
        Some(data.as_str()),
    )?;
    serve_until_end((&device, dir), transport, &Arc::new(NullFs::new())).map_err(io::Error::other)
}

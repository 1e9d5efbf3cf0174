//! A file system in RAM that does nothing else: what FUSE itself costs, over the same library and with the same agreements
//! with the kernel as a volume. Never more than a yardstick: no rights, links or times of its own, and nothing is kept.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, SessionACL, TimeOrNow,
    WriteFlags,
};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use volume::head::Transport;
use volume_mount::session::uring::{self, Connection, Rings};

/// As long as a volume's kernel may remember.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// As a volume's.
const REQUEST_BYTES_MAX: u32 = 1024 * 1024;

const GENERATION: Generation = Generation(0);
const HANDLE: FileHandle = FileHandle(0);

#[derive(Clone)]
pub struct Node {
    pub kind: FileType,
    pub mode: u16,
    pub data: Vec<u8>,
    entries: BTreeMap<OsString, u64>,
    /// Its name is gone; it goes with the kernel's last reference.
    unlinked: bool,
}

pub struct Nodes {
    pub nodes: HashMap<u64, Node>,
    next: u64,
}

pub struct NullFs {
    state: Mutex<Nodes>,
    transport: Transport,
}

pub fn attr(ino: u64, node: &Node) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: node.data.len() as u64,
        blocks: node.data.len().div_ceil(512) as u64,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: node.kind,
        perm: node.mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Nodes {
    pub fn find(&self, parent: INodeNo, name: &OsStr) -> Option<u64> {
        self.nodes.get(&parent.0)?.entries.get(name).copied()
    }

    pub fn add(&mut self, parent: INodeNo, name: &OsStr, kind: FileType, mode: u32) -> FileAttr {
        let ino = self.next;
        self.next += 1;
        let node = Node {
            kind,
            mode: (mode & 0o7777) as u16,
            data: Vec::new(),
            entries: BTreeMap::new(),
            unlinked: false,
        };
        let attr = attr(ino, &node);
        self.nodes.insert(ino, node);
        if let Some(parent) = self.nodes.get_mut(&parent.0) {
            parent.entries.insert(name.to_owned(), ino);
        }
        attr
    }

    fn take(&mut self, parent: INodeNo, name: &OsStr) -> Option<u64> {
        self.nodes.get_mut(&parent.0)?.entries.remove(name)
    }

    pub fn unlink(&mut self, parent: INodeNo, name: &OsStr) {
        if let Some(ino) = self.take(parent, name)
            && let Some(node) = self.nodes.get_mut(&ino)
        {
            node.unlinked = true;
        }
    }

    pub fn rename(&mut self, (parent, name): (INodeNo, &OsStr), (new_parent, new_name): (INodeNo, &OsStr)) {
        if let Some(ino) = self.take(parent, name)
            && let Some(dir) = self.nodes.get_mut(&new_parent.0)
        {
            dir.entries.insert(new_name.to_owned(), ino);
        }
    }

    pub fn write(&mut self, ino: u64, offset: u64, data: &[u8]) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            let end = offset as usize + data.len();
            if node.data.len() < end {
                node.data.resize(end, 0);
            }
            node.data[offset as usize..end].copy_from_slice(data);
        }
    }

    /// What follows a place in a listing; "." and ".." are left out, which nobody misses here.
    pub fn list(&self, dir: INodeNo, offset: u64) -> impl Iterator<Item = (u64, &OsString, u64, &Node)> {
        let entries = self.nodes.get(&dir.0).into_iter().flat_map(|node| node.entries.iter());
        entries
            .enumerate()
            .skip(offset as usize)
            .filter_map(|(i, (name, ino))| Some((i as u64 + 1, name, *ino, self.nodes.get(ino)?)))
    }
}

impl NullFs {
    fn new(transport: Transport) -> Self {
        let root = Node {
            kind: FileType::Directory,
            mode: 0o777,
            data: Vec::new(),
            entries: BTreeMap::new(),
            unlinked: false,
        };
        let state = Nodes {
            nodes: HashMap::from([(1, root)]),
            next: 2,
        };
        Self {
            state: Mutex::new(state),
            transport,
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Nodes> {
        self.state.lock().expect("nothing panics under it")
    }
}

/// As fuser calls it.
struct Classic(Arc<NullFs>);

impl std::ops::Deref for Classic {
    type Target = NullFs;

    fn deref(&self) -> &NullFs {
        &self.0
    }
}

impl Filesystem for Classic {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_WRITEBACK_CACHE
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        wanted.set(InitFlags::FUSE_OVER_IO_URING, self.transport == Transport::IoUring);
        let offered = wanted & config.capabilities();
        config
            .add_capabilities(offered)
            .map_err(|_| io::Error::other("capabilities"))?;
        config
            .set_max_write(REQUEST_BYTES_MAX)
            .map_err(|_| io::Error::other("max_write"))?;
        config
            .set_max_background(32)
            .map_err(|_| io::Error::other("max_background"))?;
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.lock();
        let found = state.find(parent, name).map(|ino| attr(ino, &state.nodes[&ino]));
        drop(state);
        match found {
            Some(attr) => reply.entry(&FOREVER, &attr, GENERATION),
            None => {
                let absent = Node {
                    kind: FileType::RegularFile,
                    mode: 0,
                    data: Vec::new(),
                    entries: BTreeMap::new(),
                    unlinked: false,
                };
                reply.entry(&FOREVER, &attr(0, &absent), GENERATION);
            }
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, _count: u64) {
        let mut state = self.lock();
        if state.nodes.get(&ino.0).is_some_and(|node| node.unlinked) {
            state.nodes.remove(&ino.0);
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.lock().nodes.get(&ino.0).map(|node| attr(ino.0, node));
        match found {
            Some(attr) => reply.attr(&FOREVER, &attr),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.lock();
        let changed = state.nodes.get_mut(&ino.0).map(|node| {
            if let Some(size) = size {
                node.data.resize(size as usize, 0);
            }
            if let Some(mode) = mode {
                node.mode = (mode & 0o7777) as u16;
            }
            attr(ino.0, node)
        });
        drop(state);
        match changed {
            Some(attr) => reply.attr(&FOREVER, &attr),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn mkdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let attr = self.lock().add(parent, name, FileType::Directory, mode);
        reply.entry(&FOREVER, &attr, GENERATION);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.lock().unlink(parent, name);
        reply.ok();
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.unlink(request, parent, name, reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.lock().rename((parent, name), (new_parent, new_name));
        reply.ok();
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(HANDLE, FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let attr = self.lock().add(parent, name, FileType::RegularFile, mode);
        reply.created(&FOREVER, &attr, GENERATION, HANDLE, FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.lock();
        match state.nodes.get(&ino.0) {
            Some(node) => {
                let start = (offset as usize).min(node.data.len());
                let end = (start + size as usize).min(node.data.len());
                reply.data(&node.data[start..end]);
            }
            None => reply.error(Errno::ESTALE),
        }
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.lock().write(ino.0, offset, data);
        reply.written(data.len() as u32);
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _request: &Request, dir: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for (cookie, name, ino, node) in self.lock().list(dir, offset) {
            if reply.add(INodeNo(ino), cookie, node.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _request: &Request,
        dir: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        for (cookie, name, ino, node) in self.lock().list(dir, offset) {
            if reply.add(INodeNo(ino), cookie, name, &FOREVER, &attr(ino, node), GENERATION) {
                break;
            }
        }
        reply.ok();
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
    let mut config = Config::default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    config.n_threads = Some(cores.clamp(2, 8));
    let (null, of_rings) = (Arc::new(NullFs::new(transport)), device.try_clone()?);
    let session = Session::from_fd(Classic(Arc::clone(&null)), device, SessionACL::All, config)?;
    let connection = Connection {
        request_bytes_max: REQUEST_BYTES_MAX as usize,
        device: None,
    };
    let rings = match transport {
        Transport::Classic => None,
        Transport::IoUring => Some(Rings::start(&of_rings, connection, &null)?),
    };
    drop(of_rings);
    session.run()?;
    rings.into_iter().for_each(Rings::end);
    Ok(())
}

//! What a POSIX tree is, as naively as it can be said: the one definition of correctness that volumes are measured
//! against. Everything is in maps, every operation is a few lines, nothing is fast.
//!
//! Absent on purpose: times, permissions and inode numbers. Names of files that are open and unlinked are lost here as
//! they are there; the caller keeps the `NodeId`.

use std::collections::{BTreeMap, BTreeSet};

/// Which node of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);
}

/// Why an operation fails, in the words of POSIX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// ENOENT.
    NotFound,
    /// EEXIST.
    Exists,
    /// ENOTDIR.
    NotDirectory,
    /// EISDIR.
    IsDirectory,
    /// ENOTEMPTY.
    NotEmpty,
    /// EINVAL.
    Invalid,
    /// EPERM.
    NotPermitted,
    /// ENODATA.
    NoAttribute,
    /// ENXIO.
    NoSuchOffset,
    /// ENOSPC.
    NoSpace,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Bytes, and which of them are holes is not told.
    File(Vec<u8>),
    /// Names.
    Directory(BTreeMap<Vec<u8>, NodeId>),
    /// A target.
    Symlink(Vec<u8>),
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it holds.
    pub content: Content,
    /// Names of it; a directory counts itself and its subdirectories.
    pub nlink: u32,
    /// Parent of a directory.
    pub parent: NodeId,
    /// Permission bits.
    pub mode: u16,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    nodes: BTreeMap<NodeId, Node>,
    open: BTreeSet<NodeId>,
    /// Files that never had a name: they may get one.
    nameless: BTreeSet<NodeId>,
    next: u64,
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

fn node(content: Content, mode: u16, parent: NodeId) -> Node {
    let nlink = if matches!(content, Content::Directory(_)) { 2 } else { 1 };
    Node {
        content,
        nlink,
        parent,
        mode,
        xattrs: BTreeMap::new(),
    }
}

impl Model {
    /// An empty root.
    pub fn new() -> Self {
        let root = node(Content::Directory(BTreeMap::new()), 0o755, NodeId::ROOT);
        Self {
            nodes: BTreeMap::from([(NodeId::ROOT, root)]),
            open: BTreeSet::new(),
            nameless: BTreeSet::new(),
            next: 1,
        }
    }

    /// A node that exists.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    /// All nodes, and those that only an open description keeps.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: the root is always there.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// All directories that have a name, in order.
    pub fn directories(&self) -> Vec<NodeId> {
        let living = self
            .nodes
            .iter()
            .filter(|(_, node)| matches!(node.content, Content::Directory(_)) && node.nlink > 0);
        living.map(|(id, _)| *id).collect()
    }

    /// All files, also those that are open without a name.
    pub fn files(&self) -> Vec<NodeId> {
        let files = self
            .nodes
            .iter()
            .filter(|(_, node)| matches!(node.content, Content::File(_)));
        files.map(|(id, _)| *id).collect()
    }

    /// Names of a directory.
    pub fn names(&self, dir: NodeId) -> &BTreeMap<Vec<u8>, NodeId> {
        match &self.nodes[&dir].content {
            Content::Directory(names) => names,
            Content::File(_) | Content::Symlink(_) => panic!("{dir:?} is no directory"),
        }
    }

    fn names_mut(&mut self, dir: NodeId) -> &mut BTreeMap<Vec<u8>, NodeId> {
        match &mut self.get(dir).content {
            Content::Directory(names) => names,
            Content::File(_) | Content::Symlink(_) => panic!("{dir:?} is no directory"),
        }
    }

    fn get(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("the node exists")
    }

    fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.nodes[&id].content, Content::Directory(_))
    }

    /// Bytes of a file.
    pub fn bytes(&self, file: NodeId) -> &Vec<u8> {
        match &self.nodes[&file].content {
            Content::File(bytes) => bytes,
            Content::Directory(_) | Content::Symlink(_) => panic!("{file:?} is no file"),
        }
    }

    fn bytes_mut(&mut self, file: NodeId) -> &mut Vec<u8> {
        match &mut self.get(file).content {
            Content::File(bytes) => bytes,
            Content::Directory(_) | Content::Symlink(_) => panic!("{file:?} is no file"),
        }
    }

    /// Makes a node under a new name.
    pub fn make(&mut self, dir: NodeId, name: &[u8], content: Content, mode: u16) -> Result<NodeId, Refused> {
        if self.names(dir).contains_key(name) {
            return Err(Refused::Exists);
        }
        let id = NodeId(self.next);
        self.next += 1;
        self.nodes.insert(id, node(content, mode, dir));
        self.enter(dir, name, id);
        Ok(id)
    }

    /// open(2) with O_TMPFILE: a file without a name, which is open.
    pub fn make_nameless(&mut self, mode: u16) -> NodeId {
        let id = NodeId(self.next);
        self.next += 1;
        let mut file = node(Content::File(Vec::new()), mode, NodeId::ROOT);
        file.nlink = 0;
        self.nodes.insert(id, file);
        self.nameless.insert(id);
        self.open(id);
        id
    }

    fn enter(&mut self, dir: NodeId, name: &[u8], id: NodeId) {
        self.names_mut(dir).insert(name.to_vec(), id);
        if self.is_directory(id) {
            self.get(dir).nlink += 1;
            self.get(id).parent = dir;
        }
    }

    fn leave(&mut self, dir: NodeId, name: &[u8]) -> NodeId {
        let id = self.names_mut(dir).remove(name).expect("the name exists");
        if self.is_directory(id) {
            self.get(dir).nlink -= 1;
        }
        id
    }

    fn drop_name(&mut self, id: NodeId) {
        let is_directory = self.is_directory(id);
        let node = self.get(id);
        node.nlink = if is_directory { 0 } else { node.nlink - 1 };
        self.collect(id);
    }

    fn collect(&mut self, id: NodeId) {
        if self.nodes[&id].nlink == 0 && !self.open.contains(&id) {
            self.nodes.remove(&id);
            self.nameless.remove(&id);
        }
    }

    /// Opens a node: it stays although its last name goes.
    pub fn open(&mut self, id: NodeId) {
        self.open.insert(id);
    }

    /// Closes it.
    pub fn close(&mut self, id: NodeId) {
        if self.open.remove(&id) {
            self.collect(id);
        }
    }

    /// True if it is open.
    pub fn is_open(&self, id: NodeId) -> bool {
        self.open.contains(&id)
    }

    /// All open nodes.
    pub fn open_nodes(&self) -> Vec<NodeId> {
        self.open.iter().copied().collect()
    }

    /// link(2).
    pub fn link(&mut self, id: NodeId, dir: NodeId, name: &[u8]) -> Result<(), Refused> {
        if self.is_directory(id) {
            return Err(Refused::NotPermitted);
        }
        if self.names(dir).contains_key(name) {
            return Err(Refused::Exists);
        }
        if self.nodes[&id].nlink == 0 && !self.nameless.remove(&id) {
            return Err(Refused::NotFound);
        }
        self.enter(dir, name, id);
        self.get(id).nlink += 1;
        Ok(())
    }

    /// unlink(2).
    pub fn unlink(&mut self, dir: NodeId, name: &[u8]) -> Result<(), Refused> {
        let id = *self.names(dir).get(name).ok_or(Refused::NotFound)?;
        if self.is_directory(id) {
            return Err(Refused::IsDirectory);
        }
        self.leave(dir, name);
        self.drop_name(id);
        Ok(())
    }

    /// rmdir(2).
    pub fn rmdir(&mut self, dir: NodeId, name: &[u8]) -> Result<(), Refused> {
        let id = *self.names(dir).get(name).ok_or(Refused::NotFound)?;
        if !self.is_directory(id) {
            return Err(Refused::NotDirectory);
        }
        if !self.names(id).is_empty() {
            return Err(Refused::NotEmpty);
        }
        self.leave(dir, name);
        self.drop_name(id);
        Ok(())
    }

    fn is_below(&self, mut at: NodeId, above: NodeId) -> bool {
        loop {
            if at == above {
                return true;
            }
            if at == NodeId::ROOT {
                return false;
            }
            at = self.nodes[&at].parent;
        }
    }

    /// renameat2(2) with no flag, RENAME_NOREPLACE (`replace` false) or RENAME_EXCHANGE.
    pub fn rename(
        &mut self,
        (from, name): (NodeId, &[u8]),
        (to, new_name): (NodeId, &[u8]),
        replace: bool,
        exchange: bool,
    ) -> Result<(), Refused> {
        let moved = *self.names(from).get(name).ok_or(Refused::NotFound)?;
        let other = self.names(to).get(new_name).copied();
        if other.is_some() && !replace {
            return Err(Refused::Exists);
        }
        if exchange {
            let other = other.ok_or(Refused::NotFound)?;
            let cycle = |id: NodeId, into: NodeId| self.is_directory(id) && self.is_below(into, id);
            if other != moved && (cycle(moved, to) || cycle(other, from)) {
                return Err(Refused::Invalid);
            }
            if other != moved {
                self.leave(from, name);
                self.leave(to, new_name);
                self.enter(to, new_name, moved);
                self.enter(from, name, other);
            }
            return Ok(());
        }
        if other == Some(moved) {
            return Ok(());
        }
        if self.is_directory(moved) && self.is_below(to, moved) {
            return Err(Refused::Invalid);
        }
        if let Some(other) = other {
            match (self.is_directory(moved), self.is_directory(other)) {
                (true, true) if !self.names(other).is_empty() => return Err(Refused::NotEmpty),
                (true, false) => return Err(Refused::NotDirectory),
                (false, true) => return Err(Refused::IsDirectory),
                (true, true) | (false, false) => {}
            }
            self.leave(to, new_name);
            self.drop_name(other);
        }
        self.leave(from, name);
        self.enter(to, new_name, moved);
        Ok(())
    }

    /// pwrite(2).
    pub fn write(&mut self, file: NodeId, offset: usize, data: &[u8]) {
        let bytes = self.bytes_mut(file);
        if !data.is_empty() {
            bytes.resize(bytes.len().max(offset + data.len()), 0);
            bytes[offset..offset + data.len()].copy_from_slice(data);
        }
    }

    /// ftruncate(2).
    pub fn truncate(&mut self, file: NodeId, size: usize) {
        self.bytes_mut(file).resize(size, 0);
    }

    /// fallocate(2) with FALLOC_FL_PUNCH_HOLE, or FALLOC_FL_ZERO_RANGE (which may extend).
    pub fn zero(&mut self, file: NodeId, offset: usize, len: usize, extend: bool) {
        let bytes = self.bytes_mut(file);
        if extend && offset + len > bytes.len() {
            bytes.resize(offset + len, 0);
        }
        let end = (offset + len).min(bytes.len());
        if offset < end {
            bytes[offset..end].fill(0);
        }
    }

    /// chmod(2).
    pub fn chmod(&mut self, id: NodeId, mode: u16) {
        self.get(id).mode = mode;
    }

    /// setxattr(2).
    pub fn set_xattr(&mut self, id: NodeId, name: &[u8], value: &[u8]) {
        self.get(id).xattrs.insert(name.to_vec(), value.to_vec());
    }

    /// removexattr(2).
    pub fn remove_xattr(&mut self, id: NodeId, name: &[u8]) -> Result<(), Refused> {
        self.get(id).xattrs.remove(name).map(drop).ok_or(Refused::NoAttribute)
    }

    /// What is left after a restart: nothing is open.
    #[must_use]
    pub fn after_restart(&self) -> Self {
        let mut after = self.clone();
        for id in after.open_nodes() {
            after.close(id);
        }
        after
    }

    /// The tree as text, one line for each name: two trees with the same lines are the same to every program.
    pub fn lines(&self) -> Vec<String> {
        let mut groups: BTreeMap<NodeId, usize> = BTreeMap::new();
        let mut lines = Vec::new();
        self.describe(NodeId::ROOT, "", &mut groups, &mut lines);
        lines
    }

    fn describe(&self, id: NodeId, path: &str, groups: &mut BTreeMap<NodeId, usize>, lines: &mut Vec<String>) {
        let node = &self.nodes[&id];
        let count = groups.len();
        let group = *groups.entry(id).or_insert(count);
        let xattrs: Vec<String> = node
            .xattrs
            .iter()
            .map(|(name, value)| format!("{}={}", text(name), digest(value)))
            .collect();
        let what = match &node.content {
            Content::File(bytes) => format!("file {} bytes {}", bytes.len(), digest(bytes)),
            Content::Directory(names) => format!("directory {} names", names.len()),
            Content::Symlink(target) => format!("link to {}", text(target)),
        };
        lines.push(format!(
            "{path}/ #{group} {what} mode {:o} nlink {} {}",
            node.mode,
            node.nlink,
            xattrs.join(",")
        ));
        if let Content::Directory(names) = &node.content {
            for (name, child) in names {
                self.describe(*child, &format!("{path}/{}", text(name)), groups, lines);
            }
        }
    }
}

/// Bytes as text for messages.
pub fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// A short name of some bytes: FNV-1a.
pub fn digest(bytes: &[u8]) -> String {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

//! Extended attributes in RAM: all of an inode, or none.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{EvictKey, Need, ROW_BYTES, Stop, Tables};
use crate::ids::{Generation, InodeNo};

/// The attributes of one inode.
#[derive(Debug)]
pub(crate) struct XattrSet {
    values: BTreeMap<Bytes, Bytes>,
    changed: Generation,
    used: bool,
    queued: bool,
}

impl XattrSet {
    fn clean(values: BTreeMap<Bytes, Bytes>) -> Self {
        Self {
            values,
            changed: Generation(0),
            used: false,
            queued: true,
        }
    }

    fn cost(&self) -> u64 {
        ROW_BYTES
            + self
                .values
                .iter()
                .map(|(name, value)| ROW_BYTES + (name.len() + value.len()) as u64)
                .sum::<u64>()
    }
}

impl Tables {
    /// All attributes of an inode.
    ///
    /// # Errors
    /// Those of `inode`; a need.
    pub fn xattrs(&mut self, ino: InodeNo) -> Result<&BTreeMap<Bytes, Bytes>, Stop> {
        let has_any = self.inode(ino)?.has_xattrs;
        if !self.xattrs.contains_key(&ino) {
            if has_any {
                return Err(Stop::Need(Need::Xattrs(ino)));
            }
            self.bytes += ROW_BYTES;
            self.queue(EvictKey::Xattrs(ino));
            self.xattrs.insert(ino, XattrSet::clean(BTreeMap::new()));
        }
        let set = self.xattrs.get_mut(&ino).expect("put there just now");
        set.used = true;
        Ok(&set.values)
    }

    /// Sets or removes an attribute of an inode whose attributes `xattrs` has just found.
    pub fn set_xattr(&mut self, ino: InodeNo, name: &[u8], value: Option<Bytes>) {
        let name = Bytes::copy_from_slice(name);
        self.note_xattr(ino, &name);
        let has_xattrs = self.put_xattr(ino, name, value);
        self.change_inode(ino, |row| row.has_xattrs = has_xattrs);
    }

    /// Sets or removes an attribute. True if there are any then; the row of the inode does not say so yet.
    pub(super) fn put_xattr(&mut self, ino: InodeNo, name: Bytes, value: Option<Bytes>) -> bool {
        let set = self
            .xattrs
            .get_mut(&ino)
            .expect("the operation has found the attributes");
        let before = set.cost();
        self.open.bytes += ROW_BYTES + (name.len() + value.as_ref().map_or(0, Bytes::len)) as u64;
        match value {
            Some(value) => set.values.insert(name.clone(), value),
            None => set.values.remove(&name),
        };
        set.changed = self.open.number;
        self.bytes = self.bytes + set.cost() - before;
        let has_xattrs = !set.values.is_empty();
        self.open.xattrs.insert((ino, name));
        has_xattrs
    }

    pub(super) fn xattr_value(&self, ino: InodeNo, name: &Bytes) -> Option<Bytes> {
        self.xattrs.get(&ino)?.values.get(name).cloned()
    }

    pub(super) fn load_xattrs(&mut self, ino: InodeNo, values: BTreeMap<Bytes, Bytes>) {
        if self.xattrs.contains_key(&ino) {
            return;
        }
        let set = XattrSet::clean(values);
        self.bytes += set.cost();
        self.xattrs.insert(ino, set);
        self.queue(EvictKey::Xattrs(ino));
    }

    pub(super) fn release_xattrs(&mut self, ino: InodeNo, up_to: Generation) {
        let Some(set) = self.xattrs.get_mut(&ino) else { return };
        if set.changed <= up_to && !set.queued {
            set.queued = true;
            self.queue(EvictKey::Xattrs(ino));
        }
    }

    pub(super) fn evict_xattrs(&mut self, ino: InodeNo, up_to: Generation) {
        let Some(set) = self.xattrs.get_mut(&ino) else { return };
        set.queued = false;
        if set.changed > up_to {
            return;
        }
        if std::mem::take(&mut set.used) {
            set.queued = true;
            self.queue(EvictKey::Xattrs(ino));
            return;
        }
        self.bytes -= set.cost();
        self.xattrs.remove(&ino);
    }
}

//! Entries of directories in RAM: present, known to be absent, or unknown.

use bytes::Bytes;

use super::load::LoadedListing;
use super::{EvictKey, Need, ROW_BYTES, RangeSet, Slot, Stop, Tables};
use crate::dirent::{COOKIES_END, cookie_of};
use crate::ids::{DirCookie, Generation, InodeNo};
use crate::row::{DirentRow, Key};

/// Which entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DirentKey {
    /// The directory.
    pub dir: InodeNo,
    /// Place in its listing.
    pub cookie: DirCookie,
    /// Name.
    pub name: Bytes,
}

impl DirentKey {
    /// The key of a name. Copies it.
    pub fn new(dir: InodeNo, name: &[u8]) -> Self {
        Self {
            dir,
            cookie: cookie_of(name),
            name: Bytes::copy_from_slice(name),
        }
    }

    /// The tree's key.
    pub fn row_key(&self) -> Key {
        Key::Dirent {
            dir: self.dir,
            cookie: self.cookie,
            name: self.name.clone(),
        }
    }

    fn first(dir: InodeNo, cookie: DirCookie) -> Self {
        Self {
            dir,
            cookie,
            name: Bytes::new(),
        }
    }

    fn cost(&self) -> u64 {
        ROW_BYTES + self.name.len() as u64
    }
}

impl Tables {
    /// What a name stands for; `None` if there is no such entry.
    ///
    /// # Errors
    /// A need if that is not known.
    pub fn dirent(&mut self, dir: InodeNo, name: &[u8]) -> Result<Option<DirentRow>, Stop> {
        let first = DirentKey::first(dir, cookie_of(name));
        let cookie = first.cookie;
        for (key, slot) in self.dirents.range_mut(first..) {
            if key.dir != dir || key.cookie != cookie {
                break;
            }
            if key.name == name {
                slot.used = true;
                return Ok(slot.value);
            }
        }
        match self.listings.get(&dir).and_then(|known| known.covering(cookie.0)) {
            Some(_) => Ok(None),
            None => Err(Stop::Need(Need::Dirent(DirentKey::new(dir, name)))),
        }
    }

    /// Puts or removes an entry that `dirent` has just looked at.
    pub fn set_dirent(&mut self, dir: InodeNo, name: &[u8], row: Option<DirentRow>) {
        let key = DirentKey::new(dir, name);
        self.note_dirent(&key);
        match self.dirents.get_mut(&key) {
            Some(slot) => {
                slot.value = row;
                slot.used = true;
                if slot.changed == self.open.number {
                    return;
                }
                slot.changed = self.open.number;
            }
            None => {
                let mut slot = Slot::clean(row);
                slot.stored = false;
                slot.changed = self.open.number;
                self.bytes += key.cost();
                self.dirents.insert(key.clone(), slot);
            }
        }
        self.open.bytes += key.cost();
        self.open.dirents.insert(key);
    }

    /// Notes that a directory is new: all its entries are here.
    pub fn know_empty_directory(&mut self, dir: InodeNo) {
        self.listings.insert(dir, RangeSet::all());
    }

    /// Entries from `from` on, in order, at most `entries_max` (but never a part of those with one cookie).
    ///
    /// # Errors
    /// A need where the listing is not known.
    pub fn list(
        &mut self,
        dir: InodeNo,
        from: DirCookie,
        entries_max: usize,
    ) -> Result<Vec<(DirentKey, DirentRow)>, Stop> {
        let known_end = match self.listings.get(&dir).and_then(|known| known.covering(from.0)) {
            Some((_, end)) => end,
            None => return Err(Stop::Need(Need::Listing { dir, from })),
        };
        let mut found: Vec<(DirentKey, DirentRow)> = Vec::new();
        for (key, slot) in self.dirents.range_mut(DirentKey::first(dir, from)..) {
            if key.dir != dir || key.cookie.0 >= known_end {
                break;
            }
            let Some(row) = slot.value else { continue };
            if found.len() >= entries_max && found.last().is_some_and(|(last, _)| last.cookie != key.cookie) {
                return Ok(found);
            }
            slot.used = true;
            found.push((key.clone(), row));
        }
        if found.is_empty() && known_end < COOKIES_END {
            return Err(Stop::Need(Need::Listing {
                dir,
                from: DirCookie(known_end),
            }));
        }
        Ok(found)
    }

    /// Puts what the tree holds where nothing is known.
    pub(super) fn load_dirent(&mut self, key: DirentKey, row: Option<DirentRow>) {
        if self.dirents.contains_key(&key) {
            return;
        }
        self.bytes += key.cost();
        let mut slot = Slot::clean(row);
        slot.queued = true;
        self.queue(EvictKey::Dirent(key.clone()));
        self.dirents.insert(key, slot);
    }

    /// Puts a page of a listing that the tree holds.
    pub(super) fn load_listing(&mut self, loaded: LoadedListing) {
        let LoadedListing { dir, from, until, rows } = loaded;
        for (key, row) in rows {
            self.load_dirent(key, Some(row));
        }
        self.listings.entry(dir).or_default().insert(from, until);
    }

    pub(super) fn release_dirent(&mut self, key: &DirentKey, up_to: Generation) {
        let Some(slot) = self.dirents.get_mut(key) else { return };
        if slot.changed > up_to || slot.queued {
            return;
        }
        if slot.value.is_none() {
            // The tree says the same now. Where the listing is known nothing is lost; elsewhere it is asked again.
            self.dirents.remove(key);
            self.bytes -= key.cost();
            return;
        }
        slot.queued = true;
        self.queue(EvictKey::Dirent(key.clone()));
    }

    pub(super) fn evict_dirent(&mut self, key: &DirentKey, up_to: Generation) {
        let Some(slot) = self.dirents.get_mut(key) else { return };
        slot.queued = false;
        if slot.changed > up_to {
            return;
        }
        if std::mem::take(&mut slot.used) {
            slot.queued = true;
            self.queue(EvictKey::Dirent(key.clone()));
            return;
        }
        let present = slot.value.is_some();
        self.dirents.remove(key);
        self.bytes -= key.cost();
        if present {
            self.note_cookies_unknown(key.dir, key.cookie);
        }
    }

    /// Forgets what is known of a directory that is gone.
    pub(super) fn drop_listing(&mut self, dir: InodeNo) {
        self.listings.remove(&dir);
    }
}

/// All rows of a directory from a cookie on.
pub(super) fn listing_bounds(dir: InodeNo, from: DirCookie) -> (Key, Key) {
    (
        Key::Dirent {
            dir,
            cookie: from,
            name: Bytes::new(),
        },
        Key::Dirent {
            dir: dir.next(),
            cookie: DirCookie(0),
            name: Bytes::new(),
        },
    )
}

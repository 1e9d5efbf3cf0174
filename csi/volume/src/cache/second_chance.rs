//! Values by key, bounded by bytes: those that were used again outlive those that were not.
//!
//! Caller: `cache.rs`. Absent: locks, and how many bytes there may be.

use std::collections::{HashMap, VecDeque};

use super::FrameKey;

/// 128 bytes: what an entry costs in memory besides its value, about.
pub(super) const ENTRY_BYTES: u64 = 128;

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: u64,
    used: bool,
}

/// Values of which the oldest goes first, unless it was used since its last turn.
#[derive(Debug)]
pub(super) struct SecondChance<V> {
    by_key: HashMap<FrameKey, Entry<V>>,
    /// In the order of arrival; the clock hand is at the front.
    order: VecDeque<FrameKey>,
    bytes: u64,
}

impl<V> Default for SecondChance<V> {
    fn default() -> Self {
        Self {
            by_key: HashMap::new(),
            order: VecDeque::new(),
            bytes: 0,
        }
    }
}

impl<V: Clone> SecondChance<V> {
    /// What all of them cost.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A value that is about to be used.
    pub fn get(&mut self, key: FrameKey) -> Option<V> {
        let entry = self.by_key.get_mut(&key)?;
        entry.used = true;
        Some(entry.value.clone())
    }

    pub fn contains(&self, key: FrameKey) -> bool {
        self.by_key.contains_key(&key)
    }

    /// Keeps a value of so many bytes.
    pub fn put(&mut self, key: FrameKey, value: V, bytes: u64) {
        let bytes = bytes + ENTRY_BYTES;
        let entry = Entry {
            value,
            bytes,
            used: false,
        };
        match self.by_key.insert(key, entry) {
            Some(before) => self.bytes -= before.bytes,
            None => self.order.push_back(key),
        }
        self.bytes += bytes;
    }

    /// Drops values until the others cost no more than this.
    pub fn shrink_to(&mut self, bytes_max: u64) {
        while self.bytes > bytes_max {
            let Some(oldest) = self.order.pop_front() else { return };
            match self.by_key.get_mut(&oldest) {
                Some(entry) if entry.used => {
                    entry.used = false;
                    self.order.push_back(oldest);
                }
                Some(entry) => {
                    self.bytes -= entry.bytes;
                    self.by_key.remove(&oldest);
                }
                None => {}
            }
        }
    }

    pub fn remove(&mut self, key: FrameKey) {
        if let Some(entry) = self.by_key.remove(&key) {
            self.bytes -= entry.bytes;
            self.order.retain(|other| *other != key);
        }
    }
}

//! One file of a tree: its blocks one by one, and which of them can be read.
//!
//! Invariant: no bytes make us end: a file whose reading breaks down counts as one that cannot be read.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use slatedb::manifest::SsTableHandle;
use slatedb::{SstFile, SstReader, ValueDeletable};

use super::watched::Watched;
use super::{Lost, Wrong};
use crate::row::codec::decode_pair;
use crate::row::{Applied, Row};
use crate::tree::TreeError;
use crate::tree::slate::outward;

/// A file that is listed, or that a manifest names.
pub(super) struct Found {
    pub key: String,
    reader: Arc<SstReader>,
    name: String,
    handle: Option<SsTableHandle>,
}

/// A file as far as it can be read.
#[derive(Default)]
pub(super) struct TreeFile {
    pub key: String,
    /// `None` where nothing of it can be read.
    pub file: Option<Arc<SstFile>>,
    /// The first key in it.
    pub first: Bytes,
    pub blocks: usize,
    /// Those that cannot be read, in order.
    pub bad: Vec<usize>,
    /// Commits that rows here say the tree contains, and the numbers of the batches that said so.
    pub applied: Vec<(Applied, u64)>,
    pub wrong: Vec<Wrong>,
}

/// The first key after this one.
fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.put_u8(0);
    next.freeze()
}

impl Found {
    pub fn new(reader: Arc<SstReader>, key: String, name: String, handle: Option<SsTableHandle>) -> Self {
        Self {
            key,
            reader,
            name,
            handle,
        }
    }

    /// A file that a manifest names, in the folder of a tree.
    pub fn named(reader: Arc<SstReader>, folder: &str, handle: SsTableHandle) -> Self {
        let name = handle.id.value().to_string();
        let key = format!("{folder}/compacted/{name}.sst");
        Self::new(reader, key, name, Some(handle))
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// `TreeError` where the store does not answer.
    pub async fn look(self, store: &Arc<Watched>) -> Result<TreeFile, TreeError> {
        let (key, range) = (self.key.clone(), self.range());
        let store = Arc::clone(store);
        // A task of its own: what a library does not expect of a file must not end the repair.
        match tokio::spawn(self.read(store)).await {
            Ok(read) => read,
            Err(error) => Ok(TreeFile::unreadable(
                key,
                range,
                format!("reading it broke down: {error}"),
            )),
        }
    }

    /// The keys that may be in it.
    fn range(&self) -> Lost {
        let info = self.handle.as_ref().map(|handle| &handle.info);
        match info.map(|info| (info.first_entry.clone(), info.last_entry.clone())) {
            Some((Some(from), last)) => Lost {
                from,
                until: last.map(|last| after(&last)),
            },
            Some((None, _)) | None => Lost::everything(),
        }
    }

    async fn read(self, store: Arc<Watched>) -> Result<TreeFile, TreeError> {
        let range = self.range();
        let opened = match self.handle {
            Some(handle) => self.reader.open_with_handle(handle),
            None => match self.name.parse() {
                Ok(id) => self.reader.open(id).await,
                // Nothing of SlateDB's.
                Err(_) => {
                    return Ok(TreeFile {
                        key: self.key,
                        ..TreeFile::default()
                    });
                }
            },
        };
        let file = match opened {
            Ok(file) => Arc::new(file),
            Err(error) => return Ok(TreeFile::unreadable(self.key, range, store.damage(outward(error))?)),
        };
        let index = match file.index().await {
            Ok(index) => index,
            Err(error) => return Ok(TreeFile::unreadable(self.key, range, store.damage(outward(error))?)),
        };
        let first = index.get(0).map(|(_, key)| Bytes::copy_from_slice(key));
        let mut found = TreeFile {
            key: self.key,
            file: Some(Arc::clone(&file)),
            first: first.unwrap_or_default(),
            blocks: index.len(),
            ..TreeFile::default()
        };
        for block in 0..found.blocks {
            let from = index.get(block).map(|(_, key)| Bytes::copy_from_slice(key));
            let next = index.get(block + 1).map(|(_, key)| after(key));
            let keys = Lost {
                from: from.unwrap_or_default(),
                // The first key of a block may be in the one before it as well, in another version.
                until: next.or_else(|| file.info().last_entry.as_deref().map(after)),
            };
            match file.read_block(block).await {
                Ok(rows) => rows
                    .iter()
                    .for_each(|row| found.look_at_row(&row.key, &row.value, row.seq)),
                Err(error) => {
                    let detail = store.damage(outward(error))?;
                    found.lost_block(block, keys, &detail);
                }
            }
        }
        Ok(found)
    }
}

impl TreeFile {
    fn unreadable(key: String, lost: Lost, detail: String) -> Self {
        let wrong = Wrong {
            object: key.clone(),
            detail,
            lost: Some(lost),
        };
        Self {
            key,
            wrong: vec![wrong],
            ..Self::default()
        }
    }

    fn look_at_row(&mut self, key: &Bytes, value: &ValueDeletable, seq: u64) {
        let Some(bytes) = value_of(value) else { return };
        match decode_pair(key, bytes) {
            Ok((_, Row::Applied(applied))) => self.applied.push((applied, seq)),
            Ok(_) => {}
            Err(error) => self.wrong.push(Wrong {
                object: self.key.clone(),
                detail: format!("a row does not decode: {error}"),
                lost: Some(Lost {
                    from: key.clone(),
                    until: Some(after(key)),
                }),
            }),
        }
    }

    /// Neighbouring blocks are one damage.
    fn lost_block(&mut self, block: usize, keys: Lost, detail: &str) {
        let last = self.bad.last().copied();
        self.bad.push(block);
        let open = self.wrong.last_mut().filter(|_| block > 0 && last == Some(block - 1));
        match open.and_then(|wrong| wrong.lost.as_mut()) {
            Some(lost) => lost.until = keys.until,
            None => self.wrong.push(Wrong {
                object: self.key.clone(),
                detail: format!("block {block}: {detail}"),
                lost: Some(keys),
            }),
        }
    }
}

/// The bytes of a row, if it is there.
pub(super) fn value_of(value: &ValueDeletable) -> Option<&Bytes> {
    match value {
        ValueDeletable::Value(bytes) | ValueDeletable::Merge(bytes) => Some(bytes),
        ValueDeletable::Tombstone => None,
    }
}

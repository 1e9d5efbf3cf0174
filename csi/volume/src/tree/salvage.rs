//! What can still be read of a tree whose own files are damaged: which files it has, which of their blocks are sound, and all
//! rows of those, each in its newest version.
//!
//! SlateDB opens a tree by its newest manifest or not at all, and a scan ends at the first block that is damaged. Here every file
//! is read by itself. Rows have the number of the batch that wrote them, so which of two versions is the newer one is known
//! without a manifest; only what a compaction has dropped for good can come back from files that it has replaced.
//! Invariant: what the store does not answer is an error, never damage.
//! Callers: `check/tree_files.rs`, `check/repair/tree.rs`. Absent: what is done about it, and the journal.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use slatedb::admin::{Admin, AdminBuilder};
use slatedb::config::DbReaderOptions;
use slatedb::manifest::{SsTableHandle, VersionedManifest};
use slatedb::{CacheTarget, DbCacheManagerOps, DbReader, DbReaderMode, SstReader};

use super::blocks::BlockCache;
use super::checkpoint;
use super::object_store::BucketStore;
use super::slate::{FOLDER, SumStats, outward};
use super::{TreeError, reach};
use crate::bucket::{BucketRef, ListRequest};
use crate::lineage::TreeAt;
use crate::row::codec::encode_key;
use crate::row::{Applied, Key};
use file::{Found, TreeFile};
use watched::Watched;

mod file;
mod merge;
mod watched;

pub(crate) use merge::{Merge, Version};

/// 64 MiB of blocks and indexes in RAM: those of some hundred files that are read at the same time.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// Longer than any look takes: a reader stays at the state that it opened.
const NEVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// What says which files belong to the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    /// There is no file of a tree.
    Nothing,
    /// The newest manifest: the state is exactly what it names.
    Newest,
    /// An older manifest, and the files that were made since.
    Older,
    /// No manifest: all files that are there.
    Files,
}

/// Rows that cannot be read: those whose keys, encoded, are from `from` on and before `until`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lost {
    pub from: Bytes,
    /// `None`: to the last key there is.
    pub until: Option<Bytes>,
}

impl Lost {
    /// All rows.
    pub fn everything() -> Self {
        Self {
            from: Bytes::new(),
            until: None,
        }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        self.from <= key && self.until.as_ref().is_none_or(|until| key < until)
    }
}

/// Something that is wrong with a file of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// The file, by its key below the data prefix.
    pub object: String,
    pub detail: String,
    /// Rows that it takes; `None` where all rows can be read without it.
    pub lost: Option<Lost>,
}

/// The files of a tree as they were found.
pub(crate) struct Survey {
    pub base: Base,
    pub wrong: Vec<Wrong>,
    files: Vec<TreeFile>,
    /// Files that no manifest which is believed names: left by a writer or a compaction that did not end.
    unlisted: Vec<TreeFile>,
    /// The manifests that are there.
    manifests: Vec<String>,
    /// The newest that can be read.
    readable: Option<u64>,
    store: Arc<Watched>,
}

impl std::fmt::Debug for Survey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Survey")
            .field("base", &self.base)
            .field("wrong", &self.wrong)
            .finish_non_exhaustive()
    }
}

impl Survey {
    fn new(bucket: &BucketRef) -> Self {
        Self {
            base: Base::Nothing,
            wrong: Vec::new(),
            files: Vec::new(),
            unlisted: Vec::new(),
            manifests: Vec::new(),
            readable: None,
            store: Arc::new(Watched::new(Arc::clone(bucket))),
        }
    }

    fn admin(&self) -> Admin {
        let seen: BucketRef = self.store.clone();
        AdminBuilder::new(FOLDER, Arc::new(BucketStore::new(seen))).build()
    }

    /// Reads every file of the tree below `bucket`, the volume's data folder.
    ///
    /// # Errors
    /// `TreeError` where the store does not answer.
    pub async fn of(bucket: &BucketRef) -> Result<Self, TreeError> {
        let mut survey = Self::new(bucket);
        let admin = survey.admin();
        survey.manifests = listed(bucket, "manifest", ".manifest").await?;
        let manifest = survey.newest_readable(&admin).await?;
        let there = listed(bucket, "compacted", ".sst").await?;
        survey.base = match (&manifest, survey.wrong.is_empty()) {
            (Some(_), true) => Base::Newest,
            (Some(_), false) => Base::Older,
            (None, _) if survey.manifests.is_empty() && there.is_empty() => Base::Nothing,
            (None, _) => Base::Files,
        };
        survey.read_files(manifest.as_ref(), &there).await?;
        if let (Base::Newest, Some(manifest)) = (survey.base, &manifest) {
            survey.look_at_compactions(&admin).await?;
            survey.look_at_bounds().await?;
            // A tree that must be made anew needs no filters.
            if survey.wrong.is_empty() {
                survey.look_at_filters(manifest).await?;
            }
        }
        Ok(survey)
    }

    /// The commits that the tree has said it contains, and the batches that said so, in order.
    pub fn points(&self) -> Vec<(Applied, u64)> {
        let mut points: Vec<_> = self.files.iter().flat_map(|file| file.applied.clone()).collect();
        points.sort_unstable();
        points.dedup();
        points
    }

    /// The last of them.
    pub fn applied(&self) -> Option<Applied> {
        Some(self.points().last()?.0)
    }

    /// The last commit in files that the manifest does not name.
    pub fn unlisted_applied(&self) -> Option<(Applied, &str)> {
        let points = |file: &TreeFile| file.applied.iter().map(|(applied, _)| *applied).max();
        let all = self.unlisted.iter();
        all.filter_map(|file| Some((points(file)?, file.key.as_str()))).max()
    }

    /// The newest manifest is gone, and the one that is there now is an older one: files that it does not name count as well.
    pub fn distrust_manifest(&mut self, detail: String) {
        self.base = Base::Older;
        self.wrong.push(Wrong {
            object: format!("{FOLDER}/manifest/"),
            detail,
            lost: None,
        });
        for file in std::mem::take(&mut self.unlisted) {
            self.wrong.extend(file.wrong.iter().cloned());
            self.files.push(file);
        }
    }

    /// Of the tree of a clone nothing says which files of its source it began with: those of its beginning are read as well.
    ///
    /// # Errors
    /// `TreeError` where the store does not answer.
    pub async fn add_beginning(&mut self, at: TreeAt) -> Result<(), TreeError> {
        let (folder, seen): (String, BucketRef) = (checkpoint::path_of(at), self.store.clone());
        let store = || Arc::new(BucketStore::new(seen.clone()));
        let admin = AdminBuilder::new(folder.clone(), store()).build();
        let marked = match admin.read_manifest(None).await {
            Ok(Some(newest)) => {
                let marks = newest.checkpoints().iter();
                let number = marks
                    .filter(|mark| mark.id == at.checkpoint)
                    .map(|mark| mark.manifest_id)
                    .next();
                match number {
                    Some(number) => admin.read_manifest(Some(number)).await,
                    None => Ok(None),
                }
            }
            other => other,
        };
        let manifest = match marked {
            Ok(Some(manifest)) => manifest,
            missing => {
                let detail = match missing {
                    Err(error) => self.store.damage(outward(error))?,
                    Ok(_) => "the state that the clone began with is gone".to_owned(),
                };
                self.wrong.push(Wrong {
                    object: format!("{folder}/"),
                    detail,
                    lost: Some(Lost::everything()),
                });
                return Ok(());
            }
        };
        let blocks = BlockCache::new(CACHE_BYTES);
        for (folder, handle) in named(&manifest, &folder) {
            let reader = Arc::new(SstReader::new(folder.clone(), store(), Some(blocks.cache()), None));
            let file = Found::named(reader, &folder, handle).look(&self.store).await?;
            self.wrong.extend(file.wrong.iter().cloned());
            self.files.push(file);
        }
        Ok(())
    }

    /// True if `key` is among rows that cannot be read, and may have been newer than what can.
    pub fn has_lost(&self, key: &[u8]) -> bool {
        let lost = self.wrong.iter().filter_map(|wrong| wrong.lost.as_ref());
        lost.into_iter().any(|lost| lost.contains(key))
    }

    /// True if the last commit that the tree contained is known.
    pub fn knows_applied(&self) -> bool {
        self.base == Base::Newest && !self.has_lost(&encode_key(&Key::Applied))
    }

    /// All rows that can be read, in the order of their keys.
    pub fn rows(&self) -> Merge<'_> {
        Merge::of(&self.files, &self.store)
    }

    /// True if the tree is still as it was when it was looked at.
    ///
    /// # Errors
    /// `TreeError` where the store does not answer.
    pub async fn is_current(&self, bucket: &BucketRef) -> Result<bool, TreeError> {
        Ok(listed(bucket, "manifest", ".manifest").await? == self.manifests)
    }

    async fn newest_readable(&mut self, admin: &Admin) -> Result<Option<VersionedManifest>, TreeError> {
        for key in self.manifests.clone().iter().rev() {
            let name = key.rsplit('/').next().unwrap_or_default();
            let Some(number) = name.strip_suffix(".manifest").and_then(|digits| digits.parse().ok()) else {
                continue;
            };
            let detail = match admin.read_manifest(Some(number)).await {
                Ok(Some(manifest)) => {
                    self.readable = Some(number);
                    return Ok(Some(manifest));
                }
                Ok(None) => "it is gone".to_owned(),
                Err(error) => self.store.damage(outward(error))?,
            };
            self.wrong.push(Wrong {
                object: key.clone(),
                detail,
                lost: None,
            });
        }
        Ok(None)
    }

    async fn look_at_compactions(&mut self, admin: &Admin) -> Result<(), TreeError> {
        if let Err(error) = admin.read_compactions(None).await {
            let detail = self.store.damage(outward(error))?;
            self.wrong.push(Wrong {
                object: format!("{FOLDER}/compactions/"),
                detail,
                lost: None,
            });
        }
        Ok(())
    }

    /// What SlateDB's collector says of how far it has come, without which no manifest is written.
    async fn look_at_bounds(&mut self) -> Result<(), TreeError> {
        let seen: BucketRef = self.store.clone();
        let store = BucketStore::new(seen.clone());
        for key in listed(&seen, "gc", "").await? {
            if let Err(error) = store.get(&Path::from(key.as_str())).await {
                let detail = self.store.damage_in_words(error.to_string())?;
                self.wrong.push(Wrong {
                    object: key,
                    detail,
                    lost: None,
                });
            }
        }
        Ok(())
    }

    /// Filters and statistics of files, which hold no rows, and without which reads fail.
    async fn look_at_filters(&mut self, manifest: &VersionedManifest) -> Result<(), TreeError> {
        let seen: BucketRef = self.store.clone();
        let options = DbReaderOptions {
            manifest_poll_interval: NEVER,
            skip_wal_replay: true,
            ..DbReaderOptions::default()
        };
        let blocks = BlockCache::new(CACHE_BYTES);
        let opened = DbReader::builder(FOLDER, Arc::new(BucketStore::new(seen)))
            .with_reader_mode(DbReaderMode::FollowLatest)
            .with_options(options)
            .with_db_cache(blocks.cache(), blocks.number())
            .with_filter_policies(reach::filters())
            .with_merge_operator(Arc::new(SumStats))
            .build()
            .await;
        let db = match opened {
            Ok(db) => db,
            Err(error) => {
                let detail = self.store.damage(outward(error))?;
                self.wrong.push(Wrong {
                    object: format!("{FOLDER}/"),
                    detail,
                    lost: None,
                });
                return Ok(());
            }
        };
        for (file, view) in self.files.iter().zip(manifest.all_sst_views()) {
            let brought = db.warm_sst(view.sst.id, &[CacheTarget::Filters, CacheTarget::Stats]);
            if let Err(error) = brought.await {
                let detail = self.store.damage(outward(error))?;
                self.wrong.push(Wrong {
                    object: file.key.clone(),
                    detail: format!("its filter or its statistics: {detail}"),
                    lost: None,
                });
            }
        }
        db.close().await.map_err(outward)
    }

    async fn read_files(&mut self, manifest: Option<&VersionedManifest>, there: &[String]) -> Result<(), TreeError> {
        let blocks = BlockCache::new(CACHE_BYTES);
        let mut readers: BTreeMap<String, Arc<SstReader>> = BTreeMap::new();
        let mut reader_of = |folder: &str| {
            let seen: BucketRef = self.store.clone();
            let new = || {
                let store = Arc::new(BucketStore::new(seen));
                Arc::new(SstReader::new(folder.to_owned(), store, Some(blocks.cache()), None))
            };
            readers.entry(folder.to_owned()).or_insert_with(new).clone()
        };
        let mut found: Vec<(Found, bool)> = Vec::new();
        for (folder, handle) in manifest.map(|manifest| named(manifest, FOLDER)).unwrap_or_default() {
            found.push((Found::named(reader_of(&folder), &folder, handle), true));
        }
        for key in there {
            if found.iter().any(|(known, _)| known.key == *key) {
                continue;
            }
            let name = key.rsplit('/').next().unwrap_or_default().trim_end_matches(".sst");
            let file = Found::new(reader_of(FOLDER), key.clone(), name.to_owned(), None);
            found.push((file, self.base != Base::Newest));
        }
        for (found, belongs) in found {
            let file = found.look(&self.store).await?;
            match belongs {
                true => {
                    self.wrong.extend(file.wrong.iter().cloned());
                    self.files.push(file);
                }
                false => self.unlisted.push(file),
            }
        }
        Ok(())
    }
}

/// The newest manifest that can be read, and the key behind that of the last one, where those are not the same.
///
/// # Errors
/// `TreeError` where the store does not answer.
pub(crate) async fn readable_manifest(bucket: &BucketRef) -> Result<Option<(String, String)>, TreeError> {
    let mut survey = Survey::new(bucket);
    let admin = survey.admin();
    survey.manifests = listed(bucket, "manifest", ".manifest").await?;
    survey.newest_readable(&admin).await?;
    let number = |key: &String| key.rsplit('/').next()?.strip_suffix(".manifest")?.parse::<u64>().ok();
    let behind = survey
        .manifests
        .last()
        .and_then(number)
        .and_then(|last| last.checked_add(1));
    Ok(match (survey.readable, behind) {
        (Some(readable), Some(next)) if !survey.wrong.is_empty() => {
            let key = |number: u64| format!("{FOLDER}/manifest/{number:020}.manifest");
            Some((key(readable), key(next)))
        }
        _ => None,
    })
}

/// The files that a manifest names, and the folders of the trees that they are in.
fn named(manifest: &VersionedManifest, own: &str) -> Vec<(String, SsTableHandle)> {
    let folder_of = |handle: &SsTableHandle| {
        let others = manifest.external_dbs().iter();
        let mut others = others.filter(|other| other.sst_ids.contains(&handle.id));
        others.next().map_or_else(|| own.to_owned(), |other| other.path.clone())
    };
    let views = manifest.all_sst_views();
    views.map(|view| (folder_of(&view.sst), view.sst.clone())).collect()
}

/// The keys of the tree's files of one kind, in order.
async fn listed(bucket: &BucketRef, folder: &str, ending: &str) -> Result<Vec<String>, TreeError> {
    let mut request = ListRequest {
        prefix: format!("{FOLDER}/{folder}/"),
        ..ListRequest::default()
    };
    let mut keys = Vec::new();
    loop {
        let page = bucket.list(&request).await.map_err(watched::unavailable)?;
        let found = page.objects.into_iter().map(|object| object.key);
        keys.extend(found.filter(|key| key.ends_with(ending)));
        request.page = page.next;
        if request.page.is_none() {
            return Ok(keys);
        }
    }
}

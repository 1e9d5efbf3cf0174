//! Checking a volume, and each of its snapshots: every row of its tree, every commit of its journal's tail, every frame that a file refers to.
//!
//! Invariants: reads only, so it may run beside a mount (it then checks the state of the moment it began); memory is
//! bounded whatever the size of the volume: rows are streamed, and what must be counted is counted in windows.
//! Callers: `pannier volume check`. Absent: repair (`check/repair.rs`): what is wrong is told with the object and the place, nothing is changed.

use uuid::Uuid;

use crate::bucket::BucketRef;
use crate::head::{Head, HeadFile, HeadWriter};
use crate::ids::ObjectId;
use crate::lineage::{Lineage, data_of};
use crate::open::{OpenError, TreeConfig, read_as, read_tree_only};
use crate::row::Key;
use crate::tree::{Tree, TreeError};

mod content;
mod cursor;
mod held;
mod inodes;
mod names;
mod objects;
pub mod repair;
mod tree_files;

/// 1,048,576 inodes or objects counted at a time, at some 64 bytes each. A larger volume is read once more for each window.
const WINDOW_ROWS: usize = 1024 * 1024;

/// What to check, and how much of it at a time.
#[derive(Debug, Clone)]
pub struct CheckOptions {
    /// Read all content and verify each frame: as many bytes as the volume's files have.
    pub content: bool,
    /// Inodes or objects counted at a time.
    pub window_rows: usize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            content: true,
            window_rows: WINDOW_ROWS,
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The object that holds it: a key below the volume's data prefix, or "m/" for the metadata tree.
    pub object: String,
    /// Where: an inode, a name, an offset.
    pub place: String,
    /// What is wrong.
    pub detail: String,
}

/// What was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Inodes.
    pub inodes: u64,
    /// Names in directories.
    pub names: u64,
    /// Runs of content.
    pub extents: u64,
    /// Frames read and verified.
    pub frames: u64,
    /// Bytes of them as stored.
    pub content_bytes: u64,
    /// Objects that hold content.
    pub objects: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Things that are wrong.
    pub damages: u64,
}

/// What a check works on and where it tells what it finds.
struct Checker<'a> {
    tree: &'a dyn Tree,
    bucket: BucketRef,
    lineage: Lineage,
    options: CheckOptions,
    report: CheckReport,
    tell: &'a mut (dyn FnMut(Damage) + Send),
}

/// Checks the volume at `root` (the bucket seen through the volume's root) and its snapshots, and tells each damage as it is
/// found. Of snapshots no content is read: what they share with the volume is read with it.
///
/// # Errors
/// `OpenError` if the volume cannot be read at all, or the store fails while it is being checked: then what was told
/// before holds, and the rest is unknown.
pub async fn check(
    root: BucketRef,
    options: CheckOptions,
    tell: &mut (dyn FnMut(Damage) + Send),
) -> Result<CheckReport, OpenError> {
    let head = HeadFile::new(root.clone(), HeadWriter::new(Uuid::nil())).read().await?;
    let (family, volume) = (root.above(), head.uuid);
    let told = check_tree_files(&root, &head, tell).await?;
    let mut report = match check_state(&root, head, options.clone(), tell).await {
        // It was told why no row can be read.
        Err(OpenError::Tree(_)) if told > 0 => CheckReport::default(),
        report => report?,
    };
    report.damages += told;
    let Some((family, folder)) = family else {
        return Ok(report);
    };
    for held in held::snapshots(&family, &folder, volume).await? {
        report.snapshots += 1;
        let (place, state) = match held {
            held::Held::Sound(place, state) => (place, state),
            held::Held::Broken(damage) => {
                report.damages += 1;
                tell(damage);
                continue;
            }
        };
        let options = CheckOptions {
            content: false,
            ..options.clone()
        };
        let mut tell_of = |damage: Damage| {
            tell(Damage {
                place: format!("{place}: {}", damage.place),
                ..damage
            });
        };
        let nowhere = held::nowhere(&family);
        match check_state(&nowhere, *state, options, &mut tell_of).await {
            Ok(found) => report.damages += found.damages,
            Err(OpenError::Bucket(error)) if error.is_transient() => return Err(error.into()),
            Err(error) => {
                report.damages += 1;
                tell_of(Damage {
                    object: "m/".to_owned(),
                    place: "the whole".to_owned(),
                    detail: error.to_string(),
                });
            }
        }
    }
    Ok(report)
}

/// Reads all files of the volume's tree, whatever state they are in; how many damages were told.
async fn check_tree_files(
    root: &BucketRef,
    head: &Head,
    tell: &mut (dyn FnMut(Damage) + Send),
) -> Result<u64, OpenError> {
    let Some(survey) = tree_files::survey(&data_of(root, head)?, head).await? else {
        return Ok(0);
    };
    for wrong in &survey.wrong {
        tell(tree_files::told(wrong, survey.base));
    }
    Ok(survey.wrong.len() as u64)
}

/// Checks the state that a volume of this head has.
async fn check_state(
    root: &BucketRef,
    head: Head,
    options: CheckOptions,
    tell: &mut (dyn FnMut(Damage) + Send),
) -> Result<CheckReport, OpenError> {
    let bucket = data_of(root, &head)?;
    let lineage = head.lineage();
    let mut damages = 0;
    let tree = match read_as(root, head.clone(), TreeConfig::default()).await {
        Ok(opened) => opened.tree,
        Err(OpenError::Damaged { key, detail }) => {
            damages += 1;
            tell(Damage {
                object: key,
                place: "the journal; commits from there on are not checked".to_owned(),
                detail,
            });
            read_tree_only(&bucket, &head, &TreeConfig::default()).await?
        }
        Err(error) => return Err(error),
    };
    let report = CheckReport {
        damages,
        ..CheckReport::default()
    };
    let mut checker = Checker {
        tree: tree.as_ref(),
        bucket,
        lineage,
        options,
        report,
        tell,
    };
    checker.all().await?;
    let report = checker.report;
    tree.close().await?;
    Ok(report)
}

impl Checker<'_> {
    async fn all(&mut self) -> Result<(), OpenError> {
        let inodes = self.check_inodes().await;
        self.survive(inodes)?;
        let names = self.check_names().await;
        self.survive(names)?;
        let objects = self.check_objects().await;
        self.survive(objects)?;
        if self.options.content {
            let content = self.check_content().await;
            self.survive(content)?;
        }
        Ok(())
    }

    /// Rows that do not decode end one pass, not the check.
    fn survive(&mut self, result: Result<(), OpenError>) -> Result<(), OpenError> {
        match result {
            Err(OpenError::Tree(TreeError::Corrupt { place, detail })) => {
                self.damaged_rows(place, format!("{detail}; rows after it were not checked"));
                Ok(())
            }
            other => other,
        }
    }

    fn damaged(&mut self, object: String, place: String, detail: String) {
        self.report.damages += 1;
        (self.tell)(Damage { object, place, detail });
    }

    /// Something is wrong with rows.
    fn damaged_rows(&mut self, place: String, detail: String) {
        self.damaged("m/".to_owned(), place, detail);
    }

    /// Something is wrong with an object that holds content.
    fn damaged_object(&mut self, object: ObjectId, place: String, detail: String) {
        self.damaged(object.key(), place, detail);
    }
}

/// What a row under a key of a scan must be; a tree that gives another one is broken.
fn foreign(key: &Key) -> OpenError {
    OpenError::Tree(TreeError::Corrupt {
        place: format!("{key:?}"),
        detail: "a row of another kind".to_owned(),
    })
}

#[cfg(test)]
mod tests;

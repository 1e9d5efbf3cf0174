//! The files of the metadata tree: which are damaged or missing, and what of the volume cannot be read without them.
//!
//! Where the newest manifest is gone, the one before it looks like the newest. It is found out by files that hold later commits
//! than the tree and the journal together, and by the head of a volume that was closed.
//! Callers: `check.rs`, `check/repair.rs`. Absent: mending (`check/repair/tree.rs`).

use super::Damage;
use crate::bucket::BucketRef;
use crate::head::Head;
use crate::open::OpenError;
use crate::open::leftovers::has_commits;
use crate::open::walk::{Step, Walk};
use crate::row::codec::decode_key;
use crate::row::{Applied, Key};
use crate::tree::TreeError;
use crate::tree::salvage::{Base, Lost, Survey, Wrong};
use crate::tree::slate::NOTHING;

/// 5 looks at a tree that is being written and seems damaged.
const LOOKS_MAX: u32 = 5;

/// The tree's files as they were found; `None` where the volume has no tree of its own yet.
///
/// # Errors
/// `OpenError` where the store does not answer.
pub(super) async fn survey(bucket: &BucketRef, head: &Head) -> Result<Option<Survey>, OpenError> {
    for _ in 0..LOOKS_MAX {
        let found = look(bucket, head).await?;
        // Who writes meanwhile puts files before the manifest that names them, and takes from the journal what it contains.
        match &found {
            Some(survey) if !survey.wrong.is_empty() && !survey.is_current(bucket).await? => {}
            Some(_) | None => return Ok(found),
        }
    }
    Err(OpenError::Tree(TreeError::Unavailable {
        detail: "its files change faster than they can be read".to_owned(),
    }))
}

async fn look(bucket: &BucketRef, head: &Head) -> Result<Option<Survey>, OpenError> {
    let mut survey = Survey::of(bucket).await?;
    match survey.base {
        Base::Nothing if head.tree.is_none() && survey.wrong.is_empty() && !is_expected(bucket, head).await? => {
            return Ok(None);
        }
        Base::Nothing => survey.wrong.push(Wrong {
            object: "m/".to_owned(),
            detail: "there is no file of it".to_owned(),
            lost: Some(Lost::everything()),
        }),
        Base::Newest => {
            if let Some(detail) = older_than_it_was(bucket, head, &survey).await? {
                survey.distrust_manifest(detail);
            }
        }
        Base::Files if survey.wrong.is_empty() => survey.wrong.push(Wrong {
            object: "m/manifest/".to_owned(),
            detail: "there is no manifest".to_owned(),
            lost: None,
        }),
        Base::Older | Base::Files => {}
    }
    if let (Base::Nothing | Base::Files, Some(branch)) = (survey.base, &head.branch)
        && let Some(at) = branch.tree
    {
        survey.add_beginning(at).await?;
    }
    Ok(Some(survey))
}

/// True where a tree must be: whatever was committed by the volume itself.
async fn is_expected(bucket: &BucketRef, head: &Head) -> Result<bool, OpenError> {
    if head.clean && head.end.is_some() {
        return Ok(true);
    }
    has_commits(bucket, &head.lineage()).await
}

/// How it shows that the manifest which is the newest now was not always.
async fn older_than_it_was(bucket: &BucketRef, head: &Head, survey: &Survey) -> Result<Option<String>, OpenError> {
    if !survey.knows_applied() {
        return Ok(None);
    }
    let applied = survey.applied().unwrap_or(NOTHING);
    let closed = head.end.filter(|_| head.clean).filter(|end| *end > applied);
    let unlisted = survey.unlisted_applied().filter(|(unlisted, _)| *unlisted > applied);
    if closed.is_none() && unlisted.is_none() {
        return Ok(None);
    }
    let reach = end_of_journal(bucket, head, applied).await?;
    let place = |applied: Applied| format!("commit {} of epoch {}", applied.seq, applied.epoch);
    Ok(match (unlisted, closed) {
        (Some((last, file)), _) if last > reach => Some(format!(
            "the newest manifest is gone: {file} has {}, and the one that is there ends before it",
            place(last)
        )),
        (_, Some(end)) if end > reach => Some(format!(
            "the newest manifest is gone: the volume was closed at {}, and the one that is there ends before it",
            place(end)
        )),
        _ => None,
    })
}

/// Up to which commit the journal reaches from a state of the tree on.
async fn end_of_journal(bucket: &BucketRef, head: &Head, from: Applied) -> Result<Applied, OpenError> {
    let mut walk = Walk::new(bucket.clone(), head.lineage(), from.epoch, from.seq.next());
    let mut reach = from;
    loop {
        match walk.next().await {
            Ok(Step::Commit(commit)) => {
                reach = Applied {
                    epoch: commit.epoch,
                    seq: commit.seq,
                };
            }
            Ok(Step::Seal(seal)) => {
                // A tree says so when a writer has begun and has not committed yet.
                reach = reach.max(Applied {
                    epoch: seal.next_epoch,
                    ..NOTHING
                });
            }
            Ok(Step::Missing(_)) | Err(OpenError::Damaged { .. }) => return Ok(reach),
            Err(error) => return Err(error),
        }
    }
}

/// What is told of it.
pub(super) fn told(wrong: &Wrong, base: Base) -> Damage {
    let place = match (&wrong.lost, base) {
        (Some(lost), _) => in_words(lost),
        (None, Base::Older | Base::Files) => "the whole".to_owned(),
        (None, Base::Nothing | Base::Newest) => "no rows; but nothing can be read by it".to_owned(),
    };
    Damage {
        object: wrong.object.clone(),
        place,
        detail: wrong.detail.clone(),
    }
}

/// True if rows are lost that do not follow from others.
pub(super) fn loses(survey: &Survey) -> bool {
    let needed = |lost: &Lost| match (kind_of(&lost.from), lost.until.as_ref().map(|until| kind_of(until))) {
        (Kind::Sums, Some(until)) => until > Kind::Sums,
        (Kind::Orphans, _) => false,
        _ => true,
    };
    let told = survey.wrong.iter();
    survey.base == Base::Older || survey.base == Base::Files || told.filter_map(|wrong| wrong.lost.as_ref()).any(needed)
}

/// The kinds of rows, in the order of their keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Totals,
    Attributes,
    Names,
    Content,
    Xattrs,
    Sums,
    Orphans,
}

impl Kind {
    const ALL: [Kind; 7] = [
        Kind::Totals,
        Kind::Attributes,
        Kind::Names,
        Kind::Content,
        Kind::Xattrs,
        Kind::Sums,
        Kind::Orphans,
    ];

    fn name(self) -> &'static str {
        match self {
            Kind::Totals => "totals",
            Kind::Attributes => "attributes",
            Kind::Names => "names",
            Kind::Content => "content",
            Kind::Xattrs => "extended attributes",
            Kind::Sums => "sums of objects",
            Kind::Orphans => "unlinked files",
        }
    }
}

/// The kind of the rows from a key on, which may be only a part of one.
fn kind_of(key: &[u8]) -> Kind {
    match key.first() {
        None | Some(..0x10) => Kind::Totals,
        Some(0x10..0x20) => Kind::Attributes,
        Some(0x20..0x30) => Kind::Names,
        Some(0x30..0x40) => Kind::Content,
        Some(0x40..0x50) => Kind::Xattrs,
        Some(0x50..0x60) => Kind::Sums,
        Some(0x60..) => Kind::Orphans,
    }
}

/// The inode that a key, or the beginning of one, belongs to.
fn inode_of(key: &[u8]) -> Option<u64> {
    let digits = key.get(1..9)?.try_into().ok()?;
    Some(u64::from_be_bytes(digits))
}

/// Which rows these are: `attributes of inodes 3 to 17`, kind by kind.
fn in_words(lost: &Lost) -> String {
    let first = kind_of(&lost.from);
    let last = lost.until.as_ref().map_or(Kind::Orphans, |until| kind_of(until));
    let parts = Kind::ALL.into_iter().filter(|kind| (first..=last).contains(kind));
    let part = |kind: Kind| {
        if let Kind::Totals | Kind::Sums | Kind::Orphans = kind {
            return kind.name().to_owned();
        }
        let from = inode_of(&lost.from).filter(|_| kind == first).unwrap_or(1);
        let until = lost.until.as_ref().filter(|_| kind == last);
        match until.and_then(|until| inode_of(until)) {
            Some(until) => format!("{} of inodes {from} to {until}", kind.name()),
            None => format!("{} of inodes from {from} on", kind.name()),
        }
    };
    parts.map(part).collect::<Vec<_>>().join(", ")
}

/// What a row is of, for people: `attributes of inode 7`.
pub(super) fn owner_in_words(key: &[u8]) -> Option<(u64, &'static str)> {
    let kind = kind_of(key);
    match decode_key(key).ok()? {
        Key::Inode(ino) | Key::Extent { ino, .. } | Key::Xattr { ino, .. } => Some((ino.0, kind.name())),
        Key::Dirent { dir, .. } => Some((dir.0, kind.name())),
        Key::Counters | Key::Applied | Key::ObjectStats(_) | Key::Orphan(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::InodeNo;
    use crate::row::codec::encode_key;

    fn lost(from: &Key, until: Option<&Key>) -> Lost {
        Lost {
            from: encode_key(from).into(),
            until: until.map(|key| encode_key(key).into()),
        }
    }

    #[test]
    fn lost_rows_are_told_by_kind_and_inode() {
        let (three, seven) = (Key::Inode(InodeNo(3)), Key::Inode(InodeNo(7)));
        assert_eq!(in_words(&lost(&three, Some(&seven))), "attributes of inodes 3 to 7");
        let extent = Key::Extent {
            ino: InodeNo(9),
            end: 5,
        };
        assert_eq!(
            in_words(&lost(&seven, Some(&extent))),
            "attributes of inodes from 7 on, names of inodes from 1 on, content of inodes 1 to 9"
        );
        let everything = in_words(&Lost::everything());
        assert!(
            everything.starts_with("totals, attributes of inodes from 1 on"),
            "{everything}"
        );
    }
}

//! Each object that holds content: it is there, and its sum of live bytes is what files refer to.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt};

use super::cursor::Cursor;
use super::inodes::{first_extent, first_orphan, first_stats, first_xattr};
use super::{Checker, foreign};
use crate::bucket::{BucketError, BucketRef};
use crate::format::{journal, segment};
use crate::ids::ObjectId;
use crate::open::OpenError;
use crate::row::{Key, Row};

/// 8 objects are looked at in parallel.
const LOOKS_MAX: usize = 8;

/// 512 bytes tell a segment or a journal object.
const LOOK_BYTES: u64 = 512;

/// Live bytes of an object, as its sum says and as counted.
#[derive(Debug, Clone, Copy, Default)]
struct Live {
    told: i64,
    counted: i64,
}

impl Checker<'_> {
    pub(super) async fn check_objects(&mut self) -> Result<(), OpenError> {
        let mut sums = Cursor::new(self.tree, first_stats(), first_orphan());
        let mut from: Option<ObjectId> = None;
        loop {
            let mut window: BTreeMap<ObjectId, Live> = BTreeMap::new();
            while window.len() < self.options.window_rows
                && let Some((key, row)) = sums.next().await?
            {
                let (Key::ObjectStats(object), Row::ObjectStats(stats)) = (&key, row) else {
                    return Err(foreign(&key));
                };
                let live = Live {
                    told: stats.live_bytes,
                    counted: 0,
                };
                window.insert(*object, live);
            }
            let next = match sums.peek().await? {
                Some((Key::ObjectStats(object), _)) => Some(*object),
                Some(_) | None => None,
            };
            self.count_live(&mut window, from, next).await?;
            self.judge_objects(&window).await?;
            match next {
                Some(_) => from = next,
                None => return Ok(()),
            }
        }
    }

    async fn count_live(
        &mut self,
        window: &mut BTreeMap<ObjectId, Live>,
        from: Option<ObjectId>,
        until: Option<ObjectId>,
    ) -> Result<(), OpenError> {
        let mut extents = Cursor::new(self.tree, first_extent(), first_xattr());
        while let Some((key, row)) = extents.next().await? {
            let Row::Extent(row) = row else {
                return Err(foreign(&key));
            };
            let before = from.is_some_and(|from| row.object < from);
            if before || until.is_some_and(|until| row.object >= until) {
                continue;
            }
            match window.get_mut(&row.object) {
                Some(live) => live.counted += row.len as i64,
                None => self.damaged_object(row.object, format!("{key:?}"), "the object has no sum".to_owned()),
            }
        }
        Ok(())
    }

    async fn judge_objects(&mut self, window: &BTreeMap<ObjectId, Live>) -> Result<(), OpenError> {
        for (object, live) in window {
            self.report.objects += 1;
            if live.told != live.counted {
                let detail = format!("it says {} live bytes, counted were {}", live.told, live.counted);
                self.damaged_object(*object, "its sum".to_owned(), detail);
            }
        }
        let used = window.iter().filter(|(_, live)| live.counted > 0);
        let looks = used.map(|(object, _)| {
            let (bucket, volume, object) = (self.bucket.clone(), self.lineage.uuid_of(object.epoch()), *object);
            async move { (object, look(&bucket, volume, object).await) }
        });
        let mut looks = stream::iter(looks.collect::<Vec<_>>()).buffered(LOOKS_MAX);
        while let Some((object, answer)) = looks.next().await {
            if let Some(detail) = answer? {
                self.damaged_object(object, "the object".to_owned(), detail);
            }
        }
        Ok(())
    }
}

/// What is wrong with the start of an object, if anything.
async fn look(bucket: &BucketRef, volume: uuid::Uuid, object: ObjectId) -> Result<Option<String>, BucketError> {
    let found = match bucket.get(&object.key(), Some(0..LOOK_BYTES)).await {
        Ok(found) => found,
        Err(BucketError::NotFound { .. }) => return Ok(Some("it does not exist".to_owned())),
        Err(error) => return Err(error),
    };
    Ok(match object {
        ObjectId::Segment(..) => segment::decode_header(&found.body, found.size_bytes, volume, object)
            .err()
            .map(|error| error.to_string()),
        ObjectId::Journal(..) if journal::is_journal(&found.body) => None,
        ObjectId::Journal(..) => Some("it is no journal object".to_owned()),
    })
}

//! The sums of live bytes of objects, counted anew: what is too small would let the collector delete what lives.

use std::collections::BTreeMap;

use super::super::cursor::Cursor;
use super::super::foreign;
use super::super::inodes::{first_extent, first_orphan, first_stats, first_xattr};
use super::{RepairError, Repairer, Round};
use crate::ids::ObjectId;
use crate::row::{Key, ObjectStats, Row};

impl Repairer<'_> {
    pub(super) async fn mend_sums(&self, round: &mut Round) -> Result<(), RepairError> {
        let mut after: Option<ObjectId> = None;
        loop {
            let (counted, complete) = self.live_after(after).await?;
            let last = counted.last_key_value().map(|(object, _)| *object);
            let until = if complete { None } else { last };
            self.compare(round, (after, until), &counted).await?;
            if until.is_none() || round.is_full() {
                return Ok(());
            }
            after = until;
        }
    }

    /// Bytes that files refer to, of the first objects after `after`; true if there are no more.
    async fn live_after(&self, after: Option<ObjectId>) -> Result<(BTreeMap<ObjectId, i64>, bool), RepairError> {
        let mut live: BTreeMap<ObjectId, i64> = BTreeMap::new();
        let mut complete = true;
        let mut extents = Cursor::new(self.tree(), first_extent(), first_xattr());
        while let Some((key, row)) = extents.next().await? {
            let Row::Extent(row) = row else {
                return Err(foreign(&key).into());
            };
            if after.is_some_and(|after| row.object <= after) {
                continue;
            }
            *live.entry(row.object).or_default() += i64::try_from(row.len).unwrap_or(i64::MAX);
            if live.len() > self.options.window_rows {
                live.pop_last();
                complete = false;
            }
        }
        Ok((live, complete))
    }

    /// Compares the sums of the objects after the first and up to the second with what was counted.
    async fn compare(
        &self,
        round: &mut Round,
        (after, until): (Option<ObjectId>, Option<ObjectId>),
        counted: &BTreeMap<ObjectId, i64>,
    ) -> Result<(), RepairError> {
        let mut missing = counted.clone();
        let mut sums = Cursor::new(self.tree(), first_stats(), first_orphan());
        while let Some((key, row)) = sums.next().await? {
            let (Key::ObjectStats(object), Row::ObjectStats(told)) = (&key, row) else {
                return Err(foreign(&key).into());
            };
            if after.is_some_and(|after| *object <= after) || until.is_some_and(|until| *object > until) {
                continue;
            }
            let live = missing.remove(object).unwrap_or(0);
            let total = told.total_bytes.max(live);
            if (told.live_bytes, told.total_bytes) != (live, total) {
                let detail = format!("it says {} live bytes, counted were {live}", told.live_bytes);
                // Rows of sums are added to what is there.
                let difference = ObjectStats {
                    live_bytes: live - told.live_bytes,
                    total_bytes: total - told.total_bytes,
                };
                round.mend(
                    (format!("the sum of {}", object.key()), detail),
                    "it is corrected",
                    vec![(key, Some(Row::ObjectStats(difference)))],
                );
            }
        }
        for (object, live) in missing {
            let detail = format!("there is none, counted were {live} live bytes");
            let sum = ObjectStats {
                live_bytes: live,
                total_bytes: live,
            };
            round.mend(
                (format!("the sum of {}", object.key()), detail),
                "it is made",
                vec![(Key::ObjectStats(object), Some(Row::ObjectStats(sum)))],
            );
        }
        Ok(())
    }
}

//! Single commits under a magnifying glass: order, cost, late segments, ambiguous and refused puts.

use std::sync::Arc;
use std::time::Duration;

use volume::bucket::memory::MemoryBucket;
use volume::commit::{CommitLimits, Lost};
use volume::ids::Generation;

use crate::faulty::{Faults, FaultyBucket};
use crate::model::{Issued, Mount, limits, new_volume, runtime};

/// A volume, a bucket with holds on top of it, and a mount.
async fn mounted(limits: CommitLimits) -> (Arc<MemoryBucket>, Arc<FaultyBucket>, Mount) {
    let memory = Arc::new(MemoryBucket::new());
    new_volume(memory.clone()).await;
    let faulty = FaultyBucket::new(memory.clone(), Faults::delays(1));
    let mount = Mount::open(faulty.clone(), "first", limits).await.unwrap();
    (memory, faulty, mount)
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn one_fsync_of_a_little_is_one_put_and_nothing_else() {
    runtime(0).block_on(async {
        let (_, faulty, mount) = mounted(CommitLimits::default()).await;
        let issued = Issued::default();
        // The tree's own tasks look around once after they were started.
        tokio::time::sleep(SECOND).await;
        for _ in 0..5 {
            let before = (faulty.requests(), faulty.puts());
            mount.act(&issued);
            mount.sync(&issued).await.unwrap();
            assert_eq!((faulty.requests(), faulty.puts()), (before.0 + 1, before.1 + 1));
            mount.sync(&issued).await.unwrap();
            assert_eq!(faulty.puts(), before.1 + 1, "nothing dirty, nothing put");
        }
        let stats = mount.commit.stats();
        assert_eq!((stats.commits, stats.journal_objects, stats.segments), (5, 5, 0));
    });
}

#[test]
fn what_nobody_waits_for_leaves_by_itself_and_an_idle_mount_stays_silent() {
    runtime(0).block_on(async {
        let (_, faulty, mount) = mounted(CommitLimits::default()).await;
        let issued = Issued::default();
        mount.act(&issued);
        let waited = tokio::time::timeout(2 * SECOND, mount.commit.wait_durable(Generation(1))).await;
        waited.expect("it leaves within a second").unwrap();
        // The tree is flushed once; then the pollers are all there is.
        tokio::time::sleep(600 * SECOND).await;
        assert_eq!(mount.commit.stats().tree_flushes, 1);
        let before = faulty.requests();
        tokio::time::sleep(3_600 * SECOND).await;
        let made = faulty.requests() - before;
        assert!(
            made <= 75,
            "an idle mount made {made} requests in an hour: {:#?}",
            faulty.log(before)
        );
    });
}

#[test]
fn commits_are_acknowledged_in_order_whatever_order_they_land_in() {
    runtime(0).block_on(async {
        let (memory, faulty, mount) = mounted(limits()).await;
        let issued = Issued::default();
        faulty.hold("j/0000000000000001/0000000000000001");
        mount.act(&issued);
        mount.commit.request_sync();
        faulty.arrival("j/0000000000000001/0000000000000001").await;
        mount.act(&issued);
        mount.commit.request_sync();
        let second = || {
            memory
                .keys()
                .iter()
                .any(|key| key.ends_with("j/0000000000000001/0000000000000002"))
        };
        while !second() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let early = tokio::time::timeout(SECOND, mount.commit.wait_durable(Generation(1))).await;
        assert!(early.is_err() && mount.commit.durable() == Generation(0));
        faulty.let_go("j/0000000000000001/0000000000000001");
        mount.commit.wait_durable(Generation(2)).await.unwrap();
        mount.judge(&issued).await;
    });
}

#[test]
fn a_commit_whose_segment_lands_late_is_never_acknowledged_by_the_older_writer() {
    runtime(0).block_on(async {
        let (memory, faulty, mount) = mounted(limits()).await;
        let issued = Issued::default();
        mount.act(&issued);
        mount.sync(&issued).await.unwrap();
        // Three files are more than goes inline: the journal object lands, one segment does not.
        faulty.hold("/s/");
        for _ in 0..3 {
            mount.act(&issued);
        }
        mount.commit.request_sync();
        let landed = || memory.keys().iter().any(|key| key.ends_with("/0000000000000002"));
        while !landed() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let second = Mount::open(memory.clone(), "node-b", limits()).await.unwrap();
        assert_eq!(second.found, 1, "the commit was judged lost");
        faulty.let_go("/s/");
        let lost = mount.sync(&issued).await.unwrap_err();
        let owner = "node-b".to_owned();
        assert_eq!(lost, Lost::Fenced { owner });
        second.judge(&issued).await;

        // And the third one finds its way past that commit by the seal in place of the segment.
        drop(second);
        let third = Mount::open(memory.clone(), "node-c", limits()).await.unwrap();
        third.judge(&issued).await;
        assert_eq!(third.found, 1);
    });
}

#[test]
fn a_commit_that_landed_whole_before_the_seal_stands_though_nobody_was_told() {
    runtime(0).block_on(async {
        let (memory, faulty, mount) = mounted(limits()).await;
        let issued = Issued::default();
        faulty.set_lies(100);
        for _ in 0..3 {
            mount.act(&issued);
        }
        mount.commit.request_sync();
        // Every answer is a lie; half of the puts take effect, so all of them do in the end.
        while memory
            .keys()
            .iter()
            .filter(|key| key.contains("/s/") || key.ends_with("j/0000000000000001/0000000000000001"))
            .count()
            < 4
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(mount);
        let second = Mount::open(memory, "second", limits()).await.unwrap();
        assert_eq!(second.found, 3);
        second.judge(&issued).await;
    });
}

#[test]
fn the_store_away_blocks_and_loses_nothing() {
    runtime(0).block_on(async {
        let (_, faulty, mount) = mounted(limits()).await;
        let issued = Issued::default();
        faulty.hold("j/");
        for _ in 0..30 {
            mount.act(&issued);
            mount.commit.request_sync();
            tokio::time::sleep(SECOND).await;
        }
        assert_eq!((mount.commit.durable(), mount.commit.lost()), (Generation(0), None));
        faulty.let_go("j/");
        mount.sync(&issued).await.unwrap();
        let commits = mount.commit.stats().commits;
        assert!(
            commits <= 10,
            "eight under way and what gathered behind them, not {commits}"
        );
        mount.judge(&issued).await;
        mount.close().await;
    });
}

#[test]
fn a_mount_after_a_clean_close_replays_nothing() {
    runtime(0).block_on(async {
        let (memory, _, mount) = mounted(limits()).await;
        let issued = Issued::default();
        for _ in 0..10 {
            mount.act(&issued);
            mount.sync(&issued).await.unwrap();
        }
        mount.close().await;
        let counting = FaultyBucket::new(memory.clone(), Faults::delays(2));
        let second = Mount::open(counting.clone(), "second", limits()).await.unwrap();
        assert!(second.opened.taken.clean);
        second.judge(&issued).await;
        assert_eq!(second.found, 10);
        second.close().await;
    });
}

#[test]
fn a_tree_that_fails_ends_the_mount_with_its_reason_and_loses_nothing() {
    runtime(0).block_on(async {
        let (memory, _, mount) = mounted(limits()).await;
        let issued = Issued::default();
        mount.act(&issued);
        mount.sync(&issued).await.unwrap();
        mount.commit.wait_applied(Generation(1)).await.unwrap();
        mount.opened.tree.close().await.unwrap();
        mount.act(&issued);
        mount.sync(&issued).await.expect("the journal is sound");
        let lost = mount.commit.wait_applied(Generation(2)).await.unwrap_err();
        assert!(lost.to_string().contains("the metadata tree failed"), "{lost}");
        mount.act(&issued);
        assert_eq!(mount.sync(&issued).await, Err(lost));
        drop(mount);
        let second = Mount::open(memory, "second", limits()).await.unwrap();
        assert_eq!(second.found, 2);
        second.judge(&issued).await;
    });
}

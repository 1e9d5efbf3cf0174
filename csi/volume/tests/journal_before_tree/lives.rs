//! Whole lives of writers: cut at every request, lied to, raced by others.

use std::sync::Arc;

use volume::bucket::memory::MemoryBucket;

use crate::faulty::{self, Faults, FaultyBucket};
use crate::model::{self, Mount, limits, new_volume, seeds, with_seed};

/// The life that is cut at every request: two mounts' worth of commits, with and without waiting, and a flushed tree.
async fn life(mount: &Mount, issued: &model::Issued) {
    for op in 1..=12u64 {
        mount.act(issued);
        if op % 3 == 0 {
            let _ = mount.sync(issued).await;
        }
        if op == 7 {
            let _ = mount.commit.flush_tree().await;
        }
    }
    // Two generations under way at the same time.
    mount.act(issued);
    mount.commit.request_sync();
    mount.act(issued);
    let _ = mount.sync(issued).await;
}

/// Runs a life against a bucket that dies at request `die_at`; what it leaves is judged by mounts of the sound bucket.
/// Returns how many requests the life made, if it did not die.
fn die_and_judge(seed: u64, die_at: Option<(u64, faulty::Moment)>) -> Option<u64> {
    let memory = Arc::new(MemoryBucket::new());
    let issued = model::Issued::default();
    let requests = model::runtime(seed).block_on(async {
        new_volume(memory.clone()).await;
        let faulty = FaultyBucket::new(
            memory.clone(),
            Faults {
                die_at,
                ..Faults::delays(seed)
            },
        );
        let living = async {
            let mount = Mount::open(faulty.clone(), "first", limits()).await?;
            life(&mount, &issued).await;
            mount.close().await;
            Ok::<_, volume::open::OpenError>(faulty.requests())
        };
        tokio::select! {
            requests = living => Some(requests.expect("a bucket that only dies lets a mount open")),
            () = faulty.dead() => None,
        }
    });
    // The runtime and all tasks of the dead writer are gone: what it put is all there is.
    model::runtime(seed).block_on(async {
        model::judge_reader(memory.clone(), &issued).await;
        let mount = Mount::open(memory.clone(), "second", limits()).await.unwrap();
        mount.judge(&issued).await;
        issued.go_on_from(&mount);
        for _ in 0..3 {
            mount.act(&issued);
            mount.sync(&issued).await.unwrap();
        }
        drop(mount);
        let mount = Mount::open(memory.clone(), "third", limits()).await.unwrap();
        mount.judge(&issued).await;
        mount.close().await;
        model::judge_reader(memory, &issued).await;
    });
    requests
}

#[test]
fn a_writer_may_die_at_any_request_before_or_after_its_effect() {
    let all = die_and_judge(1, None).expect("nothing dies here");
    assert!(all > 30, "a life of {all} requests tells little");
    for moment in [faulty::Moment::Before, faulty::Moment::After] {
        for request in 1..=all {
            with_seed(1_000 + request, |seed| {
                die_and_judge(seed, Some((request, moment)));
            });
        }
    }
}

#[test]
fn answers_that_get_lost_or_refused_only_cost_time() {
    for seed in seeds(12) {
        with_seed(seed, |seed| {
            let memory = Arc::new(MemoryBucket::new());
            let issued = model::Issued::default();
            model::runtime(seed).block_on(async {
                new_volume(memory.clone()).await;
                let faulty = FaultyBucket::new(memory.clone(), Faults::delays(seed));
                let mount = Mount::open(faulty.clone(), "first", limits()).await.unwrap();
                faulty.set_lies(40);
                life(&mount, &issued).await;
                mount.sync(&issued).await.unwrap();
                assert_eq!(mount.commit.lost(), None);
                faulty.set_lies(0);
                mount.judge(&issued).await;
                mount.close().await;
                model::judge_reader(memory.clone(), &issued).await;
            });
        });
    }
}

#[test]
fn of_two_writers_the_older_gets_no_acknowledgement_that_the_newer_does_not_know() {
    for seed in seeds(40) {
        with_seed(seed, |seed| {
            let memory = Arc::new(MemoryBucket::new());
            let issued = model::Issued::default();
            model::runtime(seed).block_on(race(seed, memory, &issued));
        });
    }
}

async fn race(seed: u64, memory: Arc<MemoryBucket>, issued: &model::Issued) {
    new_volume(memory.clone()).await;
    let older = FaultyBucket::new(memory.clone(), Faults::delays(seed));
    let newer = FaultyBucket::new(memory.clone(), Faults::delays(seed ^ 0xffff));
    let first = Mount::open(older, "older", limits()).await.unwrap();
    let writing = async {
        loop {
            first.act(issued);
            if let Err(lost) = first.sync(issued).await {
                return lost;
            }
        }
    };
    let taking = async {
        tokio::time::sleep(std::time::Duration::from_millis(seed % 97)).await;
        let second = Mount::open(newer, "newer", limits()).await.unwrap();
        // Also what the older one is told only now must be here.
        second
    };
    let (lost, second) = tokio::join!(writing, taking);
    assert!(matches!(&lost, volume::commit::Lost::Fenced { .. }), "{lost}");
    second.judge(issued).await;
    assert_eq!(first.sync(issued).await, Err(lost), "lost once is lost for ever");

    issued.go_on_from(&second);
    second.act(issued);
    second.sync(issued).await.unwrap();
    second.close().await;
    model::judge_reader(memory, issued).await;
}

#[test]
fn many_takers_at_once_leave_one_writer_and_all_that_was_acknowledged() {
    for seed in seeds(12) {
        with_seed(seed, |seed| {
            let memory = Arc::new(MemoryBucket::new());
            let issued = model::Issued::default();
            model::runtime(seed).block_on(async {
                new_volume(memory.clone()).await;
                let first = Mount::open(memory.clone(), "first", limits()).await.unwrap();
                for _ in 0..4 {
                    first.act(&issued);
                    first.sync(&issued).await.unwrap();
                }
                let takers = (0..4u64).map(|taker| {
                    let bucket = FaultyBucket::new(memory.clone(), Faults::delays(seed * 10 + taker));
                    async move { Mount::open(bucket, "taker", limits()).await }
                });
                let opened = futures::future::join_all(takers).await;
                let mut newest: Option<Mount> = None;
                for mount in opened.into_iter().flatten() {
                    mount.judge(&issued).await;
                    if newest.as_ref().is_none_or(|newest| newest.epoch() < mount.epoch()) {
                        newest = Some(mount);
                    }
                }
                let newest = newest.expect("the last to take the head is not fenced by anyone");
                issued.go_on_from(&newest);
                newest.act(&issued);
                newest.sync(&issued).await.unwrap();
                newest.close().await;
                model::judge_reader(memory.clone(), &issued).await;
            });
        });
    }
}

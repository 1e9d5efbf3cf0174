//! The faulty bucket keeps to its own fault model, and heads stay right under all of it.

#![allow(clippy::unwrap_used, reason = "each step of a test must succeed")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tests::faulty_bucket::{Faults, FaultyBucket, Mutation, flip_bit};
use uuid::Uuid;
use volume::bucket::memory::MemoryBucket;
use volume::bucket::{BucketError, BucketRef, contract};
use volume::clock::Timestamp;
use volume::head::{Claim, Head, HeadError, HeadFile, HeadWriter, NewHead, Parameters};
use volume::volume_id::{NodeId, VolumeId};

fn bucket(seed: u64, faults: Faults) -> (BucketRef, Arc<FaultyBucket>) {
    let memory: BucketRef = Arc::new(MemoryBucket::new());
    let faulty = Arc::new(FaultyBucket::new(memory.clone(), seed, faults));
    (memory, faulty)
}

#[tokio::test(start_paused = true)]
async fn without_faults_it_is_a_bucket_like_any_other() {
    let latency = Duration::from_millis(1)..Duration::from_millis(50);
    let (_, faulty) = bucket(
        1,
        Faults {
            latency,
            ..Faults::none()
        },
    );
    let bucket: BucketRef = faulty;
    contract::check(&bucket, "").await.unwrap();
}

async fn outcomes(seed: u64) -> (Vec<String>, Vec<Mutation>) {
    let (memory, faulty) = bucket(seed, Faults::all());
    let bucket: BucketRef = faulty.clone();
    let mut seen = Vec::new();
    for n in 0..300 {
        let key = format!("k{}", n % 40);
        let answer = bucket.put_if_absent(&key, Bytes::from(format!("{n}"))).await;
        seen.push(format!("{answer:?}"));
        seen.push(format!("{:?}", bucket.get(&key, None).await.map(|object| object.body)));
        if n % 7 == 0 {
            seen.push(format!("{:?}", bucket.delete(&key).await));
        }
    }
    tokio::time::sleep(Faults::all().late_by).await;
    seen.push(format!("{:?}", memory.list(&Default::default()).await));
    (seen, faulty.history())
}

#[tokio::test(start_paused = true)]
async fn one_seed_is_one_run() {
    let (first, again, other) = (outcomes(7).await, outcomes(7).await, outcomes(8).await);
    assert_eq!(first, again);
    assert_ne!(first, other);
    for word in ["no connection", "no answer", "body was cut", "Precondition"] {
        assert!(
            first.0.iter().any(|outcome| outcome.contains(word)),
            "{word} never struck"
        );
    }
}

#[tokio::test]
async fn after_a_crash_nothing_reaches_the_store() {
    let mut took_place = BTreeSet::new();
    for seed in 0..16 {
        let (memory, faulty) = bucket(seed, Faults::none());
        let bucket: BucketRef = faulty.clone();
        faulty.crash_at(3);
        let body = Bytes::from_static(b"x");
        for n in 0..6 {
            let answer = bucket.put_if_absent(&format!("k{n}"), body.clone()).await;
            assert_eq!(answer.is_ok(), n < 2, "seed {seed}, put {n}");
        }
        assert!(faulty.is_crashed() && bucket.get("k0", None).await.unwrap_err().is_transient());
        took_place.insert(memory.list(&Default::default()).await.unwrap().objects.len());
    }
    assert_eq!(
        took_place.into_iter().collect::<Vec<_>>(),
        [2, 3],
        "the put that was struck took place, or not"
    );
}

#[tokio::test]
async fn a_flipped_bit_changes_one_object_and_nothing_else() {
    let (memory, _) = bucket(0, Faults::none());
    memory.put_if_absent("k", Bytes::from_static(b"abc")).await.unwrap();
    memory.put_if_absent("l", Bytes::from_static(b"abc")).await.unwrap();
    flip_bit(&memory, "k", 9).await.unwrap();
    assert_eq!(memory.get("k", None).await.unwrap().body, "a`c");
    assert_eq!(memory.get("l", None).await.unwrap().body, "abc");
    let error = flip_bit(&memory, "m", 0).await.unwrap_err();
    assert!(matches!(error, BucketError::NotFound { .. }), "{error}");
}

async fn create_head(bucket: &BucketRef) {
    let head = Head::new(NewHead {
        name: "v".to_owned(),
        volume: VolumeId::parse("v").unwrap(),
        uuid: Uuid::from_u128(1),
        capacity_bytes: 0,
        parameters: Parameters::default(),
        now: Timestamp::default(),
    });
    HeadFile::new(bucket.clone(), HeadWriter::new(Uuid::from_u128(2)))
        .create(head)
        .await
        .unwrap();
}

/// Goal: no two mounts ever get the same epoch, and each gets a later one than all that ended before it began. Method: 4 nodes
/// take one volume over, 6 times each, at once and under every fault, while another writer changes something else; 60 seeds.
#[tokio::test(start_paused = true)]
async fn no_epoch_is_given_twice_under_all_faults() {
    for seed in 0..60 {
        let (memory, faulty) = bucket(seed, Faults::all());
        create_head(&memory).await;
        let root: BucketRef = faulty;
        let nodes = (0..4u128).map(|node| {
            let root = root.clone();
            async move {
                let file = HeadFile::new(root, HeadWriter::new(Uuid::from_u128(100 + node)));
                let mut epochs = Vec::new();
                for mount in 0..6 {
                    let claim = Claim {
                        node_id: NodeId::new(&format!("node {node}")).unwrap(),
                        session: Uuid::from_u128(1000 * (node + 1) + mount),
                        lease: None,
                        now: Timestamp::default(),
                    };
                    match file.take_over(&claim).await {
                        Ok(taken) => {
                            assert_eq!(taken.head.leader.unwrap().session, claim.session, "seed {seed}");
                            epochs.push(taken.head.epoch);
                        }
                        Err(HeadError::Bucket(error)) if error.is_transient() => {}
                        Err(HeadError::Contended) => {}
                        Err(error) => panic!("seed {seed}: {error}"),
                    }
                }
                epochs
            }
        });
        let quota = async {
            let file = HeadFile::new(root.clone(), HeadWriter::new(Uuid::from_u128(99)));
            for bytes in 1..20 {
                let change = |head: &mut Head| {
                    head.capacity_bytes = bytes;
                    Ok::<_, HeadError>(())
                };
                // It is here to be in the way, not to succeed.
                drop(file.update(change).await);
            }
        };
        let (epochs, ()) = futures::join!(futures::future::join_all(nodes), quota);
        for of_node in &epochs {
            assert!(of_node.is_sorted_by(|a, b| a < b), "seed {seed}: {epochs:?}");
        }
        let all: Vec<_> = epochs.into_iter().flatten().collect();
        let distinct: BTreeSet<_> = all.iter().collect();
        assert_eq!(
            distinct.len(),
            all.len(),
            "seed {seed}: an epoch was given twice: {all:?}"
        );
        assert!(
            all.len() > 12,
            "seed {seed}: hardly any takeover succeeded: {}",
            all.len()
        );
    }
}

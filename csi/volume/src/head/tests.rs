//! What a head promises: compare-and-swap, epochs, leases, and refusal of what it cannot read.

use std::sync::Arc;

use super::*;
use crate::bucket::memory::MemoryBucket;
use crate::bucket::{Bucket, ListPage, ListRequest, Object, ObjectMeta};

fn new_head(name: &str) -> Head {
    let volume = VolumeId::of_name(name).unwrap();
    let parameters = Parameters::default();
    let now = Timestamp {
        seconds: 1_700_000_000,
        nanos: 1_500_000,
    };
    Head::new(NewHead {
        name: name.to_owned(),
        volume,
        uuid: Uuid::from_u128(7),
        capacity_bytes: 0,
        parameters,
        now,
    })
}

fn file(root: &BucketRef, writer: u128) -> HeadFile {
    HeadFile::new(root.clone(), HeadWriter::new(Uuid::from_u128(writer)))
}

fn claim(node: &str, session: u128, lease: Option<Lease>) -> Claim {
    let node_id = NodeId::new(node).unwrap();
    Claim {
        node_id,
        session: Uuid::from_u128(session),
        lease,
        now: Timestamp::default(),
    }
}

/// A change that nothing refuses.
fn always(mut change: impl FnMut(&mut Head)) -> impl FnMut(&mut Head) -> Result<(), HeadError> {
    move |head| {
        change(head);
        Ok(())
    }
}

async fn volume(name: &str) -> (BucketRef, HeadFile) {
    let root: BucketRef = Arc::new(MemoryBucket::new());
    let head = file(&root, 1);
    head.create(new_head(name)).await.unwrap();
    (root, head)
}

#[tokio::test]
async fn a_head_is_read_as_it_was_created() {
    let (_, head) = volume("v1").await;
    let read = head.read().await.unwrap();
    assert_eq!((read.name.as_str(), read.epoch, read.clean), ("v1", Epoch(0), true));
    assert_eq!(read.created_unix_ms, 1_700_000_000_001);
    assert!(matches!(head.create(new_head("v1")).await, Err(HeadError::Exists)));
}

#[tokio::test]
async fn the_longest_name_with_two_hundred_readers_fits_a_head() {
    let name = "Ü".repeat(128);
    let (_, head) = volume(&name).await;
    for n in 1..=200u64 {
        let publication = Publication {
            node_id: NodeId::new(&format!("{n:0>36}")).unwrap(),
            lease: Lease(n),
            read_only: true,
            mode: AccessMode::MultiNodeReaderOnly,
            published_unix_ms: 1_700_000_000_001,
        };
        head.update(always(|head| head.publications.push(publication.clone())))
            .await
            .unwrap();
    }
    let filler = "x".repeat(HEAD_BYTES_MAX);
    let longer = head.update(always(|head| head.name.push_str(&filler))).await;
    assert!(matches!(longer, Err(HeadError::TooLong { .. })));
    assert_eq!(
        head.read().await.unwrap().name,
        name,
        "a refused change changes nothing"
    );
}

#[tokio::test]
async fn a_newer_format_is_refused_with_its_number() {
    let root: BucketRef = Arc::new(MemoryBucket::new());
    root.put_if_absent(HEAD_KEY, Bytes::from_static(br#"{"format":2,"shape":"other"}"#))
        .await
        .unwrap();
    let error = file(&root, 1).read().await.unwrap_err();
    assert!(error.to_string().contains("format 2"), "{error}");
}

#[tokio::test]
async fn a_damaged_head_is_an_error_not_an_empty_volume() {
    for body in [&b""[..], b"{", b"\0\0\0", br#"{"format":1}"#, br#"{"format":"1"}"#] {
        let root: BucketRef = Arc::new(MemoryBucket::new());
        root.put_if_absent(HEAD_KEY, Bytes::copy_from_slice(body))
            .await
            .unwrap();
        let error = file(&root, 1).read().await.unwrap_err();
        assert!(matches!(error, HeadError::Corrupt { .. }), "{error}");
    }
}

/// Goal: no change of the head is lost. Method: 8 writers add 1 to the capacity 5 times each, at once.
#[tokio::test(start_paused = true)]
async fn concurrent_updates_all_take_effect() {
    let (root, head) = volume("v1").await;
    let writers = (10..18).map(|writer| {
        let head = file(&root, writer << 64 | writer);
        async move {
            for _ in 0..5 {
                loop {
                    let added = head.update(always(|head| head.capacity_bytes += 1)).await;
                    match added {
                        Ok(_) => break,
                        Err(HeadError::Contended) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
    });
    futures::future::join_all(writers).await;
    assert_eq!(head.read().await.unwrap().capacity_bytes, 40);
}

#[tokio::test]
async fn each_takeover_begins_the_next_epoch_and_fences_the_one_before() {
    let (root, head) = volume("v1").await;
    let first = head.take_over(&claim("a", 1, None)).await.unwrap();
    assert_eq!(
        (first.head.epoch, first.before, first.clean),
        (Epoch(1), Epoch(0), true)
    );
    assert!(first.displaced.is_none());

    let second = file(&root, 2).take_over(&claim("b", 2, None)).await.unwrap();
    assert_eq!(
        (second.head.epoch, second.before, second.clean),
        (Epoch(2), Epoch(1), false)
    );
    assert_eq!(second.displaced.unwrap().node_id.as_str(), "a");

    let error = head.release(Epoch(1), None).await.unwrap_err();
    assert!(
        matches!(&error, HeadError::Fenced { epoch: Epoch(2), owner, .. } if owner == "b"),
        "{error}"
    );
    assert!(head.confirm(Epoch(1)).await.is_err());
    head.confirm(Epoch(2)).await.unwrap();
}

#[tokio::test]
async fn a_released_volume_is_clean_for_the_next_mount() {
    let (_, head) = volume("v1").await;
    head.take_over(&claim("a", 1, None)).await.unwrap();
    head.release(Epoch(1), None).await.unwrap();
    head.release(Epoch(1), None).await.unwrap();
    let next = head.take_over(&claim("b", 2, None)).await.unwrap();
    assert!(next.clean && next.displaced.is_none());
}

#[tokio::test]
async fn only_the_lease_in_the_head_may_take_over() {
    let (_, head) = volume("v1").await;
    let publish = |head: &mut Head| {
        head.publications.push(Publication {
            node_id: NodeId::new("a").unwrap(),
            lease: Lease(3),
            read_only: false,
            mode: AccessMode::SingleNodeWriter,
            published_unix_ms: 0,
        });
    };
    head.update(always(publish)).await.unwrap();
    for (node, lease) in [("a", Lease(2)), ("b", Lease(3))] {
        let error = head.take_over(&claim(node, 1, Some(lease))).await.unwrap_err();
        assert!(matches!(error, HeadError::NoLease { .. }), "{error}");
    }
    let error = head.take_over(&claim("c", 1, None)).await.unwrap_err();
    assert!(matches!(error, HeadError::Published { .. }), "{error}");
    let taken = head.take_over(&claim("a", 1, Some(Lease(3)))).await.unwrap();
    assert!(taken.head.rightful_leader().is_some());

    let (head, ()) = head.update(always(|head| head.publications.clear())).await.unwrap();
    assert!(head.leader.is_some() && head.rightful_leader().is_none());
}

/// A store that does what it is told and then, for the first `silent` puts, does not say so.
#[derive(Debug)]
struct LostAnswers {
    inner: MemoryBucket,
    silent: AtomicU64,
}

impl LostAnswers {
    fn answer(&self, done: Result<ETag, BucketError>) -> Result<ETag, BucketError> {
        let take = |left: u64| left.checked_sub(1);
        match self.silent.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(_) => Err(BucketError::Unavailable {
                key: HEAD_KEY.to_owned(),
                detail: "no answer".to_owned(),
            }),
            Err(_) => done,
        }
    }
}

#[async_trait::async_trait]
impl Bucket for LostAnswers {
    async fn get(&self, key: &str, range: Option<std::ops::Range<u64>>) -> Result<Object, BucketError> {
        self.inner.get(key, range).await
    }
    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.inner.head(key).await
    }
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        let done = self.inner.put_if_absent(key, body).await;
        self.answer(done)
    }
    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        let done = self.inner.put_if_match(key, body, expected).await;
        self.answer(done)
    }
    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.inner.delete(key).await
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        self.inner.list(request).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_answer_was_lost_is_made_once() {
    let bucket = Arc::new(LostAnswers {
        inner: MemoryBucket::new(),
        silent: AtomicU64::new(1),
    });
    let root: BucketRef = bucket.clone();
    let head = file(&root, 1);
    head.create(new_head("v1")).await.unwrap();
    assert_eq!(bucket.silent.load(Ordering::SeqCst), 0, "the answer of create was lost");

    bucket.silent.store(1, Ordering::SeqCst);
    let taken = head.take_over(&claim("a", 1, None)).await.unwrap();
    assert_eq!(
        (taken.head.epoch, taken.before, taken.clean),
        (Epoch(1), Epoch(0), true)
    );
    assert_eq!(head.read().await.unwrap().epoch, Epoch(1));
}

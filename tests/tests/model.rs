//! Random operations on a volume and on the naive model, with restarts, crashes and take-overs between any two.
//!
//! Snapshots are made while all that goes on, and volumes made of them and of the volume.
//!
//! Goal: after every operation both give the same answer; after a restart the same tree; after a crash or a take-over the
//! tree of some moment at or after the last fsync that returned (of any moment in a relaxed volume, and in a local one whose
//! disk is lost), whatever part of the requests in flight took effect.
//! Method: one seed is one world: random delays before and after the effect of each request, tables from
//! tiny to large. A failure names its seed.

mod model_world;

use model_world::World;
use tests::model::Refused;

/// Worlds of a run. More are for long runs: the number of the first one and how many is all there is to change.
const SEEDS: std::ops::Range<u64> = 0..16;

/// Steps in each world.
const STEPS: u32 = 150;

#[test]
fn a_volume_is_what_the_model_says_through_restarts_crashes_and_take_overs() {
    for seed in SEEDS {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut world = World::new(seed).await;
            for _ in 0..STEPS {
                world.step().await;
            }
            world.end().await;
        });
    }
}

#[test]
fn the_model_refuses_what_posix_refuses() {
    use tests::model::{Content, Model, NodeId};
    let mut model = Model::new();
    let dir = || Content::Directory(std::collections::BTreeMap::new());
    let a = model.make(NodeId::ROOT, b"a", dir(), 0o755).expect("new");
    let b = model.make(a, b"b", dir(), 0o755).expect("new");
    let file = model.make(a, b"f", Content::File(Vec::new()), 0o644).expect("new");
    assert_eq!(model.make(a, b"f", dir(), 0), Err(Refused::Exists));
    assert_eq!(model.rmdir(NodeId::ROOT, b"a"), Err(Refused::NotEmpty));
    assert_eq!(
        model.rename((NodeId::ROOT, b"a"), (b, b"x"), true, false),
        Err(Refused::Invalid)
    );
    assert_eq!(
        model.rename((a, b"f"), (a, b"b"), true, false),
        Err(Refused::IsDirectory)
    );
    model.open(file);
    model.unlink(a, b"f").expect("there");
    assert_eq!(model.len(), 4, "open, so it stays");
    model.close(file);
    assert_eq!((model.len(), model.node(a).nlink), (3, 3));
}

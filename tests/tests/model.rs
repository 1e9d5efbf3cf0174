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

use model_world::{World, crash_states};
use tests::environment::{number, say};
use tests::model::Refused;

/// Worlds of a run; `PANNIER_MODEL_WORLDS` asks for more, from `PANNIER_MODEL_SEED` on.
const WORLDS: u64 = 16;

/// Steps in each world.
const STEPS: u32 = 150;

#[test]
fn a_volume_is_what_the_model_says_through_restarts_crashes_and_take_overs() {
    let first = number("PANNIER_MODEL_SEED").unwrap_or(0);
    for seed in first..first + number("PANNIER_MODEL_WORLDS").unwrap_or(WORLDS) {
        let _named = NamedWhenItFails(seed);
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

/// Wherever a world fails, its seed is told.
struct NamedWhenItFails(u64);

impl Drop for NamedWhenItFails {
    fn drop(&mut self) {
        if std::thread::panicking() {
            say(&format!("the world of seed {} failed", self.0));
        }
    }
}

/// Crash states that a run looks at; `PANNIER_CRASH_STATES` asks for more.
const CRASH_STATES: usize = 1_600;

/// Steps in each world of that test: some hundred requests.
const CRASH_STEPS: u32 = 400;

/// States that are looked at of each of them at most.
const CRASH_STATES_OF_A_WORLD: usize = 400;

/// Goal: a crash at any moment, with any part of the requests under way having taken effect, loses nothing that an fsync has
/// acknowledged, and leaves the tree of one moment. Method: see `crash_states.rs`; worlds in virtual time, each of them one
/// seed (`PANNIER_CRASH_SEED` is the first).
#[test]
fn every_state_in_which_a_crash_may_leave_the_bucket_is_a_moment_at_or_after_the_last_fsync() {
    let wanted = number("PANNIER_CRASH_STATES").unwrap_or(CRASH_STATES as u64);
    let first = number("PANNIER_CRASH_SEED").unwrap_or(1);
    let (mut looked_at, mut seed) = (0, first);
    while looked_at < wanted {
        let _named = NamedWhenItFails(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        looked_at += runtime.block_on(crash_states::check(seed, CRASH_STEPS, CRASH_STATES_OF_A_WORLD)) as u64;
        seed += 1;
    }
    say(&format!("{looked_at} states of the worlds {first} to {}", seed - 1));
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

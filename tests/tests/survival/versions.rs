//! Engines of other versions than the one that has made a mount.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::kill;
use tests::engine_process::EngineProcess;
use volume_mount::keeper::{KeeperClient, KeeperError, replace_engine, socket_beside};

use super::{ends_without_a_trace, kept_mount, wait_until};

/// What engines read that know nothing of requests beside a connection.
const FIRST_VERSION: u32 = 1;

/// Not a test of its own: the keeper starts it as an engine, with its socket behind the other words.
#[test]
#[ignore = "it is the engine of an earlier version that the test below lets a keeper start"]
fn an_engine_of_the_first_version() {
    let Some(socket) = std::env::args().rfind(|word| word.ends_with(".keeper")) else {
        return;
    };
    let refused = KeeperClient::take_over(&PathBuf::from(socket), FIRST_VERSION).expect_err("it cannot read that");
    assert!(
        matches!(&refused, KeeperError::Refused { why } if why.contains("needs version 2")),
        "{refused}"
    );
}

/// An engine that cannot read what the one before has left gets nothing and changes nothing; one that can takes over, also after that.
#[test]
fn an_engine_that_cannot_read_what_is_kept_is_refused_and_the_old_one_serves_on() {
    let (_store, folder, mnt, mut engine) =
        kept_mount(|store, folder| EngineProcess::start_kept_with(store, folder, &["--relay"]));
    let serving = engine.health().expect("it answers").pid;
    let words = ["versions::an_engine_of_the_first_version", "--exact", "--ignored", "--"];
    let program = std::env::current_exe().expect("this test's program");
    replace_engine(&socket_beside(engine.socket()), program, words.map(Into::into).to_vec()).expect("it is started");
    wait_until("the keeper says so", || {
        let said = engine.said();
        said.contains("an engine was refused") && said.contains("the new engine ended before it was ready")
    });
    fs::write(mnt.join("file"), "served").expect("it is served");
    assert_eq!(engine.health().expect("it answers").pid, serving);
    let before = engine.kept_engine().expect("an engine runs");
    engine.replace_engine(&[]);
    wait_until("the old one goes", || kill(before, None).is_err());
    assert_eq!(fs::read_to_string(mnt.join("file")).expect("it is served"), "served");
    ends_without_a_trace(engine, &folder, &mnt);
}

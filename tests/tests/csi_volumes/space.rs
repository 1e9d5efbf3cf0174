//! How large a volume is, and whose.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::sys::statvfs::statvfs;
use proto::csi::v1 as csi;
use tests::calls::{errno, pattern};
use tests::csi_plugin::{CsiPlugin, Ground};
use tests::nomad_calls::{Nomad, Use};

use super::{MIB, options, server, until};

fn total_bytes(path: &Path) -> u64 {
    let space = statvfs(path).expect("a mount");
    space.blocks() * space.fragment_size()
}

fn free_bytes(path: &Path) -> u64 {
    let space = statvfs(path).expect("a mount");
    space.blocks_available() * space.fragment_size()
}

/// Writes MiB after MiB until the volume is full, and returns how many bytes it took.
fn fill(path: &Path) -> u64 {
    let file = File::create(path).expect("a file");
    let mut written = 0;
    loop {
        let wrote = file.write_all_at(&pattern(MIB as usize, written), written);
        match wrote.and_then(|()| file.sync_all()) {
            Ok(()) => written += MIB,
            Err(error) => {
                assert_eq!(errno::<()>(Err(error)), libc::ENOSPC);
                return written;
            }
        }
    }
}

/// Goal: a volume is as large as it was asked to be: writes beyond end with ENOSPC within 1 % of the limit, what is
/// deleted can be used again, and a volume that is registered with a larger capacity grows under the running task, told
/// or untold. Method: fill it, delete, fill, expand by the controller alone and wait for `df`; then by both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_volume_says_so_and_grows_under_a_running_task() {
    let Some(server) = server().await else { return };
    let ground = Ground::new();
    let mut options = options(&server);
    options.push(("PANNIER_ENGINE_LOOK_EVERY".into(), "2".into()));
    let plugin = CsiPlugin::start_with(&ground, "n1", options).await;
    let mut nomad = Nomad::new(&ground, &plugin);
    let limit = 20 * MIB;
    nomad.create("v1", limit as i64).await;
    let v1 = Use::writer("v1", "alloc");
    nomad.start(&v1).await.expect("the volume is mounted");
    let target = nomad.target(&v1);
    assert_eq!(total_bytes(&target), limit);
    let taken = tokio::task::block_in_place(|| fill(&target.join("first")));
    assert!(
        taken <= limit && limit - taken <= MIB + limit / 100,
        "{taken} of {limit}"
    );
    fs::remove_file(target.join("first")).expect("a full volume can be emptied");
    until("deletes free their space", || {
        free_bytes(&target) >= limit - limit / 100
    })
    .await;
    let again = tokio::task::block_in_place(|| fill(&target.join("second")));
    assert_eq!(again, taken, "a full volume that was emptied takes as much again");

    assert_eq!(
        nomad.expand("v1", 2 * limit as i64).await.expect("it grows"),
        2 * limit as i64
    );
    until("a mount learns of its capacity by itself", || {
        total_bytes(&target) == 2 * limit
    })
    .await;
    let more = tokio::task::block_in_place(|| fill(&target.join("third")));
    assert!(more + again <= 2 * limit && 2 * limit - more - again <= MIB + limit / 50);

    nomad.expand("v1", 4 * limit as i64).await.expect("it grows again");
    let told = csi::NodeExpandVolumeRequest {
        volume_id: "v1".into(),
        volume_path: target.to_string_lossy().into_owned(),
        capacity_range: Some(csi::CapacityRange {
            required_bytes: 4 * limit as i64,
            limit_bytes: 0,
        }),
        ..Default::default()
    };
    let told = nomad.node.node_expand_volume(told).await.expect("the node is told");
    assert_eq!(told.into_inner().capacity_bytes, 4 * limit as i64);
    assert_eq!(total_bytes(&target), 4 * limit, "a node that was told knows at once");
    nomad.stop(&v1).await.expect("the volume is let go");
    assert_eq!(ground.mounts(), Vec::<std::path::PathBuf>::new(), "{}", ground.logs());
}

/// Goal: a job's uid, gid and mode reach the top directory, those of the volume file at the first mount, and what cannot be
/// is refused by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_belongs_to_whom_its_file_or_its_job_says() {
    let Some(server) = server().await else { return };
    let ground = Ground::new();
    let plugin = CsiPlugin::start(&ground, &server, "volumes", "n1").await;
    let mut nomad = Nomad::new(&ground, &plugin);
    let parameters = [("uid", "1000"), ("gid", "100"), ("mode", "0750"), ("cache_ram", "8MiB")];
    nomad
        .create_with("v1", 0, &parameters)
        .await
        .expect("the parameters are known");
    let owner = |path: &Path| {
        let found = fs::metadata(path).expect("a mount");
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    let plain = Use::writer("v1", "a");
    nomad.start(&plain).await.expect("the volume is mounted");
    assert_eq!(owner(&nomad.target(&plain)), (1000, 100, 0o750));
    nomad.unpublish(&plain).await.expect("it ends");
    let owned = Use::writer("v1", "b").with_flags(&["uid=2000,gid=200", "mode=2770", "noexec"]);
    nomad.start(&owned).await.expect("the flags are known");
    assert_eq!(owner(&nomad.target(&owned)), (2000, 200, 0o2770));
    nomad.stop(&owned).await.expect("it ends");
    nomad.start(&plain).await.expect("the volume is mounted");
    assert_eq!(
        owner(&nomad.target(&plain)),
        (2000, 200, 0o2770),
        "without flags it stays as it is"
    );
    nomad.stop(&plain).await.expect("it ends");
    for (name, value) in [
        ("uid", "root"),
        ("umask", "0700"),
        ("s3_outage", "eio"),
        ("bucket", "other"),
        ("durability", "maybe"),
    ] {
        let refused = nomad
            .create_with("v2", 0, &[(name, value)])
            .await
            .expect_err("it cannot be");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains(name), "{refused}");
    }
}

//! Keys of volumes.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use tests::csi_plugin::{CsiPlugin, Ground};
use tests::nomad_calls::{Nomad, Use};
use tests::s3_server::S3Server;
use uuid::Uuid;
use volume::admin::{Admin, CapacityRange, CreateVolume, NodeRecord};
use volume::bucket::Prefixed;
use volume::clock::Timestamp;
use volume::head::Parameters;
use volume::volume_id::NodeId;

use super::{options, server, write};

/// A node and a volume, made by somebody who has keys: a plugin without keys of its own cannot make itself known.
async fn prepare(server: &S3Server) {
    let bucket = Prefixed::new(server.bucket("volumes").await, "cluster/".to_owned());
    let admin = Admin::new(Arc::new(bucket), Uuid::new_v4());
    let record = NodeRecord::new(NodeId::new("n1").expect("a plain id"), "test", 0);
    admin.register_node(&record).await.expect("the node is known");
    let creation = CreateVolume {
        name: "v1".into(),
        uuid: Uuid::new_v4(),
        capacity: CapacityRange::default(),
        parameters: Parameters::default(),
        now: Timestamp::default(),
    };
    admin.create(&creation).await.expect("the volume is made");
}

/// No secret may be in a log, in the arguments of a process, or in a file that others may read.
fn search(ground: &Ground, secrets: &[&str]) {
    let state = ground.path("state");
    for line in fs::read_to_string(ground.path("plugin.log")).expect("a log").lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    let logs = ground.logs();
    let mut searched = vec![("the logs".to_owned(), logs)];
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    for process in processes.filter(|entry| {
        entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.parse::<i32>().is_ok())
    }) {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        searched.push((
            format!("{:?}", process.path()),
            String::from_utf8_lossy(&line).into_owned(),
        ));
    }
    for (place, text) in &searched {
        let shown = secrets.iter().any(|secret| text.contains(secret));
        assert!(!shown, "a secret is in {place}");
    }
    let mut folders = vec![state];
    let mut holding = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let kind = entry.file_type().expect("a kind");
            if kind.is_dir() && entry.file_name() != "mounts" {
                folders.push(entry.path());
            } else if kind.is_file() {
                let body = fs::read(entry.path()).unwrap_or_default();
                let text = String::from_utf8_lossy(&body).into_owned();
                let shown = secrets.iter().any(|secret| text.contains(secret));
                let mode = entry.metadata().expect("a mode").permissions().mode();
                assert!(
                    !shown || mode & 0o077 == 0,
                    "{:?} shows a secret to others: {mode:o}",
                    entry.path()
                );
                holding += u32::from(shown);
            }
        }
    }
    assert!(
        holding >= 1,
        "calls that come without keys find them in files of the owner's"
    );
}

/// Goal: keys of a volume open it and nothing else shows them. Method: the plugin has no keys of its own; the volume's come
/// as secrets, wrong ones first, then (registered anew) right ones, then none, as an old Nomad server loses them. Then
/// every log, every file that others may read, and every process' arguments are searched for the secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_of_a_volume_are_used_renewed_and_never_shown() {
    let Some(server) = server().await else { return };
    let ground = Ground::new();
    let mut options = options(&server);
    let take = |name: &str, options: &mut Vec<(String, String)>| {
        let at = options
            .iter()
            .position(|(known, _)| known == name)
            .expect("the server has keys");
        options.swap_remove(at).1
    };
    let id = take("AWS_ACCESS_KEY_ID", &mut options);
    let secret = take("AWS_SECRET_ACCESS_KEY", &mut options);
    options.push(("AWS_EC2_METADATA_DISABLED".into(), "true".into()));
    options.push(("AWS_SHARED_CREDENTIALS_FILE".into(), "/nonexistent".into()));
    options.push(("AWS_CONFIG_FILE".into(), "/nonexistent".into()));
    options.push(("PANNIER_LOG_FORMAT".into(), "json".into()));
    prepare(&server).await;
    let plugin = CsiPlugin::start_with(&ground, "n1", options).await;
    let mut nomad = Nomad::new(&ground, &plugin);
    let with = |alloc: &str, secret: &str| {
        let mut used = Use::writer("v1", alloc);
        used.secrets = HashMap::from([
            ("access_key_id".to_owned(), id.clone()),
            ("secret_access_key".to_owned(), secret.to_owned()),
        ]);
        used
    };
    let wrong = "ThisIsTheWrongSecretOfTheVolume";
    let refused = nomad
        .start(&with("a", wrong))
        .await
        .expect_err("a wrong key opens nothing");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    let right = with("a", &secret);
    nomad.start(&right).await.expect("the right key opens the volume");
    write(&nomad.target(&right).join("file"), "content");
    let lost = Use::writer("v1", "b");
    nomad
        .start(&lost)
        .await
        .expect("a call without keys uses those that are known");
    write(&nomad.target(&lost).join("other"), "content");

    search(&ground, &[secret.as_str(), wrong]);
    for used in [&lost, &right] {
        nomad.unpublish(used).await.expect("it ends");
    }
    nomad.stop(&right).await.expect("the volume is let go");
}

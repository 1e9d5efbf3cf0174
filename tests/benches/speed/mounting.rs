//! A volume of a million files: how long it takes to be there, and to list a folder of it, when nothing is in any cache.
//!
//! It is filled by calls of `Volume`, next to the store; then it is opened and mounted as the engine does it, from afar.

use std::fs;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tests::s3_server::S3Server;
use volume::attr::Caller;
use volume::budget::Budget;
use volume::head::{Parameters, Transport};
use volume::ids::InodeNo;
use volume::volume::{CacheConfig, Volume};
use volume::volume_id::NodeId;
use volume_mount::mountpoint::{self, AttachOptions};
use volume_mount::open::{Connection, OpenSpec, RootOwner, open};
use volume_mount::session::{Session, Succession};
use volume_mount::store::{Access, Keys, Stores};
use volume_s3::{Credentials, S3Location};

use crate::Bench;
use crate::systems::{System, forget_caches};
use crate::table::{Limit, Metric};

/// Files of a folder.
const FOLDER: u64 = 2_000;

const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

fn spec(endpoint: &str) -> OpenSpec {
    let Credentials::Keys {
        id,
        secret,
        session_token,
    } = S3Server::credentials()
    else {
        panic!("the server has keys");
    };
    let keys = Keys {
        id,
        secret,
        session_token,
    };
    OpenSpec {
        location: "s3://bench/million".parse::<S3Location>().unwrap(),
        access: Access {
            endpoint: Some(endpoint.to_owned()),
            keys: Some(keys),
            ..Access::default()
        },
        node_id: NodeId::new("bench").unwrap(),
        read_only: false,
        lease: None,
        take_over: false,
        create: Some(Parameters::default()),
        state_dir: None,
        cache: CacheConfig::default(),
        root: RootOwner::default(),
        transport: None,
    }
}

async fn fill(volume: &Volume, folder: u64) {
    let name = format!("folder-{folder:04}");
    let dir = volume
        .mkdir(InodeNo::ROOT, name.as_bytes(), 0o755, CALLER)
        .await
        .unwrap();
    for n in 0..FOLDER {
        let name = format!("file-{n:06}");
        let file = volume.create(dir.ino, name.as_bytes(), 0o644, CALLER).await.unwrap();
        volume
            .write(file.ino, 0, Bytes::from_static(b"a few bytes"))
            .await
            .unwrap();
        volume.release(file.ino);
        volume.forget(file.ino, 1);
    }
    volume.forget(dir.ino, 1);
}

async fn opened(spec: &OpenSpec) -> Volume {
    let shared = (&Stores::default(), &Budget::default());
    let opened = open(spec, Connection::begin(false), shared).await.unwrap();
    opened.volume
}

/// Fills, opens, mounts, lists.
pub fn group(bench: &mut Bench) {
    let folders = bench.arguments.million / FOLDER;
    let near = spec(bench.server.endpoint());
    bench.runtime.block_on(async {
        let volume = opened(&near).await;
        let folders = (0..folders).map(|folder| fill(&volume, folder));
        stream::iter(folders).buffer_unordered(4).collect::<Vec<()>>().await;
        volume.close().await.unwrap();
    });
    let requests = Metric {
        name: "open a million files: requests",
        unit: "",
        limit: Some(Limit::AtMost(25.0)),
    };
    let opening = Metric {
        name: "open a million files",
        unit: "ms",
        limit: Some(Limit::AtMost(300.0)),
    };
    let listing = Metric {
        name: "first ls of 2,000 of them",
        unit: "ms",
        limit: Some(Limit::AtMost(100.0)),
    };
    let attributes = Metric {
        name: "first ls -l of 2,000 others",
        unit: "ms",
        limit: None,
    };
    let far = spec(&bench.proxy.endpoint());
    let dir = bench.place.scratch.join("million");
    fs::create_dir_all(&dir).unwrap();
    for round in 0..bench.arguments.rounds.max(3) {
        bench.settle(System::Pannier);
        let (before, begun) = (bench.proxy.counts(), Instant::now());
        let volume = bench.runtime.block_on(opened(&far));
        let attach = AttachOptions {
            source: "bench".to_owned(),
            read_only: false,
            noexec: false,
            nosuid: false,
            transport: Transport::Classic,
        };
        let attached =
            Session::attach(volume.clone(), &dir, &attach, Succession::None, bench.runtime.handle()).unwrap();
        let session = attached.serve(&dir).unwrap();
        let took = begun.elapsed();
        let counts = bench.proxy.counts().since(&before);
        bench.table.note(opening, System::Pannier, took.as_secs_f64() * 1e3);
        bench.table.note(requests, System::Pannier, counts.requests() as f64);
        bench.table.note_counts(opening, counts);
        for (metric, folder, stat) in [(listing, 3 + round, false), (attributes, folders / 2 + round, true)] {
            let folder = dir.join(format!("folder-{folder:04}"));
            let (before, begun) = (bench.proxy.counts(), Instant::now());
            let done = crate::loads::find(&folder, stat);
            assert_eq!(done.count, FOLDER);
            bench
                .table
                .note(metric, System::Pannier, begun.elapsed().as_secs_f64() * 1e3);
            bench.table.note_counts(metric, bench.proxy.counts().since(&before));
        }
        forget_caches(&dir);
        mountpoint::unmount(&dir).unwrap();
        bench.runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(30), session.ended())
                .await
                .unwrap();
            volume.close().await.unwrap();
        });
    }
}

//! What a volume can do, as Nomad asks for it: the real plugin, engine and kernel on an S3 server.
#![expect(clippy::disallowed_macros, reason = "what was measured is the test's own output")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use tests::csi_plugin::unable_to_mount;
use tests::s3_server::{Kind, S3Server, skip};

mod command;
mod container;
mod copies;
mod metrics;
mod modes;
mod order;
mod secrets;
mod soak;
mod space;
mod trouble;

/// 120 s for what is promised within one minute, on a machine that does other work.
const PATIENCE: Duration = Duration::from_secs(120);

/// A mebibyte.
const MIB: u64 = 1 << 20;

async fn server() -> Option<S3Server> {
    if let Some(reason) = unable_to_mount() {
        skip(reason);
        return None;
    }
    let server = S3Server::start_in_ram(Kind::Minio).await?;
    server.bucket("volumes").await;
    Some(server)
}

/// What a plugin needs to know of the server.
fn options(server: &S3Server) -> Vec<(String, String)> {
    let keys = S3Server::environment();
    let place = [
        ("PANNIER_BUCKET", "volumes"),
        ("PANNIER_S3_ENDPOINT", server.endpoint()),
    ];
    let all = keys.into_iter().chain(place);
    all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Waits until something holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn write(path: &Path, text: &str) {
    let file = File::create(path).expect("a file can be made");
    file.write_all_at(text.as_bytes(), 0).expect("a write");
    file.sync_all().expect("an fsync");
}

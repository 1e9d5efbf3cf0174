//! Samples of a real container, from whichever cgroup version this host has.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use podman_driver::compute::Compute;
use podman_driver::podman::Podman;
use podman_driver::stats::{Reader, Sampling, samples};

use crate::fixture::PodmanService;

/// A minute: on an idle machine everything here takes less than three seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Goal: the first sample comes at once, use is seen, the stream ends with the task. Method: a container that is busy
/// with 8 MiB of memory until it is killed.
#[tokio::test]
async fn a_busy_task_is_seen_to_be_busy_until_it_ends() {
    let Some(service) = PodmanService::shared() else { return };
    let podman: Arc<dyn Podman> = Arc::new(service.client());
    let script = "x=$(head -c 8000000 /dev/zero | tr '\\0' a); while :; do :; done";
    let id = podman
        .create_container(&service.shell("stats", script))
        .await
        .unwrap()
        .id;
    podman.start_container(&id).await.unwrap();
    let (awaiting, awaited) = (Arc::clone(&podman), id.clone());
    let begun = Instant::now();
    let mut samples = Box::pin(samples(Sampling {
        podman: Arc::clone(&podman),
        container: id.clone(),
        compute: Compute {
            total_mhz: 4000,
            cores: 2,
        },
        interval: Duration::from_millis(200),
        reader: Arc::new(Reader::default()),
        ended: Box::pin(async move {
            awaiting.wait_exit(&awaited).await.unwrap();
        }),
    }));
    let first = tokio::time::timeout(PATIENCE, samples.next()).await.unwrap().unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "the first sample comes promptly: {:?}",
        begun.elapsed()
    );
    assert_eq!(
        (first.cpu.percent, first.cpu.total_mhz),
        (0.0, 0.0),
        "there is nothing to compare the first with"
    );
    let busy = async {
        loop {
            let sample = samples.next().await.expect("the task runs");
            if sample.cpu.percent > 10.0 && sample.memory.rss.unwrap_or(0) > 8_000_000 {
                return sample;
            }
        }
    };
    let sample = tokio::time::timeout(PATIENCE, busy)
        .await
        .expect("a busy loop uses more than a tenth of a core");
    assert!(
        (sample.cpu.total_mhz - sample.cpu.percent * 20.0).abs() < 0.001,
        "a core has 2000 MHz: {sample:?}"
    );
    let parts = sample.cpu.user_percent.unwrap() + sample.cpu.system_percent.unwrap();
    assert!(
        (parts - sample.cpu.percent).abs() < sample.cpu.percent / 2.0 + 10.0,
        "{sample:?}"
    );
    assert!(sample.memory.usage.unwrap() > 8_000_000, "{sample:?}");
    podman.kill_container(&id, "SIGKILL").await.unwrap();
    let rest = samples.map(|_sample| ()).collect::<Vec<()>>();
    tokio::time::timeout(PATIENCE, rest)
        .await
        .expect("the stream ends with the task");
    podman.remove_container(&id, true).await.unwrap();
}

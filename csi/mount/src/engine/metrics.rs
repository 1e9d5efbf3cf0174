//! The engine's numbers as Prometheus reads them: what docs/operations.md lists, and what the dashboard shows.
//!
//! Written from memory: it never waits for a store or a mount. Caller: whoever serves the text (`pannier engine`).

use std::time::Duration;

use volume::head::Transport;
use volume::metrics::{Exposition, Kind, Labels, seconds};
use volume_s3::Operation;

use super::Engine;
use super::table::{Served, ServedKey};

/// Behind the name of a volume that the plugin opened for reading beside a writer.
const READING: &str = "+ro";

/// An open volume, as it was when the text was begun.
struct Row {
    volume: String,
    access: &'static str,
    served: Served,
}

impl Row {
    fn new(key: &ServedKey, served: &Served) -> Self {
        let volume = key.volume_id.strip_suffix(READING).unwrap_or(&key.volume_id);
        Self {
            volume: volume.to_owned(),
            access: if key.read_only { "ro" } else { "rw" },
            served: served.clone(),
        }
    }

    fn labels(&self) -> [(&str, &str); 2] {
        [("volume", &self.volume), ("access", self.access)]
    }
}

/// One metric of volumes: its name, kind and help, and its value.
type OfVolume = (&'static str, Kind, &'static str, fn(&Row) -> Option<f64>);

#[expect(clippy::cast_precision_loss, reason = "Prometheus knows 64-bit floats only")]
const OF_VOLUMES: &[OfVolume] = &[
    (
        "pannier_volume_mountpoints",
        Kind::Gauge,
        "Places where the volume is mounted by this engine.",
        |row| Some(row.served.mountpoints.len() as f64),
    ),
    (
        "pannier_volume_io_uring",
        Kind::Gauge,
        "1 if the kernel reaches the engine by io_uring: such a mount ends with the engine.",
        |row| {
            Some(f64::from(u8::from(
                row.served.session.transport() == Transport::IoUring,
            )))
        },
    ),
    (
        "pannier_volume_lost",
        Kind::Gauge,
        "1 if no write of this mount will ever be acknowledged again.",
        |row| Some(f64::from(u8::from(row.served.volume.lost().is_some()))),
    ),
    (
        "pannier_volume_epoch",
        Kind::Gauge,
        "The writer's term; it grows with each mount for writing.",
        |row| Some(row.served.volume.info().epoch.0 as f64),
    ),
    (
        "pannier_volume_capacity_bytes",
        Kind::Gauge,
        "What the files may take; absent without a limit.",
        |row| row.served.volume.info().capacity_bytes.map(|bytes| bytes as f64),
    ),
    (
        "pannier_volume_used_bytes",
        Kind::Gauge,
        "What the files take.",
        |row| {
            let space = row.served.volume.statfs();
            Some((space.total_bytes - space.free_bytes) as f64)
        },
    ),
    (
        "pannier_volume_inodes",
        Kind::Gauge,
        "Files, directories and all else with an inode.",
        |row| Some(row.served.volume.statfs().inodes as f64),
    ),
    (
        "pannier_volume_dirty_bytes",
        Kind::Gauge,
        "Bytes that are not in the bucket yet.",
        |row| Some(row.served.volume.dirty_bytes() as f64),
    ),
    (
        "pannier_volume_oldest_dirty_seconds",
        Kind::Gauge,
        "Age of the oldest change that is not in the bucket yet.",
        |row| {
            let oldest = row.served.volume.metrics().oldest_dirty;
            Some(seconds(oldest.unwrap_or(Duration::ZERO)))
        },
    ),
    (
        "pannier_volume_outage_seconds",
        Kind::Gauge,
        "How long the store has not answered this mount, or refused its keys; 0 while all is well.",
        |row| {
            let outage = row.served.volume.outage();
            Some(seconds(outage.map_or(Duration::ZERO, |outage| outage.lasts)))
        },
    ),
    (
        "pannier_volume_commits_total",
        Kind::Counter,
        "Commits that are durable.",
        |row| Some(row.served.volume.commit_stats()?.commits as f64),
    ),
    (
        "pannier_volume_stored_bytes_total",
        Kind::Counter,
        "Bytes of journal objects and segments put.",
        |row| Some(row.served.volume.commit_stats()?.stored_bytes as f64),
    ),
    (
        "pannier_volume_commit_retries_total",
        Kind::Counter,
        "Puts of commits that were tried again.",
        |row| Some(row.served.volume.commit_stats()?.retries as f64),
    ),
    (
        "pannier_volume_tree_flushes_total",
        Kind::Counter,
        "Flushes of the metadata tree.",
        |row| Some(row.served.volume.commit_stats()?.tree_flushes as f64),
    ),
];

impl Engine {
    /// All numbers of now.
    pub fn metrics(&self, version: &str) -> String {
        let rows: Vec<Row> = {
            let table = self.table();
            let all = table.served.iter();
            all.map(|(key, served)| Row::new(key, served)).collect()
        };
        let mut text = Exposition::default();
        text.begin(
            "pannier_engine_info",
            Kind::Gauge,
            "The program that serves the mounts.",
        );
        text.sample(&[("version", version)], 1.0);
        for (name, kind, help, value) in OF_VOLUMES {
            text.begin(name, *kind, help);
            for row in &rows {
                if let Some(value) = value(row) {
                    text.sample(&row.labels(), value);
                }
            }
        }
        frames(&mut text, &rows);
        text.begin(
            "pannier_volume_fsync_seconds",
            Kind::Histogram,
            "How long calls waited for what they had written to be durable.",
        );
        for row in &rows {
            text.histogram(&row.labels(), &row.served.volume.metrics().fsyncs);
        }
        self.requests(&mut text);
        text.finish()
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus knows 64-bit floats only")]
    fn requests(&self, text: &mut Exposition) {
        let counters = self.inner.stores.counters();
        let counts = counters.snapshot();
        let all = Operation::ALL.map(|operation| (operation.name(), counts.of(operation)));
        let mut counter = |name, help, value: fn(volume_s3::OperationCount) -> u64| {
            text.begin(name, Kind::Counter, help);
            for (operation, count) in all {
                text.sample(&[("operation", operation)], value(count) as f64);
            }
        };
        counter(
            "pannier_s3_requests_total",
            "Requests sent, repeats included: what the store bills.",
            |count| count.requests,
        );
        counter(
            "pannier_s3_repeats_total",
            "Requests that repeat one that failed.",
            |count| count.repeats,
        );
        counter(
            "pannier_s3_hedges_total",
            "Second requests, sent because the first had no answer in the usual time.",
            |count| count.hedges,
        );
        counter(
            "pannier_s3_hedges_won_total",
            "Second requests whose answer came first.",
            |count| count.hedges_won,
        );
        counter("pannier_s3_sent_bytes_total", "Bytes of bodies sent.", |count| {
            count.sent_bytes
        });
        counter(
            "pannier_s3_received_bytes_total",
            "Bytes of bodies received.",
            |count| count.received_bytes,
        );
        text.begin(
            "pannier_s3_request_seconds",
            Kind::Histogram,
            "How long requests took until their answer began.",
        );
        for operation in Operation::ALL {
            text.histogram(&[("operation", operation.name())], &counters.seconds(operation));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus knows 64-bit floats only")]
fn frames(text: &mut Exposition, rows: &[Row]) {
    text.begin(
        "pannier_volume_cache_frames_total",
        Kind::Counter,
        "Frames of content by where they came from: ram, disk, or the bucket (a miss).",
    );
    for row in rows {
        let frames = row.served.volume.metrics().frames;
        for (tier, count) in [
            ("ram", frames.in_ram),
            ("disk", frames.on_disk),
            ("bucket", frames.missing),
        ] {
            let labels: Labels<'_> = &[("volume", &row.volume), ("access", row.access), ("tier", tier)];
            text.sample(labels, count as f64);
        }
    }
}

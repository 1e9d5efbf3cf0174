//! Clearing up in the background: images that nobody needs any more, and containers of this node's tasks that no task is
//! known of.
//!
//! Invariants: only what carries our label and this node's id is a candidate; nothing is removed while no agent is
//! connected (a plugin that was left behind by its agent knows nothing of newer tasks), nor before it has been without a
//! task for the whole grace, counted from when this process first saw it so. Absent: the end of a known task (stop.rs).

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Dangling;
use crate::plugin::{Plugin, Service, Settings};
use crate::podman::{ContainerListing, PodmanError};
use crate::{spec, stop};

/// One second: the shortest pause between two rounds, however short the operator's periods are.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// A minute: the longest pause, so that new options are seen.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Images are looked at this many times within their delay: an image stays at most a quarter longer than it must.
const LOOKS_PER_DELAY: u32 = 4;

/// The work in the background, begun once in a process.
#[derive(Debug, Default)]
pub struct Clearing {
    begun: OnceLock<()>,
}

/// What was seen without a task, and since when.
#[derive(Debug, Default)]
pub struct Strays {
    since: BTreeMap<String, Instant>,
}

impl Clearing {
    /// Begins it. Must be called inside a runtime.
    pub fn begin(&self, plugin: &Plugin) {
        self.begun.get_or_init(|| {
            tokio::spawn(keep_clear(plugin.clone()));
        });
    }
}

async fn keep_clear(plugin: Plugin) {
    let mut strays = Strays::default();
    let (mut images_at, mut strays_at) = (Instant::now(), Instant::now());
    loop {
        let settings = plugin.settings();
        let gc = &settings.config.gc;
        let now = Instant::now();
        if gc.image && now >= images_at {
            clear_images(&settings).await;
            images_at = now + (gc.image_delay / LOOKS_PER_DELAY).clamp(PAUSE_MIN, PAUSE_MAX);
        }
        if gc.dangling.enabled && now >= strays_at {
            strays.look(&plugin, &settings).await;
            strays_at = now + gc.dangling.period.max(PAUSE_MIN);
        }
        tokio::time::sleep(PAUSE_MIN.max(pause(&settings, images_at, strays_at))).await;
    }
}

fn pause(settings: &Settings, images_at: Instant, strays_at: Instant) -> Duration {
    let now = Instant::now();
    let gc = &settings.config.gc;
    let images = gc.image.then(|| images_at.saturating_duration_since(now));
    let strays = gc.dangling.enabled.then(|| strays_at.saturating_duration_since(now));
    [images, strays].into_iter().flatten().fold(PAUSE_MAX, Duration::min)
}

async fn clear_images(settings: &Settings) {
    for service in settings.distinct_services() {
        // Where the images are is not known before Podman was there once.
        let Ok(info) = service.info().await else { continue };
        let Some(storage) = &info.store.graph_root else {
            continue;
        };
        let keeper = service.images.keeper();
        keeper.remember_in(storage);
        if let Err(error) = keeper.sweep(&*service.podman, settings.config.gc.image_delay).await {
            tracing::debug!(socket = service.name, %error, "cannot look for images to remove");
        }
    }
}

impl Strays {
    /// Looks once, and removes what has been without a task for the whole grace.
    pub async fn look(&mut self, plugin: &Plugin, settings: &Settings) {
        let Some(node) = plugin.node_id().filter(|_| plugin.events.is_heard()) else {
            // Nobody whose tasks these could be: what was seen before does not count.
            self.since.clear();
            return;
        };
        let mut seen = BTreeMap::new();
        for service in settings.distinct_services() {
            match self.without_task(plugin, settings, service, &node).await {
                Ok(strays) => seen.extend(strays.into_iter().map(|stray| (stray, service))),
                Err(error) => {
                    tracing::debug!(socket = service.name, %error, "cannot look for containers without a task")
                }
            }
        }
        let now = Instant::now();
        self.since.retain(|id, _| seen.contains_key(id));
        for (id, service) in seen {
            let first = !self.since.contains_key(&id);
            let since = *self.since.entry(id.clone()).or_insert(now);
            if first {
                tracing::warn!(container = id, "a container of this node has no task");
            }
            if now.duration_since(since) >= settings.config.gc.dangling.creation_grace {
                self.remove(service, &id, &settings.config.gc.dangling, first).await;
            }
        }
    }

    async fn without_task(
        &self,
        plugin: &Plugin,
        settings: &Settings,
        service: &Service,
        node: &str,
    ) -> Result<Vec<String>, PodmanError> {
        let labels = [
            (spec::DRIVER_LABEL, spec::DRIVER_LABEL_VALUE),
            (spec::NODE_ID_LABEL, node),
        ];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let listings = service.podman.list_containers(&labels).await?;
        let stray = |listing: ContainerListing| {
            // One that was kept on purpose after its end has no task either.
            let ended = matches!(listing.state.as_deref(), Some("exited" | "stopped"));
            let task = listing.labels.get(spec::TASK_ID_LABEL)?;
            let wanted = plugin.roster.has(task) || ended && !settings.config.gc.container;
            listing.id.filter(|_| !wanted)
        };
        Ok(listings.into_iter().filter_map(stray).collect())
    }

    async fn remove(&mut self, service: &Service, id: &str, dangling: &Dangling, first: bool) {
        if dangling.dry_run {
            if first {
                tracing::warn!(container = id, "would remove a container without a task (dry_run)");
            }
            return;
        }
        tracing::warn!(container = id, "removing a container without a task");
        stop::end_logs_of(&*service.podman, id).await;
        match service.podman.remove_container(id, true).await {
            Ok(()) => {
                self.since.remove(id);
            }
            Err(error) => tracing::warn!(container = id, error = ?error, "cannot remove a container without a task"),
        }
    }
}

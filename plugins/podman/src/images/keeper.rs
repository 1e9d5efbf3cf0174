//! Which images the driver pulled, whether anybody needs them, and their removal once nobody has for a while.
//!
//! Invariants: an image is removed only if this driver brought it to the host, under the name that it was pulled by, while no
//! container of anybody is made of it and no start is about to make one. Podman has the last word: it refuses to remove
//! what is in use. What was pulled is remembered in a file beside the images, so that a restart of the plugin forgets
//! nothing; a file that cannot be read or written means that images stay.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::podman::{Podman, PodmanError};

/// The file in Podman's storage directory.
const FILE: &str = "nomad-driver-podman.json";

/// Version 1: `images` by id, with the name that each was pulled by.
const VERSION: u32 = 1;

/// The images that the driver brought to one Podman service.
#[derive(Debug)]
pub struct Keeper {
    // Never held across an await.
    state: Mutex<State>,
    removed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Where they are remembered; None: not known yet.
    file: Option<PathBuf>,
    pulled: BTreeMap<String, Pulled>,
    /// By how many starts an image is needed that no container shows yet.
    held: BTreeMap<String, usize>,
    /// Being removed right now.
    leaving: BTreeSet<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pulled {
    reference: String,
    /// Since when nobody has needed it. Forgotten with the process: a new one gives the whole delay again.
    #[serde(skip)]
    idle_since: Option<Instant>,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    version: u32,
    images: BTreeMap<String, Pulled>,
}

/// An image that stays as long as this is there.
#[derive(Debug)]
pub struct HeldImage {
    /// Its id.
    pub id: String,
    keeper: Arc<Keeper>,
}

impl Default for Keeper {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            removed: watch::Sender::new(()),
        }
    }
}

impl Keeper {
    /// Remembers in this directory from now on, and what was remembered there before.
    pub fn remember_in(&self, storage: &Path) {
        let file = storage.join(FILE);
        let mut state = self.state();
        if state.file.as_ref() == Some(&file) {
            return;
        }
        match read(&file) {
            Ok(images) => state.pulled.extend(images),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "what images were pulled is not known, they stay")
            }
        }
        state.file = Some(file);
        state.write();
    }

    /// Notes that the driver pulled an image that was not there before.
    pub fn pulled(&self, id: &str, reference: &str) {
        let mut state = self.state();
        let pulled = Pulled {
            reference: reference.to_owned(),
            idle_since: None,
        };
        state.pulled.insert(plain(id).to_owned(), pulled);
        state.write();
    }

    /// Keeps an image from being removed; None if it is just leaving, so that it must be looked for anew.
    pub fn hold(self: &Arc<Self>, id: &str) -> Option<HeldImage> {
        let mut state = self.state();
        if state.leaving.contains(plain(id)) {
            return None;
        }
        *state.held.entry(plain(id).to_owned()).or_default() += 1;
        if let Some(pulled) = state.pulled.get_mut(plain(id)) {
            pulled.idle_since = None;
        }
        drop(state);
        Some(HeldImage {
            id: id.to_owned(),
            keeper: Arc::clone(self),
        })
    }

    /// Waits until an image that was leaving has left.
    pub async fn until_left(&self, id: &str) {
        let mut removed = self.removed.subscribe();
        while self.state().leaving.contains(plain(id)) {
            // The sender is ours, so it is there.
            let _ = removed.changed().await;
        }
    }

    /// Removes what nobody has needed for `delay`. Asks Podman nothing while the driver has pulled nothing.
    ///
    /// # Errors
    /// Of listing the containers; a removal that fails is logged, and tried again later.
    pub async fn sweep(&self, podman: &dyn Podman, delay: Duration) -> Result<(), PodmanError> {
        if self.state().pulled.is_empty() {
            return Ok(());
        }
        let containers = podman.list_containers(&BTreeMap::new()).await?;
        let used = containers.iter().filter_map(|listing| listing.image_id.as_deref());
        let used: BTreeSet<String> = used.map(|id| plain(id).to_owned()).collect();
        for (id, reference) in self.choose(&used, delay, Instant::now()) {
            let removed = podman.remove_image(&reference).await;
            match &removed {
                Ok(()) => tracing::info!(image = reference, "removed an image that nobody needs"),
                // Somebody uses it by another name, or began to a moment ago.
                Err(error) => tracing::info!(image = reference, %error, "podman keeps an image"),
            }
            self.left(&id, removed.is_ok());
        }
        Ok(())
    }

    /// What to remove now. It counts as leaving from here on.
    fn choose(&self, used: &BTreeSet<String>, delay: Duration, now: Instant) -> Vec<(String, String)> {
        let mut state = self.state();
        let State {
            pulled, held, leaving, ..
        } = &mut *state;
        let mut chosen = Vec::new();
        for (id, image) in pulled.iter_mut() {
            if used.contains(id) || held.contains_key(id) {
                image.idle_since = None;
                continue;
            }
            let since = *image.idle_since.get_or_insert(now);
            if now.duration_since(since) >= delay {
                leaving.insert(id.clone());
                chosen.push((id.clone(), image.reference.clone()));
            }
        }
        chosen
    }

    fn left(&self, id: &str, gone: bool) {
        let mut state = self.state();
        state.leaving.remove(id);
        if gone {
            state.pulled.remove(id);
            state.write();
        } else if let Some(image) = state.pulled.get_mut(id) {
            image.idle_since = None;
        }
        drop(state);
        self.removed.send_replace(());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave it half changed: each change is one call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HeldImage {
    fn drop(&mut self) {
        let mut state = self.keeper.state();
        if let Some(count) = state.held.get_mut(plain(&self.id)) {
            *count -= 1;
            if *count == 0 {
                state.held.remove(plain(&self.id));
            }
        }
    }
}

impl State {
    /// Small, seldom and local: a few hundred bytes after a pull.
    fn write(&self) {
        let Some(file) = &self.file else { return };
        let remembered = Remembered {
            version: VERSION,
            images: self.pulled.clone(),
        };
        if remembered.images.is_empty() && !file.exists() {
            return;
        }
        let json = serde_json::to_vec(&remembered).expect("strings are JSON");
        let unfinished = file.with_extension("new");
        let written = std::fs::File::create(&unfinished)
            .and_then(|mut new| new.write_all(&json))
            .and_then(|()| std::fs::rename(&unfinished, file));
        if let Err(error) = written {
            tracing::warn!(file = %file.display(), %error, "images pulled now stay after a restart of the plugin");
        }
    }
}

fn read(file: &Path) -> std::io::Result<BTreeMap<String, Pulled>> {
    let remembered: Remembered = serde_json::from_slice(&std::fs::read(file)?)?;
    if remembered.version != VERSION {
        let version = remembered.version;
        return Err(std::io::Error::other(format!("version {version}, known is {VERSION}")));
    }
    Ok(remembered.images)
}

/// An id as it is compared: some answers have the algorithm before it.
fn plain(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podman::{ContainerSpec, FakePodman, ImageInfo};

    fn podman() -> FakePodman {
        let podman = FakePodman::new();
        let image = ImageInfo {
            id: Some("1".into()),
            ..ImageInfo::default()
        };
        podman.add_image("r/a:1", image);
        podman
    }

    async fn is_there(podman: &FakePodman) -> bool {
        podman.inspect_image("r/a:1").await.unwrap().is_some()
    }

    async fn sweep(keeper: &Keeper, podman: &FakePodman) {
        keeper.sweep(podman, Duration::ZERO).await.unwrap();
    }

    #[tokio::test]
    async fn only_what_was_pulled_is_removed() {
        let (keeper, podman) = (Keeper::default(), podman());
        sweep(&keeper, &podman).await;
        assert!(is_there(&podman).await);
        keeper.pulled("sha256:1", "r/a:1");
        sweep(&keeper, &podman).await;
        assert!(!is_there(&podman).await);
    }

    #[tokio::test]
    async fn an_image_stays_for_starts_and_for_containers_of_anybody() {
        let (keeper, podman) = (Arc::new(Keeper::default()), podman());
        keeper.pulled("1", "r/a:1");
        let held = [keeper.hold("1").unwrap(), keeper.hold("sha256:1").unwrap()];
        sweep(&keeper, &podman).await;
        drop(held);
        let spec = ContainerSpec {
            name: "somebody's".into(),
            image: "1".into(),
            ..ContainerSpec::default()
        };
        podman.create_container(&spec).await.unwrap();
        sweep(&keeper, &podman).await;
        assert!(is_there(&podman).await);
        podman.remove_container("somebody's", true).await.unwrap();
        sweep(&keeper, &podman).await;
        assert!(!is_there(&podman).await);
    }

    #[test]
    fn the_delay_begins_when_the_last_one_left() {
        let keeper = Arc::new(Keeper::default());
        keeper.pulled("1", "r/a:1");
        let (delay, start) = (Duration::from_secs(180), Instant::now());
        let chosen = |after_s: u64| {
            let now = start + Duration::from_secs(after_s);
            keeper.choose(&BTreeSet::new(), delay, now).len()
        };
        assert_eq!((chosen(0), chosen(179)), (0, 0));
        drop(keeper.hold("1"));
        assert_eq!((chosen(190), chosen(369), chosen(370)), (0, 0, 1));
    }

    #[tokio::test]
    async fn a_new_process_remembers_and_a_damaged_file_means_that_images_stay() {
        let (dir, podman) = (tempfile::tempdir().unwrap(), podman());
        let first = Keeper::default();
        first.remember_in(dir.path());
        assert!(!dir.path().join(FILE).exists(), "nothing to remember, no file");
        first.pulled("1", "r/a:1");
        std::fs::copy(dir.path().join(FILE), dir.path().join("kept")).unwrap();
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let second = Keeper::default();
        second.remember_in(dir.path());
        sweep(&second, &podman).await;
        assert!(is_there(&podman).await);
        std::fs::copy(dir.path().join("kept"), dir.path().join(FILE)).unwrap();
        let third = Keeper::default();
        third.remember_in(dir.path());
        sweep(&third, &podman).await;
        assert!(!is_there(&podman).await);
        let fourth = read(&dir.path().join(FILE)).unwrap();
        assert!(fourth.is_empty(), "what is gone is forgotten");
    }

    #[tokio::test]
    async fn an_image_that_is_leaving_is_waited_for() {
        let keeper = Arc::new(Keeper::default());
        keeper.pulled("1", "r/a:1");
        let chosen = keeper.choose(&BTreeSet::new(), Duration::ZERO, Instant::now());
        assert_eq!(chosen.len(), 1);
        assert!(keeper.hold("1").is_none());
        let waiting = keeper.until_left("1");
        keeper.left("1", true);
        waiting.await;
        assert!(keeper.hold("1").is_some());
    }
}

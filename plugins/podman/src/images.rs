//! Coming by a task's image: from local storage, from an archive here or at a URL, else by a pull.
//!
//! Tasks that want the same image at the same time share one pull. It goes on as long as one of them waits, and is given
//! up with the last. Invariants: `localhost/` names are never pulled; credentials are asked for only when there is
//! something to pull; each task keeps its own deadline, and hears of the pull in a few events, not in a line per layer.
//! Absent: removing images (keeper.rs).

pub mod credentials;
pub mod download;
pub mod keeper;
pub mod reference;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::watch;

use crate::podman::{Platform, Podman, PodmanError, PullRequest, RegistryAuth};
use crate::task_config::ImageOptions;
use credentials::{AuthError, AuthSources};
use download::{DownloadError, download};
use keeper::{HeldImage, Keeper};
use reference::{Reference, ReferenceError, Source};

/// Two minutes between events about one pull: Nomad keeps the last ten events of a task.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(120);

/// Where a downloaded archive is until Podman has it, in the task's directory, which no container sees.
const ARCHIVE_FILE: &str = ".podman-image.tar";

/// Pauses between the tries of a pull that the registry broke off or did not answer. Later tries are Nomad's.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];

/// What image is wanted and who hears of the progress.
pub struct ImageRequest<'a> {
    /// The task's options.
    pub options: &'a ImageOptions,
    /// Where relative archives are.
    pub task_dir: &'a Path,
    /// Hears what an operator should see, seldom.
    pub progress: &'a (dyn Fn(&str) + Send + Sync),
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The job's `image` names none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A name that is never pulled is not there.
    #[error("{reference} is not in local storage, and localhost/ images are never pulled")]
    NotLocal {
        /// The name.
        reference: String,
    },
    /// An archive without an image.
    #[error("no image is in {}", path.display())]
    EmptyArchive {
        /// The archive.
        path: PathBuf,
    },
    /// The credentials that the options name cannot be had.
    #[error("no credentials to pull {reference} with: {source}")]
    Auth {
        /// The image.
        reference: String,
        /// Why.
        #[source]
        source: AuthError,
    },
    /// It took too long.
    #[error("{reference} was not there within image_pull_timeout ({limit:?})")]
    TimedOut {
        /// The image.
        reference: String,
        /// The deadline.
        limit: Duration,
    },
    /// Nothing was heard of the pull for too long.
    #[error(
        "nothing was heard of the pull of {reference} for {limit:?} (pull_activity_timeout in the plugin's config)"
    )]
    Silent {
        /// The image.
        reference: String,
        /// How long.
        limit: Duration,
    },
    /// An archive cannot be fetched.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// Podman failed. Shared, because the tasks that waited for one pull share its failure.
    #[error(transparent)]
    Podman(#[from] Arc<PodmanError>),
}

impl ImageError {
    /// Whether the same start may succeed later without anybody changing it.
    #[must_use]
    pub fn is_recoverable(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Silent { .. } => true,
            Self::Download(error) => error.is_recoverable(),
            // Helpers fail when the service that they ask is away.
            Self::Auth { source, .. } => matches!(source, AuthError::Helper { .. }),
            Self::Podman(error) => error.is_recoverable(),
            Self::Reference(_) | Self::NotLocal { .. } | Self::EmptyArchive { .. } => false,
        }
    }
}

/// What makes two pulls the same.
#[derive(Clone, PartialEq, Eq, Hash)]
struct PullKey {
    reference: String,
    always: bool,
    tls_verify: Option<bool>,
    platform: Platform,
    auth: Option<RegistryAuth>,
}

type Pulled = Result<String, PullError>;

/// Why a pull that several wait for failed.
#[derive(Debug, Clone)]
enum PullError {
    Podman(Arc<PodmanError>),
    Silent,
}

/// One pull that several may wait for.
struct Flight {
    pull: WeakShared<BoxFuture<'static, Pulled>>,
    line: watch::Receiver<String>,
}

/// The images of one Podman service.
#[derive(Default)]
pub struct Images {
    sources: AuthSources,
    keeper: Arc<Keeper>,
    /// How long a pull may be silent; zero: for ever.
    activity_limit: Duration,
    // Never held across an await. Pulls that nobody waits for any more are dropped with the next one.
    flights: Mutex<HashMap<PullKey, Flight>>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images")
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

impl Images {
    /// With these sources of credentials; a pull that is silent for `activity_limit` is given up, with zero never.
    #[must_use]
    pub fn new(sources: AuthSources, activity_limit: Duration) -> Self {
        Self {
            sources,
            keeper: Arc::default(),
            activity_limit,
            flights: Mutex::default(),
        }
    }

    /// Who knows what was pulled.
    #[must_use]
    pub fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// Makes sure that the image is there, and stays there as long as what is returned does.
    ///
    /// # Errors
    /// [`ImageError`], as its variants say.
    pub async fn ensure(&self, podman: &Arc<dyn Podman>, request: ImageRequest<'_>) -> Result<HeldImage, ImageError> {
        let limit = request.options.pull_timeout;
        let reference = request.options.reference.clone();
        let image = async {
            loop {
                let id = self.come_by(podman, &request).await?;
                if let Some(held) = self.keeper.hold(&id) {
                    return Ok(held);
                }
                self.keeper.until_left(&id).await;
            }
        };
        tokio::time::timeout(limit, image)
            .await
            .unwrap_or(Err(ImageError::TimedOut { reference, limit }))
    }

    async fn come_by(&self, podman: &Arc<dyn Podman>, request: &ImageRequest<'_>) -> Result<String, ImageError> {
        match Source::parse(&request.options.reference, request.task_dir)? {
            Source::Archive(path) => load(podman, &path, request.progress).await,
            Source::ArchiveUrl(url) => fetch_and_load(podman, &url, request).await,
            Source::Registry(reference) => self.find_or_pull(podman, &reference, request).await,
        }
    }

    async fn find_or_pull(
        &self,
        podman: &Arc<dyn Podman>,
        reference: &Reference,
        request: &ImageRequest<'_>,
    ) -> Result<String, ImageError> {
        let options = request.options;
        let local = find(&**podman, reference, options).await.map_err(Arc::new)?;
        match local {
            Some(id) if reference.is_local() || !options.force_pull => return Ok(id),
            None if reference.is_local() => {
                return Err(ImageError::NotLocal {
                    reference: reference.full.clone(),
                });
            }
            Some(_) | None => {}
        }
        let key = PullKey {
            reference: reference.full.clone(),
            // Not only if forced: an image of another platform under the name would satisfy Podman.
            always: options.force_pull || options.wants_platform(),
            tls_verify: options.tls_verify,
            platform: options.platform(),
            auth: self.credentials(reference, options).await?,
        };
        (request.progress)(&format!("Pulling image {}", reference.full));
        let (pull, line) = self.join(podman, key);
        told(pull, line, PROGRESS_INTERVAL, request.progress)
            .await
            .map_err(|error| match error {
                PullError::Podman(error) => ImageError::Podman(error),
                PullError::Silent => ImageError::Silent {
                    reference: reference.full.clone(),
                    limit: self.activity_limit,
                },
            })
    }

    /// Credentials of the job, else of the plugin's options, else none: Podman then uses its own.
    async fn credentials(
        &self,
        reference: &Reference,
        options: &ImageOptions,
    ) -> Result<Option<RegistryAuth>, ImageError> {
        if let Some(auth) = options.auth.as_ref().filter(|auth| !auth.username.is_empty()) {
            let (username, password) = (auth.username.clone(), auth.password.clone());
            return Ok(Some(RegistryAuth {
                username,
                password,
                identity_token: None,
            }));
        }
        match self.sources.find(reference).await {
            Ok(auth) => Ok(auth),
            Err(error) if options.auth_soft_fail => {
                tracing::warn!(image = reference.full, %error, "pulling without credentials");
                Ok(None)
            }
            Err(source) => Err(ImageError::Auth {
                reference: reference.full.clone(),
                source,
            }),
        }
    }

    /// The pull of this key that is under way, or a new one.
    fn join(
        &self,
        podman: &Arc<dyn Podman>,
        key: PullKey,
    ) -> (Shared<BoxFuture<'static, Pulled>>, watch::Receiver<String>) {
        let mut flights = self.flights();
        flights.retain(|_, flight| flight.pull.upgrade().is_some());
        if let Some(flight) = flights.get(&key)
            && let Some(pull) = flight.pull.upgrade()
            && pull.peek().is_none()
        {
            return (pull, flight.line.clone());
        }
        let (tell, line) = watch::channel(String::new());
        let (podman, request, keeper) = (Arc::clone(podman), key.request(), Arc::clone(&self.keeper));
        let activity_limit = self.activity_limit;
        let pull = async move {
            let before = podman.inspect_image(&request.reference).await;
            let id = pull_anew(&*podman, &request, &tell, activity_limit).await?;
            // What somebody else had brought here stays theirs, and what we cannot know about as well.
            let known =
                matches!(&before, Ok(found) if found.as_ref().is_none_or(|found| found.id.as_ref() != Some(&id)));
            if known {
                note(&*podman, &keeper, &id, &request.reference).await;
            }
            Ok(id)
        };
        let pull = pull.boxed().shared();
        let weak = pull.downgrade().expect("a future that was just made has not ended");
        flights.insert(
            key,
            Flight {
                pull: weak,
                line: line.clone(),
            },
        );
        (pull, line)
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<PullKey, Flight>> {
        // A panic elsewhere cannot leave the map half changed: each change is one call.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PullKey {
    fn request(&self) -> PullRequest {
        PullRequest {
            reference: self.reference.clone(),
            always: self.always,
            tls_verify: self.tls_verify,
            auth: self.auth.clone(),
            platform: self.platform.clone(),
        }
    }
}

impl ImageOptions {
    fn platform(&self) -> Platform {
        Platform {
            arch: self.arch.clone(),
            os: self.os.clone(),
            variant: self.variant.clone(),
        }
    }

    fn wants_platform(&self) -> bool {
        self.platform() != Platform::default()
    }
}

/// The local image's id, if it is of the wanted platform. By its full name first; a name without a registry may also be
/// that of an image which was built or loaded here, or an id.
async fn find(
    podman: &dyn Podman,
    reference: &Reference,
    options: &ImageOptions,
) -> Result<Option<String>, PodmanError> {
    let mut names = vec![reference.full.as_str()];
    if reference.is_short() {
        names.push(&reference.written);
    }
    for name in names {
        let Some(image) = podman.inspect_image(name).await? else {
            continue;
        };
        let fits = |wanted: &Option<String>, got: &Option<String>| wanted.is_none() || wanted == got;
        // Images do not reliably say their variant, so a wish for one is left to the pull.
        let right =
            fits(&options.arch, &image.architecture) && fits(&options.os, &image.os) && options.variant.is_none();
        if right {
            return Ok(Some(image.id.unwrap_or_else(|| name.to_owned())));
        }
    }
    Ok(None)
}

/// Waits for a pull, telling what it does from time to time.
async fn told(
    mut pull: Shared<BoxFuture<'static, Pulled>>,
    line: watch::Receiver<String>,
    interval: Duration,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Pulled {
    loop {
        match tokio::time::timeout(interval, &mut pull).await {
            Ok(pulled) => return pulled,
            Err(_elapsed) => progress(&format!("Image pull progress: {}", line.borrow().as_str())),
        }
    }
}

/// The file is gone afterwards, also when the start is given up; the task's directory goes with the allocation.
async fn fetch_and_load(podman: &Arc<dyn Podman>, url: &str, request: &ImageRequest<'_>) -> Result<String, ImageError> {
    let file = Removed(request.task_dir.join(ARCHIVE_FILE));
    (request.progress)(&format!("Downloading image {}", download::shown(url)));
    download(url, &file.0).await?;
    load(podman, &file.0, request.progress).await
}

/// A file that is removed when this is dropped.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Pulls, and again if the registry was away.
async fn pull_anew(
    podman: &dyn Podman,
    request: &PullRequest,
    tell: &watch::Sender<String>,
    activity_limit: Duration,
) -> Pulled {
    let mut pauses = RETRY_PAUSES.into_iter();
    loop {
        let progress = |line: &str| {
            tracing::debug!(image = request.reference, line, "pulling");
            tell.send_replace(line.to_owned());
        };
        let pulled = tokio::select! {
            pulled = podman.pull_image(request, &progress) => pulled,
            () = silence(tell.subscribe(), activity_limit) => return Err(PullError::Silent),
        };
        match (pulled, pauses.next()) {
            (Ok(id), _) => return Ok(id),
            (Err(error @ PodmanError::Pull { .. }), Some(pause)) if error.is_recoverable() => {
                tracing::warn!(image = request.reference, %error, "the pull failed, trying again");
                tokio::time::sleep(pause).await;
            }
            (Err(error), _) => return Err(PullError::Podman(Arc::new(error))),
        }
    }
}

/// Returns when nothing was heard for `limit`; never if that is zero.
async fn silence(mut line: watch::Receiver<String>, limit: Duration) {
    if limit.is_zero() {
        std::future::pending::<()>().await;
    }
    while let Ok(Ok(())) = tokio::time::timeout(limit, line.changed()).await {}
}

/// Remembers an image that was not there before: it has no other name than the one it was pulled by.
async fn note(podman: &dyn Podman, keeper: &Keeper, id: &str, reference: &str) {
    // An image whose names are not known is not ours to remove.
    let Ok(Some(image)) = podman.inspect_image(id).await else {
        return;
    };
    if image.repo_tags.iter().all(|name| name == reference) {
        keeper.pulled(id, reference);
    }
}

async fn load(
    podman: &Arc<dyn Podman>,
    archive: &Path,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<String, ImageError> {
    progress(&format!("Loading image {}", archive.display()));
    let names = podman.load_image(archive).await.map_err(Arc::new)?;
    let empty = || ImageError::EmptyArchive {
        path: archive.to_owned(),
    };
    let name = names.first().ok_or_else(empty)?;
    let image = podman.inspect_image(name).await.map_err(Arc::new)?.ok_or_else(empty)?;
    Ok(image.id.unwrap_or_else(|| name.clone()))
}

#[cfg(test)]
mod tests;

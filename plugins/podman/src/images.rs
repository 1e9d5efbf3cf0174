//! Getting the image of a task: local storage first, else a pull.

use std::path::Path;
use std::sync::Arc;

use crate::podman::{Platform, Podman, PodmanError, PullFailure, PullRequest, RegistryAuth};
use crate::task_config::ImageOptions;

/// What image is wanted and who hears of the progress.
pub struct ImageRequest<'a> {
    /// The task's options.
    pub options: &'a ImageOptions,
    /// Where relative archives are.
    pub task_dir: &'a Path,
    /// Hears each line of progress.
    pub progress: &'a (dyn Fn(&str) + Send + Sync),
}

/// The images of a service.
#[derive(Debug, Default)]
pub struct Images;

impl Images {
    /// Makes sure that the image is there; returns its id.
    ///
    /// # Errors
    /// Podman's.
    pub async fn ensure(&self, podman: &Arc<dyn Podman>, request: ImageRequest<'_>) -> Result<String, PodmanError> {
        let options = request.options;
        if !options.force_pull
            && let Some(image) = podman.inspect_image(&options.reference).await?
        {
            return Ok(image.id.unwrap_or_else(|| options.reference.clone()));
        }
        (request.progress)(&format!("Pulling image {}", options.reference));
        let pull = PullRequest {
            reference: options.reference.clone(),
            always: options.force_pull,
            tls_verify: options.tls_verify,
            auth: options.auth.as_ref().map(|auth| RegistryAuth {
                username: auth.username.clone(),
                password: auth.password.clone(),
                identity_token: None,
            }),
            platform: Platform {
                arch: options.arch.clone(),
                os: options.os.clone(),
                variant: options.variant.clone(),
            },
        };
        let pulled = tokio::time::timeout(options.pull_timeout, podman.pull_image(&pull, request.progress)).await;
        pulled.unwrap_or_else(|_| {
            let message = format!(
                "the pull did not end within image_pull_timeout ({:?})",
                options.pull_timeout
            );
            Err(PodmanError::Pull {
                reference: pull.reference.clone(),
                kind: PullFailure::Registry,
                message,
            })
        })
    }
}

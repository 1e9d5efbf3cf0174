//! Images against the Podman in memory.

use std::sync::Mutex;

use super::*;
use crate::podman::{FakePodman, ImageInfo};
use crate::task_config::TaskAuth;

fn image(id: &str) -> ImageInfo {
    ImageInfo {
        id: Some(id.to_owned()),
        architecture: Some("amd64".to_owned()),
        ..ImageInfo::default()
    }
}

fn options(reference: &str) -> ImageOptions {
    ImageOptions {
        reference: reference.to_owned(),
        pull_timeout: Duration::from_secs(60),
        ..ImageOptions::default()
    }
}

struct World {
    fake: Arc<FakePodman>,
    images: Images,
    told: Mutex<Vec<String>>,
}

impl World {
    fn new() -> Self {
        Self {
            fake: Arc::new(FakePodman::new()),
            images: Images::default(),
            told: Mutex::default(),
        }
    }

    async fn ensure(&self, options: &ImageOptions) -> Result<String, ImageError> {
        let podman: Arc<dyn Podman> = self.fake.clone();
        let progress = |line: &str| self.told.lock().unwrap().push(line.to_owned());
        let request = ImageRequest {
            options,
            task_dir: Path::new("/task"),
            progress: &progress,
        };
        let held = self.images.ensure(&podman, request).await?;
        Ok(held.id.clone())
    }
}

#[tokio::test]
async fn an_image_that_is_there_is_not_pulled_unless_forced() {
    let world = World::new();
    world.fake.add_image("docker.io/library/a:1", image("old"));
    world.fake.add_registry_image("docker.io/library/a:1", image("new"));
    assert_eq!(world.ensure(&options("a:1")).await.unwrap(), "old");
    assert!(world.fake.pulls().is_empty() && world.told.lock().unwrap().is_empty());
    let forced = ImageOptions {
        force_pull: true,
        ..options("a:1")
    };
    assert_eq!(world.ensure(&forced).await.unwrap(), "new");
    assert_eq!(*world.told.lock().unwrap(), ["Pulling image docker.io/library/a:1"]);
    assert!(world.fake.pulls()[0].always);
}

#[tokio::test]
async fn an_image_for_another_platform_is_pulled_anew() {
    let world = World::new();
    world.fake.add_image("docker.io/library/a:1", image("here"));
    world.fake.add_registry_image("docker.io/library/a:1", image("arm"));
    let wants = |arch: &str| ImageOptions {
        arch: Some(arch.to_owned()),
        ..options("a:1")
    };
    assert_eq!(world.ensure(&wants("amd64")).await.unwrap(), "here");
    assert_eq!(world.ensure(&wants("arm64")).await.unwrap(), "arm");
    let pull = &world.fake.pulls()[0];
    assert_eq!((pull.always, pull.platform.arch.as_deref()), (true, Some("arm64")));
}

#[tokio::test]
async fn local_names_are_never_pulled_and_short_names_find_local_images() {
    let world = World::new();
    let forced = ImageOptions {
        force_pull: true,
        ..options("localhost/a:1")
    };
    let absent = world.ensure(&forced).await.unwrap_err();
    assert!(matches!(absent, ImageError::NotLocal { .. }) && !absent.is_recoverable());
    world.fake.add_image("localhost/a:1", image("local"));
    assert_eq!(world.ensure(&forced).await.unwrap(), "local");
    world.fake.add_image("built", image("built here"));
    assert_eq!(world.ensure(&options("built")).await.unwrap(), "built here");
    assert!(world.fake.pulls().is_empty());
}

#[tokio::test]
async fn an_image_that_does_not_exist_is_final() {
    let world = World::new();
    let error = world.ensure(&options("quay.io/a/b:1")).await.unwrap_err();
    assert!(
        !error.is_recoverable() && error.to_string().contains("quay.io/a/b:1"),
        "{error}"
    );
    assert!(matches!(
        world.ensure(&options("A")).await.unwrap_err(),
        ImageError::Reference(_)
    ));
}

#[tokio::test]
async fn credentials_that_cannot_be_had_stop_the_pull_unless_told_otherwise() {
    let mut world = World::new();
    let sources = AuthSources {
        file: Some("/absent/config.json".into()),
        helper: None,
    };
    world.images = Images::new(sources, Duration::ZERO);
    world.fake.add_registry_image("quay.io/a:1", image("a"));
    let error = world.ensure(&options("quay.io/a:1")).await.unwrap_err();
    assert!(error.to_string().contains("/absent/config.json"), "{error}");
    let soft = ImageOptions {
        auth_soft_fail: true,
        ..options("quay.io/a:1")
    };
    assert_eq!(world.ensure(&soft).await.unwrap(), "a");
    let own = TaskAuth {
        username: "u".to_owned(),
        password: "p".to_owned(),
    };
    let task = ImageOptions {
        force_pull: true,
        auth: Some(own),
        ..options("quay.io/a:1")
    };
    assert_eq!(world.ensure(&task).await.unwrap(), "a");
    assert_eq!(world.fake.pulls()[1].auth.as_ref().unwrap().username, "u");
}

/// Goal: one pull for all who want the image, each with its own deadline, and none for nobody. Method: the registry is
/// held; two wait, one of them gives up, then both; a third finds no pull under way.
#[tokio::test]
async fn tasks_that_want_the_same_image_share_a_pull() {
    let world = Arc::new(World::new());
    world.fake.add_registry_image("quay.io/a:1", image("a"));
    world.fake.hold_pulls(true);
    let wait = |pull_timeout| {
        let world = Arc::clone(&world);
        let options = ImageOptions {
            pull_timeout,
            ..options("quay.io/a:1")
        };
        tokio::spawn(async move { world.ensure(&options).await })
    };
    let (short, long) = (wait(Duration::from_millis(50)), wait(Duration::from_secs(60)));
    let timed_out = short.await.unwrap().unwrap_err();
    assert!(matches!(timed_out, ImageError::TimedOut { .. }) && timed_out.is_recoverable());
    world.fake.hold_pulls(false);
    assert_eq!(long.await.unwrap().unwrap(), "a");
    assert_eq!(world.fake.pulls().len(), 1);
    assert!(world.fake.pulls_given_up() == 0);

    world.fake.remove_image("quay.io/a:1").await.unwrap();
    world.fake.hold_pulls(true);
    let (one, two) = (wait(Duration::from_secs(60)), wait(Duration::from_secs(60)));
    while world.fake.pulls_given_up() == 0 || world.told.lock().unwrap().len() < 4 {
        tokio::task::yield_now().await;
    }
    one.abort();
    two.abort();
    assert!(one.await.is_err() && two.await.is_err());
    assert_eq!(
        (world.fake.pulls().len(), world.fake.pulls_given_up()),
        (2, 1),
        "given up with the last that waited"
    );
}

/// Method: the pull ends only once it has been told of, so that no clock decides.
#[tokio::test]
async fn a_long_pull_is_told_of_from_time_to_time() {
    let (_layer, line) = watch::channel("Copying blob 1".to_owned());
    let (tell, mut heard) = watch::channel(String::new());
    let progress = |line: &str| {
        tell.send_replace(line.to_owned());
    };
    let pull = async move {
        let heard = heard.wait_for(|line| !line.is_empty()).await.map(|line| line.clone());
        Ok(heard.expect("the one who tells is there"))
    };
    let pulled = told(pull.boxed().shared(), line, Duration::from_millis(10), &progress).await;
    assert_eq!(pulled.unwrap(), "Image pull progress: Copying blob 1");
}

#[tokio::test]
async fn what_was_pulled_goes_when_nobody_needs_it_and_what_was_there_stays() {
    let world = World::new();
    world.fake.add_image("quay.io/own:1", image("own"));
    world.fake.add_registry_image("quay.io/own:1", image("own"));
    world.fake.add_registry_image("quay.io/new:1", image("new"));
    let forced = ImageOptions {
        force_pull: true,
        ..options("quay.io/own:1")
    };
    assert_eq!(world.ensure(&forced).await.unwrap(), "own");
    assert_eq!(world.ensure(&options("quay.io/new:1")).await.unwrap(), "new");
    assert_eq!(world.fake.pulls().len(), 2);
    world.images.keeper().sweep(&*world.fake, Duration::ZERO).await.unwrap();
    assert!(world.fake.inspect_image("quay.io/own:1").await.unwrap().is_some());
    assert!(world.fake.inspect_image("quay.io/new:1").await.unwrap().is_none());
}

/// Goal: a pull that says nothing more is given up and may be tried again; one that goes on is not cut off. Method: the
/// registry is held for ever; no clock but the limit's own.
#[tokio::test]
async fn a_silent_pull_is_given_up() {
    let mut world = World::new();
    world.images = Images::new(AuthSources::default(), Duration::from_millis(20));
    world.fake.add_registry_image("quay.io/a:1", image("a"));
    world.fake.hold_pulls(true);
    let error = world.ensure(&options("quay.io/a:1")).await.unwrap_err();
    assert!(
        matches!(error, ImageError::Silent { .. }) && error.is_recoverable(),
        "{error}"
    );
    assert!(error.to_string().contains("pull_activity_timeout"), "{error}");
    assert_eq!(world.fake.pulls_given_up(), 1);
}

//! Images from a real registry that wants a password, and from archives.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use podman_driver::images::credentials::AuthSources;
use podman_driver::images::{ImageError, ImageRequest, Images};
use podman_driver::podman::Podman;
use podman_driver::task_config::{ImageOptions, TaskAuth};
use tempfile::TempDir;

use crate::fixture::{BUSYBOX, PodmanService};

/// Says where [`helper_stand_in`] finds the registry.
const STAND_IN_REGISTRY: &str = "PODMAN_DRIVER_TEST_REGISTRY";

/// bcrypt of "correct horse", 16 rounds.
const PASSWORD_HASH: &str = "$2b$04$GCrDoUKGUmtHS9ljSKQx4O9iI3DrDn9qWTuRj7Lckh3TXGEiVkI6W";

/// The distribution project's registry on a port of its own, with one user.
struct Registry {
    child: Child,
    address: String,
    dir: TempDir,
}

impl Registry {
    fn start() -> Option<Self> {
        let Some(program) = registry_program() else {
            #[expect(clippy::disallowed_macros, reason = "a skipped test says why on its own output")]
            {
                println!(
                    "skipped: no registry; go install github.com/distribution/distribution/v3/cmd/registry@v3.0.0"
                );
            }
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("htpasswd"), format!("nomad:{PASSWORD_HASH}\n")).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: info, formatter: json}}\n\
             storage: {{filesystem: {{rootdirectory: {0}/data}}}}\nhttp: {{addr: \"127.0.0.1:0\"}}\n\
             auth: {{htpasswd: {{realm: test, path: {0}/htpasswd}}}}\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let mut command = Command::new(program);
        command
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines.find_map(|line| {
            let line = line.unwrap();
            let at = line.find("listening on ")? + "listening on ".len();
            Some(line[at..].split(['"', ',']).next()?.to_owned())
        });
        // Somebody must go on reading what it logs.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self {
            child,
            address: address.expect("it listens"),
            dir,
        })
    }

    fn push(&self, service: &PodmanService, name: &str) -> String {
        self.push_image(service, BUSYBOX, name)
    }

    fn push_image(&self, service: &PodmanService, image: &str, name: &str) -> String {
        let reference = format!("{}/{name}", self.address);
        let target = format!("docker://{reference}");
        service.run(&[
            "push",
            "-q",
            "--tls-verify=false",
            "--creds",
            "nomad:correct horse",
            image,
            &target,
        ]);
        reference
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn registry_program() -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin");
    #[expect(clippy::disallowed_methods, reason = "PATH is where a program of others is found")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([tools]);
    places
        .map(|place| place.join("registry"))
        .find(|program| program.exists())
}

fn options(reference: &str) -> ImageOptions {
    ImageOptions {
        reference: reference.to_owned(),
        force_pull: true,
        pull_timeout: Duration::from_secs(60),
        tls_verify: Some(false),
        ..ImageOptions::default()
    }
}

fn with_auth(reference: &str, password: &str) -> ImageOptions {
    let auth = TaskAuth {
        username: "nomad".to_owned(),
        password: password.to_owned(),
    };
    ImageOptions {
        auth: Some(auth),
        ..options(reference)
    }
}

async fn ensure(service: &PodmanService, images: &Images, options: &ImageOptions) -> Result<String, ImageError> {
    let podman: Arc<dyn Podman> = Arc::new(service.client());
    let request = ImageRequest {
        options,
        task_dir: service.dir(),
        progress: &|_| {},
    };
    let held = images.ensure(&podman, request).await?;
    Ok(held.id.clone())
}

/// Goal: a pull with the task's credentials succeeds; without, with wrong ones, for a tag that is not there and from a
/// registry that is not there it fails, and only the last may be tried again.
#[tokio::test]
async fn a_registry_with_a_password_gives_images_to_who_has_it() {
    let (Some(registry), Some(service)) = (Registry::start(), PodmanService::shared()) else {
        return;
    };
    let reference = registry.push(&service, "team/busybox:1");
    let images = Images::default();
    let id = ensure(&service, &images, &with_auth(&reference, "correct horse"))
        .await
        .unwrap();
    let image = service.client().inspect_image(&reference).await.unwrap().unwrap();
    assert_eq!(image.id.as_deref(), Some(id.trim_start_matches("sha256:")));
    let found = ensure(
        &service,
        &images,
        &ImageOptions {
            force_pull: false,
            ..options(&reference)
        },
    )
    .await
    .unwrap();
    assert_eq!(found, id, "what is there needs no password");

    for refused in [options(&reference), with_auth(&reference, "wrong")] {
        let error = ensure(&service, &images, &refused).await.unwrap_err();
        assert!(!error.is_recoverable(), "{error}");
        assert!(error.to_string().contains(&reference), "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
    let absent = with_auth(&format!("{}/team/busybox:2", registry.address), "correct horse");
    let error = ensure(&service, &images, &absent).await.unwrap_err();
    assert!(
        !error.is_recoverable() && error.to_string().contains("manifest unknown"),
        "{error}"
    );
    drop(registry);
    let error = ensure(&service, &images, &with_auth(&reference, "correct horse"))
        .await
        .unwrap_err();
    assert!(error.is_recoverable(), "{error}");
}

/// Goal: an image that the driver pulled goes when nobody needs it, also after a restart of the plugin; one that somebody made a
/// container of, or that was here before, stays. Method: an image that only the registry has, and the same in new hands.
#[tokio::test]
async fn pulled_images_go_when_nobody_needs_them() {
    let (Some(registry), Some(service)) = (Registry::start(), PodmanService::shared()) else {
        return;
    };
    let tar = service.dir().join("only-there.tar");
    std::fs::write(&tar, service.busybox_tar()).unwrap();
    let local = "localhost/only-there:1";
    service.run(&[
        "import",
        "-q",
        "--change",
        "CMD=/bin/only-there",
        tar.to_str().unwrap(),
        local,
    ]);
    let reference = registry.push_image(&service, local, "only/there:1");
    service.run(&["rmi", local]);
    let podman: Arc<dyn Podman> = Arc::new(service.client());
    let there = async || podman.inspect_image(&reference).await.unwrap().is_some();
    let storage = podman.info().await.unwrap().store.graph_root.unwrap();
    let now = Duration::ZERO;

    let images = Images::default();
    images.keeper().remember_in(&storage);
    let id = ensure(&service, &images, &with_auth(&reference, "correct horse"))
        .await
        .unwrap();
    let mut spec = service.shell("somebody-elses", "true");
    spec.image = id;
    let created = podman.create_container(&spec).await.unwrap();
    images.keeper().sweep(&*podman, now).await.unwrap();
    assert!(there().await, "a container is made of it");
    podman.remove_container(&created.id, true).await.unwrap();
    let after_a_restart = Images::default();
    after_a_restart.keeper().remember_in(&storage);
    after_a_restart.keeper().sweep(&*podman, now).await.unwrap();
    assert!(!there().await);

    service.run(&[
        "pull",
        "-q",
        "--tls-verify=false",
        "--creds",
        "nomad:correct horse",
        &reference,
    ]);
    let images = Images::default();
    images.keeper().remember_in(&storage);
    ensure(&service, &images, &with_auth(&reference, "correct horse"))
        .await
        .unwrap();
    images.keeper().sweep(&*podman, now).await.unwrap();
    assert!(there().await, "somebody brought it here");
    podman.remove_image(&reference).await.unwrap();
}

/// Goal: the operator's `config.json` serves tasks that say nothing. Method: the same registry, right and wrong files.
#[tokio::test]
async fn credentials_of_the_operator_serve_tasks_without_their_own() {
    let (Some(registry), Some(service)) = (Registry::start(), PodmanService::shared()) else {
        return;
    };
    let reference = registry.push(&service, "operator/busybox:1");
    let file = registry.dir.path().join("config.json");
    let images = Images::new(
        AuthSources {
            file: Some(file.clone()),
            helper: None,
        },
        Duration::ZERO,
    );
    let auth = base64::engine::general_purpose::STANDARD.encode("nomad:correct horse");
    let json = serde_json::json!({ "auths": { registry.address.as_str(): { "auth": auth } } });
    std::fs::write(&file, json.to_string()).unwrap();
    ensure(&service, &images, &options(&reference)).await.unwrap();
    std::fs::write(&file, "{}").unwrap();
    assert!(ensure(&service, &images, &options(&reference)).await.is_err());
}

/// Runs with a PATH that has a credential helper in it. Not a test of its own.
#[tokio::test]
#[ignore = "started by a_credential_helper_is_asked"]
async fn helper_stand_in() {
    #[expect(
        clippy::disallowed_methods,
        reason = "the environment is how a test speaks to its own second process"
    )]
    let Ok(registry) = std::env::var(STAND_IN_REGISTRY) else {
        return;
    };
    let Some(service) = PodmanService::start() else { return };
    for (helper, works) in [("good", true), ("none", false), ("broken", false)] {
        let images = Images::new(
            AuthSources {
                file: None,
                helper: Some(helper.to_owned()),
            },
            Duration::ZERO,
        );
        let pulled = ensure(&service, &images, &options(&format!("{registry}/helper/busybox:1"))).await;
        assert_eq!(pulled.is_ok(), works, "{helper}: {pulled:?}");
        if helper == "broken" {
            let error = pulled.unwrap_err();
            assert!(
                error.to_string().contains("vault is sealed") && error.is_recoverable(),
                "{error}"
            );
        }
    }
}

/// Goal: `docker-credential-<helper>` programs work, those that have nothing or fail say so. Method: three scripts in
/// the PATH of a second process.
#[tokio::test]
async fn a_credential_helper_is_asked() {
    let (Some(registry), Some(service)) = (Registry::start(), PodmanService::shared()) else {
        return;
    };
    registry.push(&service, "helper/busybox:1");
    let bin = registry.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let good = format!(
        "read server; test \"$1 $server\" = \"get {}\" && echo '{{\"Username\":\"nomad\",\"Secret\":\"correct horse\"}}'",
        registry.address
    );
    let none = "echo 'credentials not found in native keychain'; exit 1".to_owned();
    let broken = "echo 'vault is sealed' >&2; exit 1".to_owned();
    for (name, script) in [("good", good), ("none", none), ("broken", broken)] {
        let path = bin.join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    #[expect(clippy::disallowed_methods, reason = "PATH is where helpers are found")]
    let path = std::env::var("PATH").unwrap();
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "images::helper_stand_in", "--ignored", "--nocapture"])
        .stdin(Stdio::null());
    command
        .env(STAND_IN_REGISTRY, &registry.address)
        .env("PATH", format!("{}:{path}", bin.display()));
    let done = command.output().await.unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&[done.stdout, done.stderr].concat())
    );
}

#[tokio::test]
async fn archives_are_loaded_and_broken_ones_are_named() {
    let Some(service) = PodmanService::shared() else { return };
    let images = Images::default();
    let plain = |reference: &str| ImageOptions {
        force_pull: false,
        ..options(reference)
    };
    let wanted = service
        .client()
        .inspect_image(BUSYBOX)
        .await
        .unwrap()
        .unwrap()
        .id
        .unwrap();
    for format in ["docker-archive", "oci-archive"] {
        let file = format!("{format}.tar");
        let path = service.dir().join(&file);
        service.run(&["save", "-q", "--format", format, "-o", path.to_str().unwrap(), BUSYBOX]);
        let id = ensure(&service, &images, &plain(&format!("{format}:{file}")))
            .await
            .unwrap();
        assert_eq!(id, wanted, "{format}");
    }
    let absent = ensure(&service, &images, &plain("oci-archive:absent.tar"))
        .await
        .unwrap_err();
    assert!(
        absent.to_string().contains("absent.tar") && !absent.is_recoverable(),
        "{absent}"
    );
    std::fs::write(service.dir().join("broken.tar"), "not an archive").unwrap();
    let broken = ensure(&service, &images, &plain("docker-archive:broken.tar"))
        .await
        .unwrap_err();
    assert!(!broken.is_recoverable(), "{broken}");
}

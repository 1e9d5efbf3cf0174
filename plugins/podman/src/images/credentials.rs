//! Whom to log in to a registry as: from a docker-style `config.json`, from its credential helpers, or from the helper of
//! the plugin's options. An adapter: it reads a file and runs programs.
//!
//! Invariant: credentials are in no message, no log and no argument list. What is found here is sent to Podman with one
//! pull and kept nowhere. Absent: Podman's own `auth.json`, which Podman itself falls back to.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;

use super::reference::Reference;
use crate::podman::RegistryAuth;

/// Thirty seconds: helpers ask cloud services for tokens.
const HELPER_LIMIT: Duration = Duration::from_secs(30);

/// What Docker's tools call Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// The user name by which helpers say that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// Variables that are this plugin's own and must not reach a program that it starts.
const OWN_VARIABLES: [&str; 12] = [
    "NOMAD_PLUGIN_MAGIC_COOKIE",
    "PLUGIN_MIN_PORT",
    "PLUGIN_MAX_PORT",
    "PLUGIN_PROTOCOL_VERSIONS",
    "PLUGIN_CLIENT_CERT",
    "PLUGIN_MULTIPLEX_GRPC",
    "PLUGIN_UNIX_SOCKET_DIR",
    "PLUGIN_UNIX_SOCKET_GROUP",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// Where credentials may be found, from the plugin's options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthSources {
    /// A docker-style `config.json`.
    pub file: Option<PathBuf>,
    /// The `<helper>` of a `docker-credential-<helper>` program.
    pub helper: Option<String>,
}

/// Why credentials that should be there cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The file cannot be read.
    #[error("cannot read the registry credentials in {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be. What stands in it is not told.
    #[error("{} is not a docker-style config.json: line {line}, column {column}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// An `auth` that is not base64 of `user:password`.
    #[error("the credentials for {registry} in {} are not base64 of user:password", path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// The registry.
        registry: String,
    },
    /// A helper cannot be run.
    #[error("cannot run {program}: {source}")]
    HelperStart {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A helper failed. Its stdout is never told, its stderr is.
    #[error("{program} failed for {registry}: {message}")]
    Helper {
        /// Its name.
        program: String,
        /// The registry it was asked about.
        registry: String,
        /// Its stderr, or what was wrong with its answer.
        message: String,
    },
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConfigFile {
    auths: BTreeMap<String, ConfigAuth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ConfigAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl AuthSources {
    /// Credentials for an image; `None` if nobody has any, which is right for public images.
    ///
    /// # Errors
    /// [`AuthError`], as its variants say.
    pub async fn find(&self, image: &Reference) -> Result<Option<RegistryAuth>, AuthError> {
        let file = self.file.clone().or_else(file_of_environment);
        if let Some(path) = file
            && let Some(auth) = from_file(&path, image).await?
        {
            return Ok(Some(auth));
        }
        match &self.helper {
            Some(helper) => from_helper(helper, &server_key(&image.registry)).await,
            None => Ok(None),
        }
    }
}

/// The file that Podman's own tools look into first. One that is not there says nothing, for the variable may be meant for
/// another program.
fn file_of_environment() -> Option<PathBuf> {
    #[expect(
        clippy::disallowed_methods,
        reason = "an adapter: the variable is how the agent's environment names the file"
    )]
    let path = std::env::var_os("REGISTRY_AUTH_FILE").map(PathBuf::from);
    path.filter(|path| path.exists())
}

async fn from_file(path: &Path, image: &Reference) -> Result<Option<RegistryAuth>, AuthError> {
    let json = tokio::fs::read(path).await;
    let json = json.map_err(|source| AuthError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let file: ConfigFile = serde_json::from_slice(&json).map_err(|error| AuthError::Malformed {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
    })?;
    let server = server_key(&image.registry);
    let helper = file
        .cred_helpers
        .get(&server)
        .or_else(|| file.cred_helpers.get(&image.registry));
    if let Some(helper) = helper {
        return from_helper(helper, &server).await;
    }
    let encoding = || AuthError::Encoding {
        path: path.to_owned(),
        registry: image.registry.clone(),
    };
    let stated = keys_of(image).into_iter().find_map(|key| file.auths.get(&key));
    if let Some(auth) = stated.and_then(|stated| stated.read()) {
        return auth.map(Some).map_err(|()| encoding());
    }
    match &file.creds_store {
        Some(helper) => from_helper(helper, &server).await,
        None => Ok(None),
    }
}

/// The keys under which an image's credentials may stand, the most special first: Podman's files may name a path within
/// a registry, Docker's name Docker Hub by an address of long ago.
fn keys_of(image: &Reference) -> Vec<String> {
    let mut path = format!("{}/{}", image.registry, image.repository);
    let mut keys = vec![path.clone()];
    while let Some(slash) = path.rfind('/') {
        path.truncate(slash);
        keys.push(path.clone());
    }
    for form in [
        "https://{}",
        "http://{}",
        "https://{}/v1/",
        "https://{}/v2/",
        "https://{}/",
    ] {
        keys.push(form.replace("{}", &image.registry));
    }
    keys.push(server_key(&image.registry));
    keys
}

fn server_key(registry: &str) -> String {
    if registry == "docker.io" {
        DOCKER_HUB_KEY.to_owned()
    } else {
        registry.to_owned()
    }
}

impl ConfigAuth {
    /// `None` for an empty entry, which `docker login` leaves when a store has the credentials.
    fn read(&self) -> Option<Result<RegistryAuth, ()>> {
        let token = self.identitytoken.clone().filter(|token| !token.is_empty());
        let plain = || Some((self.username.clone()?, self.password.clone().unwrap_or_default()));
        let (username, password) = match self.auth.as_deref().filter(|auth| !auth.is_empty()) {
            Some(auth) => match decode(auth) {
                Some(pair) => pair,
                None => return Some(Err(())),
            },
            None if token.is_some() => plain().unwrap_or_default(),
            None => plain()?,
        };
        Some(Ok(RegistryAuth {
            username,
            password,
            identity_token: token,
        }))
    }
}

fn decode(auth: &str) -> Option<(String, String)> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(auth.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    Some((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// Asks `docker-credential-<helper>`, by the protocol of docker-credential-helpers: the server's name on stdin, JSON on
/// stdout.
async fn from_helper(helper: &str, server: &str) -> Result<Option<RegistryAuth>, AuthError> {
    let program = format!("docker-credential-{helper}");
    let failed = |message: String| AuthError::Helper {
        program: program.clone(),
        registry: server.to_owned(),
        message,
    };
    let start = |source| AuthError::HelperStart {
        program: program.clone(),
        source,
    };
    let mut command = tokio::process::Command::new(&program);
    command
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    for variable in OWN_VARIABLES {
        command.env_remove(variable);
    }
    let mut child = command.spawn().map_err(start)?;
    let mut stdin = child.stdin.take().expect("stdin was asked for as a pipe");
    let answer = async {
        // A helper that does not read its stdin says on stderr what it did instead.
        let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(HELPER_LIMIT, answer).await;
    let output = output
        .map_err(|_elapsed| failed(format!("no answer within {HELPER_LIMIT:?}")))?
        .map_err(start)?;
    if !output.status.success() {
        // The helpers' own words for "I have none", on stdout by their protocol.
        let said = [output.stdout, output.stderr.clone()].concat();
        if String::from_utf8_lossy(&said).contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout)
        .map_err(|_| failed("its answer is not JSON with Username and Secret".to_owned()))?;
    Ok(Some(if answer.username == TOKEN_USER {
        RegistryAuth {
            username: answer.username,
            password: String::new(),
            identity_token: Some(answer.secret),
        }
    } else {
        RegistryAuth {
            username: answer.username,
            password: answer.secret,
            identity_token: None,
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::reference::Source;

    fn image(text: &str) -> Reference {
        match Source::parse(text, Path::new("/")).unwrap() {
            Source::Registry(reference) => reference,
            Source::Archive(_) | Source::ArchiveUrl(_) => unreachable!("no archive in this test"),
        }
    }

    fn sources(dir: &tempfile::TempDir, json: &str) -> AuthSources {
        let path = dir.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        AuthSources {
            file: Some(path),
            helper: None,
        }
    }

    async fn user(sources: &AuthSources, text: &str) -> Option<String> {
        sources
            .find(&image(text))
            .await
            .unwrap()
            .map(|auth| format!("{}:{}", auth.username, auth.password))
    }

    #[tokio::test]
    async fn the_most_special_entry_counts_and_docker_hub_has_its_old_name() {
        let dir = tempfile::tempdir().unwrap();
        // dTpw is u:p, dTI6cDI= is u2:p2, dTM6YTpi is u3:a:b.
        let json = r#"{"auths":{"r:5000":{"auth":"dTpw"},"r:5000/team":{"auth":"dTI6cDI="},
            "https://index.docker.io/v1/":{"auth":"dTM6YTpi"},"https://old.example.com":{"username":"u4","password":"p4"},
            "empty.example.com":{}},"HttpHeaders":{"x":"y"}}"#;
        let sources = sources(&dir, json);
        assert_eq!(user(&sources, "r:5000/a").await.as_deref(), Some("u:p"));
        assert_eq!(user(&sources, "r:5000/team/a").await.as_deref(), Some("u2:p2"));
        assert_eq!(user(&sources, "busybox").await.as_deref(), Some("u3:a:b"));
        assert_eq!(user(&sources, "old.example.com/a").await.as_deref(), Some("u4:p4"));
        assert_eq!(user(&sources, "empty.example.com/a").await, None);
        assert_eq!(user(&sources, "quay.io/a").await, None);
    }

    #[tokio::test]
    async fn broken_files_are_named_without_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let broken = sources(&dir, r#"{"auths": secret"#)
            .find(&image("a"))
            .await
            .unwrap_err();
        assert!(
            matches!(broken, AuthError::Malformed { .. }) && !broken.to_string().contains("secret"),
            "{broken}"
        );
        let encoding = sources(&dir, r#"{"auths":{"docker.io":{"auth":"%%%"}}}"#)
            .find(&image("a"))
            .await
            .unwrap_err();
        assert!(matches!(encoding, AuthError::Encoding { .. }), "{encoding}");
        let absent = AuthSources {
            file: Some(dir.path().join("absent")),
            helper: None,
        };
        assert!(matches!(
            absent.find(&image("a")).await.unwrap_err(),
            AuthError::Unreadable { .. }
        ));
    }

    #[tokio::test]
    async fn a_helper_that_is_not_installed_is_named() {
        let sources = AuthSources {
            file: None,
            helper: Some("absent-for-sure".to_owned()),
        };
        let error = sources.find(&image("a")).await.unwrap_err();
        assert!(
            error.to_string().contains("docker-credential-absent-for-sure"),
            "{error}"
        );
    }
}

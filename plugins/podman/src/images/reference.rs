//! What a job's `image` means: a reference for a registry, or an archive on this host. Pure.
//!
//! Jobs write what they wrote for the driver they come from: with or without `docker://`, short names of Docker Hub,
//! names with tag, digest or both, and archives with their transport.

use std::path::{Path, PathBuf};

/// The registry of names without one.
const DEFAULT_REGISTRY: &str = "docker.io";

/// The host part of names that never leave this host.
const LOCAL_REGISTRY: &str = "localhost";

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A registry, or local storage under the same name.
    Registry(Reference),
    /// A file on this host.
    Archive(PathBuf),
    /// A file that a server has.
    ArchiveUrl(String),
}

/// A reference in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// As the job has it, without a transport: Podman's own rules for short names hold for it in local storage.
    pub written: String,
    /// With registry and tag or digest: what is pulled.
    pub full: String,
    /// The registry, such as `docker.io` or `127.0.0.1:5000`.
    pub registry: String,
    /// The name within the registry, such as `library/busybox`.
    pub repository: String,
}

/// Why text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// A transport that is not for this.
    #[error("{text:?}: the transport {transport} is not supported; use docker://, docker-archive: or oci-archive:")]
    Transport {
        /// As written.
        text: String,
        /// What stands before the colon.
        transport: String,
    },
    /// Characters or an order of parts that no reference has.
    #[error("{text:?} is not an image reference: {why}")]
    Malformed {
        /// As written.
        text: String,
        /// What is wrong.
        why: &'static str,
    },
}

impl Source {
    /// Reads a job's `image`. Relative archives are below the task's directory.
    ///
    /// # Errors
    /// [`ReferenceError`], as its variants say.
    pub fn parse(text: &str, task_dir: &Path) -> Result<Self, ReferenceError> {
        for transport in ["docker-archive:", "oci-archive:"] {
            if let Some(path) = text.strip_prefix(transport) {
                return archive(text, path, task_dir);
            }
        }
        let name = text.strip_prefix("docker://").unwrap_or(text);
        for transport in [
            "oci:",
            "dir:",
            "containers-storage:",
            "docker-daemon:",
            "ostree:",
            "sif:",
            "http:",
            "https:",
        ] {
            if name.starts_with(transport) {
                let transport = transport.trim_end_matches(':').to_owned();
                return Err(ReferenceError::Transport {
                    text: text.to_owned(),
                    transport,
                });
            }
        }
        Reference::parse(name).map(Self::Registry)
    }
}

fn archive(text: &str, path: &str, task_dir: &Path) -> Result<Source, ReferenceError> {
    if path.starts_with("http://") || path.starts_with("https://") {
        return Ok(Source::ArchiveUrl(path.to_owned()));
    }
    if path.is_empty() {
        return Err(ReferenceError::Malformed {
            text: text.to_owned(),
            why: "the path is missing",
        });
    }
    Ok(Source::Archive(task_dir.join(path)))
}

impl Reference {
    fn parse(written: &str) -> Result<Self, ReferenceError> {
        let malformed = |why| ReferenceError::Malformed {
            text: written.to_owned(),
            why,
        };
        if written.is_empty() {
            return Err(malformed("it is empty"));
        }
        let (rest, digest) = match written.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (written, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(malformed("what follows @ is not a digest such as sha256:…"));
        }
        let (name, tag) = split_tag(rest);
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(malformed("the tag has characters that tags cannot have"));
        }
        let (registry, repository) = split_registry(name);
        if !repository.split('/').all(is_component) {
            return Err(malformed("names are lower case letters, digits and single separators"));
        }
        let library = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            "library/"
        } else {
            ""
        };
        // A digest says everything: with a tag beside it, older versions of Podman refuse the name.
        let version = match (digest, tag) {
            (Some(digest), _) => format!("@{digest}"),
            (None, tag) => format!(":{}", tag.unwrap_or("latest")),
        };
        let repository = format!("{library}{repository}");
        Ok(Self {
            written: written.to_owned(),
            full: format!("{registry}/{repository}{version}"),
            registry: registry.to_owned(),
            repository,
        })
    }

    /// Whether it can only be in local storage.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.registry == LOCAL_REGISTRY
    }

    /// Whether the job left the registry out.
    #[must_use]
    pub fn is_short(&self) -> bool {
        !self.written.starts_with(&format!("{}/", self.registry))
    }
}

/// The tag stands behind the last colon, unless that belongs to a registry's port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    }
}

/// The first part is a registry if it looks like a host: it has a dot or a port, or is localhost.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == LOCAL_REGISTRY => {
            let host = if host == "index.docker.io" {
                DEFAULT_REGISTRY
            } else {
                host
            };
            (host, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn is_component(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    text.bytes().all(allowed) && edge(text.as_bytes().first()) && edge(text.as_bytes().last())
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let first = text.bytes().next().is_some_and(word);
    first && text.len() <= 128 && text.bytes().all(|byte| word(byte) || b".-".contains(&byte))
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return false;
    };
    !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn full(text: &str) -> String {
        match Source::parse(text, Path::new("/task")).unwrap() {
            Source::Registry(reference) => reference.full,
            Source::Archive(path) => format!("archive {}", path.display()),
            Source::ArchiveUrl(url) => format!("archive at {url}"),
        }
    }

    #[test]
    fn references_are_completed() {
        let with_digest = format!("docker.io/library/a@{DIGEST}");
        let cases = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("docker://busybox:1.36", "docker.io/library/busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("grafana/grafana:10", "docker.io/grafana/grafana:10"),
            ("quay.io/a/b/c:v1.2-x_Y", "quay.io/a/b/c:v1.2-x_Y"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
            ("registry:5000/a:1", "registry:5000/a:1"),
            ("localhost/a", "localhost/a:latest"),
            ("a:1", "docker.io/library/a:1"),
            (
                "oci-archive:https://example.com/a.tar",
                "archive at https://example.com/a.tar",
            ),
            ("docker-archive:image.tar", "archive /task/image.tar"),
            ("oci-archive:/images/a.tar", "archive /images/a.tar"),
        ];
        for (text, expected) in cases {
            assert_eq!(full(text), expected, "{text}");
        }
        assert_eq!(full(&format!("a@{DIGEST}")), with_digest);
        assert_eq!(
            full(&format!("a:1@{DIGEST}")),
            with_digest,
            "the digest says everything"
        );
    }

    #[test]
    fn what_is_no_image_says_why() {
        for text in [
            "",
            "Busybox",
            "a b",
            "a:",
            "a:b c",
            "a@sha256:zz",
            "a//b",
            "-a",
            "docker://",
            "quay.io/",
        ] {
            let error = Source::parse(text, Path::new("/task")).unwrap_err();
            assert!(matches!(error, ReferenceError::Malformed { .. }), "{text:?}: {error}");
        }
        let transport = Source::parse("docker-daemon:a:1", Path::new("/task")).unwrap_err();
        assert!(transport.to_string().contains("docker-daemon"), "{transport}");
    }

    #[test]
    fn an_archive_may_be_a_url() {
        let url = "https://example.com/a.tar";
        let source = Source::parse(&format!("oci-archive:{url}"), Path::new("/task")).unwrap();
        assert_eq!(source, Source::ArchiveUrl(url.to_owned()));
    }

    #[test]
    fn local_and_short_names_are_told_apart() {
        let parse = |text| match Source::parse(text, Path::new("/")).unwrap() {
            Source::Registry(reference) => reference,
            Source::Archive(_) | Source::ArchiveUrl(_) => unreachable!("no archive in this test"),
        };
        assert!(parse("localhost/a").is_local() && !parse("localhost/a").is_short());
        assert!(parse("a").is_short() && parse("a/b").is_short() && !parse("a").is_local());
        assert!(!parse("docker.io/a").is_short() && !parse("quay.io/a").is_short());
    }
}

//! Which certificates an https endpoint may show, and the HTTP client that checks them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// 64 connections kept open: eight commits and their segments in flight, and as many readers.
pub(crate) const CONNECTIONS_MAX: usize = 64;

/// 20 s: less than most stores and load balancers keep an idle connection, so that they rarely close one just as it is
/// used again.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why the certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read.
    #[error("the certificates in {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds no certificates.
    #[error("{path} is not a file of PEM certificates: {detail}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
}

/// An HTTP client that trusts the system's certificates, and those in `bundle` too.
pub(crate) fn http_client(bundle: Option<&Path>) -> Result<SharedHttpClient, TrustError> {
    // The HTTP client asserts that the system has certificates if it is told to use them. A small host that speaks plain
    // http to its own store may have none.
    let system = rustls_native_certs::load_native_certs();
    if system.certs.is_empty() {
        tracing::warn!(errors = ?system.errors, "this host has no certificates: no https endpoint can be trusted");
    }
    let mut trust = TrustStore::empty().with_native_roots(!system.certs.is_empty());
    if let Some(path) = bundle {
        let pem = std::fs::read(path).map_err(|source| TrustError::Read {
            path: path.to_owned(),
            source,
        })?;
        check_pem(&pem).map_err(|detail| TrustError::Invalid {
            path: path.to_owned(),
            detail,
        })?;
        trust.add_pem_certificate(pem);
    }
    let tls = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .expect("a context of a trust store is never refused");
    Ok(aws_smithy_http_client::Builder::new()
        .pool_max_idle_per_host(CONNECTIONS_MAX)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(tls)
        .build_https())
}

/// The HTTP client panics on certificates that it cannot read, so they are read here first.
fn check_pem(pem: &[u8]) -> Result<(), String> {
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        webpki::anchor_from_trusted_cert(&certificate).map_err(|error| format!("certificate {count}: {error}"))?;
        count += 1;
    }
    if count == 0 {
        Err("it holds none".to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_that_holds_no_certificates_is_refused_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let missing = http_client(Some(&path)).unwrap_err().to_string();
        assert!(missing.contains("ca.pem"), "{missing}");
        for body in [
            "",
            "rubbish",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(&path, body).unwrap();
            let invalid = http_client(Some(&path)).unwrap_err().to_string();
            assert!(
                invalid.contains("ca.pem is not a file of PEM certificates"),
                "{body:?}: {invalid}"
            );
        }
    }
}

//! The secrets of a volume: S3 keys that Nomad hands over with most calls.
//!
//! Invariant: a secret's value is in no log line, error or `Debug` output. Callers: controller and node.
//! Absent: where they are kept (`targets/record.rs`, files of mode 0600), and the plugin's own credentials (the SDK's
//! chain).

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{DriverError, Fault};

/// Name of the secret that holds the access key.
const ACCESS_KEY: &str = "access_key_id";
/// Name of the secret that holds its secret half.
const SECRET_KEY: &str = "secret_access_key";
/// Name of the secret that holds the token of temporary keys.
const TOKEN: &str = "session_token";

/// Keys of one S3 account.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The public half.
    pub access_key_id: String,
    /// The secret half.
    pub secret_access_key: String,
    /// Set for keys that expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<String>,
}

impl Credentials {
    /// Reads the secrets of a call; `None` where there are none, and the plugin's own credentials are to be used.
    ///
    /// # Errors
    /// `Invalid` naming a secret that is unknown, or that is missing beside its other half.
    pub fn from_secrets(secrets: &HashMap<String, String>) -> Result<Option<Self>, DriverError> {
        let mut names: Vec<_> = secrets.keys().map(String::as_str).collect();
        names.sort_unstable();
        if let Some(unknown) = names
            .iter()
            .find(|name| ![ACCESS_KEY, SECRET_KEY, TOKEN].contains(name))
        {
            return Err(DriverError::invalid(format!("secrets.{unknown}"), Fault::Secret));
        }
        let get = |name: &str| secrets.get(name).filter(|value| !value.is_empty()).cloned();
        match (get(ACCESS_KEY), get(SECRET_KEY)) {
            (Some(access_key_id), Some(secret_access_key)) => Ok(Some(Self {
                access_key_id,
                secret_access_key,
                session_token: get(TOKEN),
            })),
            (None, None) if get(TOKEN).is_none() => Ok(None),
            (None, _) => Err(DriverError::invalid(format!("secrets.{ACCESS_KEY}"), Fault::HalfKeys)),
            (Some(_), None) => Err(DriverError::invalid(format!("secrets.{SECRET_KEY}"), Fault::HalfKeys)),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Credentials>, DriverError> {
        Credentials::from_secrets(&pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
    }

    #[test]
    fn no_secrets_mean_the_plugins_own_credentials() {
        assert_eq!(read(&[]).unwrap(), None);
        // An old Nomad server erased the values on the way: the same as none (rule 4 and quirk N11).
        assert_eq!(read(&[(ACCESS_KEY, ""), (SECRET_KEY, "")]).unwrap(), None);
    }

    #[test]
    fn a_missing_half_or_an_unknown_secret_is_named() {
        for (pairs, named) in [
            (&[(ACCESS_KEY, "a")][..], SECRET_KEY),
            (&[(SECRET_KEY, "s")][..], ACCESS_KEY),
            (&[(TOKEN, "t")][..], ACCESS_KEY),
            (&[("acces_key", "s3cr3t")][..], "acces_key"),
        ] {
            let error = read(pairs).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }

    #[test]
    fn a_secret_is_never_printed() {
        let keys = read(&[(ACCESS_KEY, "pub"), (SECRET_KEY, "s3cr3t"), (TOKEN, "t0ken")])
            .unwrap()
            .unwrap();
        let shown = format!("{keys:?}");
        assert!(!shown.contains("s3cr3t") && !shown.contains("t0ken"), "{shown}");
    }
}

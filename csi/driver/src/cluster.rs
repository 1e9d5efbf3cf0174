//! Where the controller finds the cluster's volumes: the `Clusters` port, and S3 behind it.
//!
//! Nomad hands a volume's own keys over with most calls, so there is one client per set of keys; they are kept,
//! because making one costs a pool of connections. Callers: `controller.rs`, `server.rs`. Absent: what is asked of
//! the bucket (`volume::admin`).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;
use uuid::Uuid;
use volume::admin::Admin;
use volume_s3::{S3Location, S3Options, S3Store};

use crate::credentials::Credentials;
use crate::error::DriverError;

pub mod fixed;

/// 32 sets of keys at a time. Beyond it all are dropped and made anew as needed: many volumes with keys of their own
/// only cost handshakes.
const CLIENTS_MAX: usize = 32;

/// The admin verbs, for whichever keys a call brings.
#[async_trait]
pub trait Clusters: fmt::Debug + Send + Sync + 'static {
    /// The verbs, signed with `credentials`, or with the plugin's own if there are none. Asks nothing of the store yet.
    ///
    /// # Errors
    /// `Connect` if no client can be made.
    async fn admin(&self, credentials: Option<&Credentials>) -> Result<Arc<Admin>, DriverError>;
}

/// A cluster as it is handed around.
pub type ClustersRef = Arc<dyn Clusters>;

/// The cluster's prefix of a bucket in S3.
#[derive(Debug)]
pub struct S3Clusters {
    options: S3Options,
    location: S3Location,
    /// Held while a client is made: two calls at once make one.
    admins: Mutex<HashMap<Option<Credentials>, Arc<Admin>>>,
}

impl S3Clusters {
    /// `options.credentials` are used where a call brings none.
    pub fn new(options: S3Options, location: S3Location) -> Self {
        Self {
            options,
            location,
            admins: Mutex::default(),
        }
    }
}

#[async_trait]
impl Clusters for S3Clusters {
    async fn admin(&self, credentials: Option<&Credentials>) -> Result<Arc<Admin>, DriverError> {
        let mut admins = self.admins.lock().await;
        let key = credentials.cloned();
        if let Some(known) = admins.get(&key) {
            return Ok(Arc::clone(known));
        }
        let mut options = self.options.clone();
        if let Some(keys) = credentials {
            options.credentials = volume_s3::Credentials::Keys {
                id: keys.access_key_id.clone(),
                secret: keys.secret_access_key.clone(),
                session_token: keys.session_token.clone(),
            };
        }
        let store = S3Store::connect(options).await?;
        let admin = Arc::new(Admin::new(store.open(&self.location), Uuid::new_v4()));
        if admins.len() >= CLIENTS_MAX {
            admins.clear();
        }
        admins.insert(key, Arc::clone(&admin));
        Ok(admin)
    }
}

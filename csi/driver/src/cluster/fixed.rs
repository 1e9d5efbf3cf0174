//! One bucket for every caller, whatever keys it brings: for tests and for tools that hold a bucket already.

use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;
use volume::admin::Admin;
use volume::bucket::BucketRef;

use super::Clusters;
use crate::credentials::Credentials;
use crate::error::DriverError;

/// A cluster in a given bucket. It remembers nothing of the keys.
#[derive(Debug)]
pub struct FixedCluster {
    admin: Arc<Admin>,
}

impl FixedCluster {
    /// `bucket` is rooted at the cluster's prefix.
    pub fn new(bucket: BucketRef) -> Self {
        Self {
            admin: Arc::new(Admin::new(bucket, Uuid::new_v4())),
        }
    }
}

#[async_trait]
impl Clusters for FixedCluster {
    async fn admin(&self, _: Option<&Credentials>) -> Result<Arc<Admin>, DriverError> {
        Ok(Arc::clone(&self.admin))
    }
}

//! The arguments that say how to reach a store.

use clap::Args;
use volume_mount::store::Access;

/// Region and credentials come from the usual AWS chain (environment, profile, web identity, instance).
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// URL of the S3 store; Amazon's if not given
    #[arg(long, value_name = "URL", env = "PANNIER_S3_ENDPOINT")]
    pub endpoint: Option<String>,
    /// Region of the bucket
    #[arg(long, env = "PANNIER_S3_REGION")]
    pub region: Option<String>,
    /// Put the bucket into the path of URLs (the default where --endpoint is given)
    #[arg(long)]
    pub path_style: bool,
}

impl StoreArgs {
    /// As the engine's parts take it.
    pub fn access(&self) -> Access {
        Access {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            path_style: self.path_style.then_some(true),
            keys: None,
        }
    }
}

//! The arguments that say how to reach a store.

use std::path::PathBuf;

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
    /// File of PEM certificates to trust besides the system's; AWS_CA_BUNDLE's if not given
    #[arg(long, value_name = "FILE", env = "PANNIER_CA_BUNDLE")]
    pub ca_bundle: Option<PathBuf>,
    /// As AWS's own programs read it.
    #[arg(long, env = "AWS_CA_BUNDLE", hide = true)]
    aws_ca_bundle: Option<PathBuf>,
}

impl StoreArgs {
    /// As the engine's parts take it.
    pub fn access(&self) -> Access {
        Access {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            path_style: self.path_style.then_some(true),
            ca_bundle: self.ca_bundle.clone().or_else(|| self.aws_ca_bundle.clone()),
            keys: None,
            ..Access::default()
        }
    }
}

//! One S3 endpoint with one set of credentials: what all buckets of a process share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    AppName, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use tokio::sync::Semaphore;
use uuid::Uuid;
use volume::bucket::{BucketError, BucketRef, Prefixed};

use crate::bucket::S3Bucket;
use crate::counters::Counters;
use crate::hedge::Hedging;
use crate::keys::{Credentials, KeySource, Surroundings};
use crate::location::S3Location;
use crate::put_options::PutOptions;
use crate::retry::{Chance, RetryPolicy};
use crate::trust::{CONNECTIONS_MAX, TrustError, http_client};

/// 3 s: three lost packets of a handshake. A host that does not answer by then is taken for dead, and asked again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The region that stores other than Amazon's expect unless they were told one.
const REGION_ELSEWHERE: &str = "us-east-1";

/// How to reach a store. The defaults are Amazon's S3 with the SDK's usual chains.
#[derive(Debug, Clone, Default)]
pub struct S3Options {
    /// URL of the endpoint, `http://` or `https://`; `None` for the environment's or Amazon's.
    pub endpoint: Option<String>,
    /// The region; `None` for that of the environment or profile, and `us-east-1` at an own endpoint.
    pub region: Option<String>,
    /// Whether the bucket is in the path of a URL; `None` for yes at an own endpoint and no at Amazon's.
    pub path_style: Option<bool>,
    /// Where credentials come from.
    pub credentials: Credentials,
    /// A file of PEM certificates to trust beside the system's, as in `AWS_CA_BUNDLE`.
    pub ca_bundle: Option<PathBuf>,
    /// What each put says besides its content.
    pub put: PutOptions,
    /// How long calls may take.
    pub retry: RetryPolicy,
    /// Where requests are counted; `None` for counters of its own.
    pub counters: Option<Arc<Counters>>,
}

/// Why a store cannot be used with these options. Nothing was asked of it yet.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not an `http://` or `https://` URL.
    #[error("the S3 endpoint {endpoint:?} is not an http:// or https:// URL")]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// No region is known, and Amazon's S3 needs one.
    #[error("no AWS region: set it by option, AWS_REGION or the profile, or name an endpoint")]
    NoRegion,
    /// The certificates cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// One store, shared by all its buckets.
pub struct S3Store {
    pub(crate) client: Client,
    pub(crate) keys: KeySource,
    pub(crate) endpoint: String,
    pub(crate) put: PutOptions,
    pub(crate) retry: RetryPolicy,
    pub(crate) counters: Arc<Counters>,
    pub(crate) chance: Chance,
    pub(crate) hedging: Hedging,
    /// One permit for each connection. Requests beyond them wait here, not in sockets of their own.
    pub(crate) connections: Semaphore,
}

impl std::fmt::Debug for S3Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Store")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl S3Store {
    /// Prepares the use of a store. Sends nothing to it; credentials are fetched at the first request.
    ///
    /// # Errors
    /// `ConnectError` for options that cannot work.
    pub async fn connect(options: S3Options) -> Result<Arc<Self>, ConnectError> {
        let is_url = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        if let Some(endpoint) = options.endpoint.clone().filter(|url| !is_url(url)) {
            return Err(ConnectError::Endpoint { endpoint });
        }
        let http = http_client(options.ca_bundle.as_deref())?;
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http.clone())
            .no_credentials()
            .app_name(AppName::new("pannier").expect("letters are a name"))
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
            // A stalled transfer ends with the time of its request (see `RetryPolicy`).
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            // The sums that the SDK adds by itself need trailers that several stores do not know. Frames carry their own.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if let Some(endpoint) = &options.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        loader = loader.region(region(&options).await);
        let loaded = loader.load().await;
        let Some(region) = loaded.region().map(Region::to_string) else {
            return Err(ConnectError::NoRegion);
        };
        let own_endpoint = loaded.endpoint_url().filter(|url| !url.contains(".amazonaws.com"));
        let keys = match options.credentials {
            Credentials::Chain => KeySource::chain(Surroundings {
                region: loaded.region().cloned(),
                use_fips: loaded.use_fips(),
                use_dual_stack: loaded.use_dual_stack(),
                http,
            }),
            Credentials::Keys {
                id,
                secret,
                session_token,
            } => KeySource::given(&id, &secret, session_token),
        };
        let config = aws_sdk_s3::config::Builder::from(&loaded)
            .credentials_provider(keys.clone())
            .identity_cache(IdentityCache::no_cache())
            .force_path_style(options.path_style.unwrap_or(own_endpoint.is_some()))
            .build();
        let endpoint = loaded
            .endpoint_url()
            .map_or_else(|| format!("Amazon S3 in {region}"), str::to_owned);
        Ok(Arc::new(Self {
            client: Client::from_conf(config),
            keys,
            endpoint,
            put: options.put,
            retry: options.retry,
            counters: options.counters.unwrap_or_default(),
            hedging: Hedging::new(),
            chance: Chance::new(Uuid::new_v4().as_u64_pair().0),
            connections: Semaphore::new(CONNECTIONS_MAX),
        }))
    }

    /// A bucket of this store, from its top. Nothing is asked: see `S3Bucket::verify`.
    pub fn bucket(self: &Arc<Self>, name: &str) -> S3Bucket {
        S3Bucket::new(self.clone(), name)
    }

    /// A place in this store, as the port that volumes are kept in.
    pub fn open(self: &Arc<Self>, location: &S3Location) -> BucketRef {
        let bucket: BucketRef = Arc::new(self.bucket(&location.bucket));
        if location.prefix.is_empty() {
            bucket
        } else {
            Arc::new(Prefixed::new(bucket, location.prefix.clone()))
        }
    }

    /// Creates a bucket; `Ok` if it is ours already.
    ///
    /// # Errors
    /// `BucketError`, as of any other request.
    pub async fn create_bucket(self: &Arc<Self>, name: &str) -> Result<(), BucketError> {
        self.bucket(name).create().await
    }

    /// What was asked of this store so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Where this store is, for people to read.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        !self.endpoint.starts_with("http://")
    }
}

async fn region(options: &S3Options) -> Option<Region> {
    if let Some(region) = &options.region {
        return Some(Region::new(region.clone()));
    }
    let chain = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new());
    match chain.region().await {
        None if options.endpoint.is_some() => Some(Region::from_static(REGION_ELSEWHERE)),
        found => found,
    }
}

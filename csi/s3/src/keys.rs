//! The keys that requests are signed with: where they come from, and when they are fetched anew.
//!
//! Keys of the chain are fetched again before they expire, when a file that they come from has changed, and when the store
//! refuses them; so they rotate without a restart or remount. While new ones cannot be had, those at hand are used until
//! they expire. The SDK's own cache is off: it would keep keys from a file for a quarter of an hour.
//! Invariant: no secret and no token is in a log line, error or `Debug` output; the key's id is, because whoever has to
//! replace a key must know which. Callers: `store.rs`, `bucket.rs`. Absent: what a refusal means (`error.rs`).

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::imds::client::error::ImdsError;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_s3::config::{Credentials as SdkKeys, Region};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use tokio::time::Instant;

/// Where credentials come from.
#[derive(Clone, Default)]
pub enum Credentials {
    /// The SDK's usual chain: environment, profile (with `credential_process`), web identity, container, instance.
    #[default]
    Chain,
    /// These.
    Keys {
        /// Access key id.
        id: String,
        /// Secret access key.
        secret: String,
        /// Of temporary credentials.
        session_token: Option<String>,
    },
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credentials::Chain => f.write_str("Chain"),
            Credentials::Keys { id, .. } => f.debug_struct("Keys").field("id", id).finish_non_exhaustive(),
        }
    }
}

/// 1 s between looks at the files: a look is three stat(2), and a rotation may well take effect a second late.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// 3 s between two fetches where the first failed or brought what the store refuses: who asks meanwhile is told the same.
const FETCH_PAUSE: Duration = Duration::from_secs(3);

/// 5 min before they expire keys are fetched anew, or at the last fifth of a shorter life.
const EXPIRY_MARGIN: Duration = Duration::from_secs(300);

/// 10 s for one fetch: a token service that is slow answers by then.
const FETCH_MAX: Duration = Duration::from_secs(10);

/// 5 s for the service of the instance, which is on this very host: three tries. Hosts that are no instances wait so long.
const INSTANCE_MAX: Duration = Duration::from_secs(5);

const _: () = assert!(INSTANCE_MAX.as_secs() < FETCH_MAX.as_secs());

/// A place of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Given,
    Environment,
    Profile,
    WebIdentity,
    Container,
    Instance,
}

impl Place {
    /// Whose they are, and what to do when the store refuses them.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Place::Given => (
                "of the volume's secrets",
                "register the volume again with keys that are valid: they are used from the next call on, without a remount",
            ),
            Place::Environment => (
                "of the environment (AWS_ACCESS_KEY_ID)",
                "keys of the environment stay as they are while the process lives: use a profile file to change them without a restart",
            ),
            Place::Profile => (
                "of the profile file",
                "write keys that are valid into the file: they are read at once, without a remount",
            ),
            Place::WebIdentity => (
                "of the web identity token file",
                "see that the file holds a token that is valid and that its role may use the bucket: the file is read again, without a remount",
            ),
            Place::Container => (
                "of the container's role",
                "see that the role may use the bucket: its keys are asked for again, without a remount",
            ),
            Place::Instance => (
                "of the instance's role",
                "see that the role may use the bucket: its keys are asked for again, without a remount",
            ),
        }
    }
}

/// Keys at hand.
#[derive(Debug, Clone)]
struct Held {
    keys: SdkKeys,
    place: Place,
    /// When to fetch new ones; `None` for keys that never expire.
    renew_at: Option<SystemTime>,
}

/// What was found last, and when.
#[derive(Debug, Default)]
struct Found {
    held: Option<Held>,
    /// Why the last fetch failed, if it did.
    failed: Option<String>,
    /// The instance's service did not answer the last fetch, which found no keys elsewhere either.
    silent: bool,
    fetched: Option<Instant>,
    looked: Option<Instant>,
    marks: Vec<Option<Mark>>,
}

/// What tells a file from its next version.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    inode: u64,
    modified: (i64, i64),
    len_bytes: u64,
}

impl Mark {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self {
            inode: meta.ino(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            len_bytes: meta.len(),
        })
    }
}

/// What the places of the chain need besides the environment.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub region: Option<Region>,
    pub use_fips: Option<bool>,
    pub use_dual_stack: Option<bool>,
    pub http: SharedHttpClient,
}

impl Surroundings {
    /// Made anew for each fetch: a configuration of the SDK reads the profile files once and keeps what it read.
    fn config(&self) -> ProviderConfig {
        ProviderConfig::without_region()
            .with_region(self.region.clone())
            .with_use_fips(self.use_fips)
            .with_use_dual_stack(self.use_dual_stack)
            .with_http_client(self.http.clone())
    }
}

/// The source of a store's keys. Cheap to clone: all clones share what was fetched.
#[derive(Debug, Clone)]
pub(crate) struct KeySource {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// `None` for keys that were given.
    chain: Option<Surroundings>,
    /// Files whose change means new keys.
    files: Vec<PathBuf>,
    /// Held for a copy, never across an await.
    found: RwLock<Found>,
    /// One fetch at a time.
    turn: tokio::sync::Mutex<()>,
}

impl KeySource {
    /// Keys that were given.
    pub fn given(id: &str, secret: &str, session_token: Option<String>) -> Self {
        let held = Held {
            keys: SdkKeys::new(id, secret, session_token, None, "pannier"),
            place: Place::Given,
            renew_at: None,
        };
        Self::new(None, Vec::new(), Some(held))
    }

    /// Keys of the usual chain, fetched with the first request.
    pub fn chain(surroundings: Surroundings) -> Self {
        Self::new(Some(surroundings), files_of_the_chain(), None)
    }

    fn new(chain: Option<Surroundings>, files: Vec<PathBuf>, held: Option<Held>) -> Self {
        let found = RwLock::new(Found {
            held,
            ..Found::default()
        });
        let inner = Inner {
            chain,
            files,
            found,
            turn: tokio::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Which keys were used last, for an error: whose they are, and what to do if the store refuses them.
    pub fn described(&self) -> String {
        match &self.found().held {
            Some(held) => {
                let (whose, advice) = held.place.words();
                format!("signed with key {} {whose}; {advice}", held.keys.access_key_id())
            }
            None => self.inner.looked_for(self.found().silent),
        }
    }

    /// The store has refused the keys: fetches them anew, unless that was just tried. True if they are others now.
    pub async fn renew_refused(&self) -> bool {
        if self.inner.chain.is_none() {
            return false;
        }
        let before = self.held_keys();
        let _turn = self.inner.turn.lock().await;
        let now = self.held_keys();
        if !is_same(before.as_ref(), now.as_ref()) {
            return true;
        }
        if self.fetched_within(FETCH_PAUSE) {
            return false;
        }
        self.fetch().await;
        !is_same(before.as_ref(), self.held_keys().as_ref())
    }

    fn found(&self) -> std::sync::RwLockReadGuard<'_, Found> {
        self.inner.found.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn found_mut(&self) -> std::sync::RwLockWriteGuard<'_, Found> {
        self.inner.found.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_keys(&self) -> Option<SdkKeys> {
        self.found().held.as_ref().map(|held| held.keys.clone())
    }

    fn fetched_within(&self, time: Duration) -> bool {
        self.found().fetched.is_some_and(|fetched| fetched.elapsed() < time)
    }

    async fn keys(&self) -> provider::Result {
        if let Some(keys) = self.at_hand() {
            return Ok(keys);
        }
        let _turn = self.inner.turn.lock().await;
        // Somebody else may have fetched them while this call waited.
        if let Some(keys) = self.at_hand() {
            return Ok(keys);
        }
        if !self.fetched_within(FETCH_PAUSE) || self.files_changed() {
            self.fetch().await;
        }
        let found = self.found();
        match (&found.held, &found.failed) {
            (Some(held), _) if !is_past(held.keys.expiry()) => Ok(held.keys.clone()),
            (Some(_), why) => {
                let why = why.as_deref().unwrap_or("new ones are as old");
                let text = format!("the keys have expired, and new ones cannot be had: {why}");
                Err(CredentialsError::provider_error(text))
            }
            (None, Some(why)) => Err(CredentialsError::provider_error(why.clone())),
            (None, None) => Err(CredentialsError::not_loaded_no_source()),
        }
    }

    /// Keys that need no fetch.
    fn at_hand(&self) -> Option<SdkKeys> {
        let found = self.found();
        let held = found.held.as_ref()?;
        if self.inner.chain.is_none() {
            return Some(held.keys.clone());
        }
        let looked = found.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY);
        let fresh = !is_past(held.renew_at) && (looked || !changed(&self.inner.files, &found.marks));
        let keys = held.keys.clone();
        // Keys to be renewed soon serve on where the last fetch has just failed.
        let usable = fresh || (found.failed.is_some() && !is_past(keys.expiry()) && self.paused(&found));
        drop(found);
        if fresh && !looked {
            self.found_mut().looked = Some(Instant::now());
        }
        usable.then_some(keys)
    }

    fn paused(&self, found: &Found) -> bool {
        found.fetched.is_some_and(|fetched| fetched.elapsed() < FETCH_PAUSE)
    }

    fn files_changed(&self) -> bool {
        changed(&self.inner.files, &self.found().marks)
    }

    /// Asks the places of the chain in their order. The caller has the turn.
    async fn fetch(&self) {
        let Some(surroundings) = &self.inner.chain else { return };
        // Before the fetch: what changes while it runs is seen at the next look.
        let marks = self.inner.files.iter().map(|path| Mark::of(path)).collect();
        let asked = tokio::time::timeout(FETCH_MAX, ask(&surroundings.config())).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {} s", FETCH_MAX.as_secs())));
        let mut found = self.found_mut();
        found.fetched = Some(Instant::now());
        found.looked = found.fetched;
        found.marks = marks;
        let is_instance = found.held.as_ref().is_some_and(|held| held.place == Place::Instance);
        found.silent = false;
        match asked {
            Ok(Asked::Keys(place, keys)) => {
                if !is_same(found.held.as_ref().map(|held| &held.keys), Some(&keys)) {
                    tracing::info!(
                        key = keys.access_key_id(),
                        whose = place.words().0,
                        "requests are signed with new keys"
                    );
                }
                let renew_at = keys.expiry().map(|expiry| expiry - margin(expiry));
                found.held = Some(Held { keys, place, renew_at });
                found.failed = None;
            }
            // Most hosts are no instances: where none gave keys before, none has to answer.
            Ok(Asked::Silence(why)) if is_instance => {
                tracing::warn!(why, "new keys cannot be had");
                found.failed = Some(why);
            }
            Ok(nothing) => {
                found.held = None;
                found.failed = None;
                found.silent = matches!(nothing, Asked::Silence(_));
            }
            Err(why) => {
                tracing::warn!(why, "new keys cannot be had");
                found.failed = Some(why);
            }
        }
    }
}

impl Inner {
    /// Where keys were looked for in vain, and what to do.
    fn looked_for(&self, silent: bool) -> String {
        let files: Vec<_> = self.files.iter().map(|path| path.display().to_string()).collect();
        let silence = if silent { " (no metadata service answers)" } else { "" };
        format!(
            "none in the environment (AWS_ACCESS_KEY_ID), in {}, or of the container's or the instance's role{silence}; set \
             AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile that has keys (AWS_PROFILE), or give the host a role",
            if files.is_empty() {
                "files (HOME is not set)".to_owned()
            } else {
                files.join(", ")
            },
        )
    }
}

impl ProvideCredentials for KeySource {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.keys())
    }
}

/// What the chain has.
enum Asked {
    Keys(Place, SdkKeys),
    Nothing,
    /// Nothing, but the service of the instance was not to be reached for this reason.
    Silence(String),
}

/// The first place of the chain that has keys.
async fn ask(config: &ProviderConfig) -> Result<Asked, String> {
    let places: [(Place, SharedCredentialsProvider); 4] = [
        (
            Place::Environment,
            SharedCredentialsProvider::new(EnvironmentVariableCredentialsProvider::new()),
        ),
        (
            Place::Profile,
            SharedCredentialsProvider::new(ProfileFileCredentialsProvider::builder().configure(config).build()),
        ),
        (
            Place::WebIdentity,
            SharedCredentialsProvider::new(WebIdentityTokenCredentialsProvider::builder().configure(config).build()),
        ),
        (
            Place::Container,
            SharedCredentialsProvider::new(EcsCredentialsProvider::builder().configure(config).build()),
        ),
    ];
    let failed =
        |place: Place, error: &CredentialsError| format!("keys {}: {}", place.words().0, crate::error::causes(error));
    for (place, provider) in places {
        match provider.provide_credentials().await {
            Ok(keys) => return Ok(Asked::Keys(place, keys)),
            Err(CredentialsError::CredentialsNotLoaded(_)) => {}
            Err(error) => return Err(failed(place, &error)),
        }
    }
    let instance = ImdsCredentialsProvider::builder().configure(config).build();
    let place = Place::Instance;
    match tokio::time::timeout(INSTANCE_MAX, instance.provide_credentials()).await {
        Ok(Ok(keys)) => Ok(Asked::Keys(place, keys)),
        Ok(Err(error)) if is_silence(&error) => Ok(Asked::Silence(failed(place, &error))),
        Ok(Err(CredentialsError::CredentialsNotLoaded(_))) => Ok(Asked::Nothing),
        Ok(Err(error)) => Err(failed(place, &error)),
        Err(_) => {
            let seconds = INSTANCE_MAX.as_secs();
            Ok(Asked::Silence(format!(
                "keys {}: no answer within {seconds} s",
                place.words().0
            )))
        }
    }
}

/// True where nobody could be talked to as the service of the instance. What it has not, or may not say, is an answer.
fn is_silence(error: &CredentialsError) -> bool {
    let unreached = |cause: &(dyn Error + 'static)| cause.to_string().contains("could not communicate with IMDS");
    let causes = std::iter::successors(Some(error as &(dyn Error + 'static)), |&cause| cause.source());
    matches!(crate::error::find(error), Some(ImdsError::FailedToLoadToken(_))) || causes.into_iter().any(unreached)
}

fn changed(files: &[PathBuf], marks: &[Option<Mark>]) -> bool {
    !files.iter().map(|path| Mark::of(path)).eq(marks.iter().cloned())
}

fn is_same(a: Option<&SdkKeys>, b: Option<&SdkKeys>) -> bool {
    let parts = |keys: &SdkKeys| {
        (
            keys.access_key_id().to_owned(),
            keys.secret_access_key().to_owned(),
            keys.session_token().map(str::to_owned),
        )
    };
    a.map(parts) == b.map(parts)
}

#[expect(
    clippy::disallowed_methods,
    reason = "keys expire by the wall clock, and this adapter is what knows of keys"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

fn is_past(time: Option<SystemTime>) -> bool {
    time.is_some_and(|time| time <= now())
}

fn margin(expiry: SystemTime) -> Duration {
    let life = expiry.duration_since(now()).unwrap_or_default();
    EXPIRY_MARGIN.min(life / 5)
}

/// The files that the SDK reads keys from, as it finds them itself.
#[expect(
    clippy::disallowed_methods,
    reason = "the SDK's chain reads these variables; here only the files' ages are looked at"
)]
fn files_of_the_chain() -> Vec<PathBuf> {
    let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    let at_home = |file: &str| named("HOME").map(|home| home.join(".aws").join(file));
    [
        named("AWS_SHARED_CREDENTIALS_FILE").or_else(|| at_home("credentials")),
        named("AWS_CONFIG_FILE").or_else(|| at_home("config")),
        named("AWS_WEB_IDENTITY_TOKEN_FILE"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_and_a_file_that_came_or_went_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let files = vec![dir.path().join("credentials")];
        let marks = |files: &[PathBuf]| files.iter().map(|path| Mark::of(path)).collect::<Vec<_>>();
        let absent = marks(&files);
        assert!(!changed(&files, &absent));
        fs::write(&files[0], "one").unwrap();
        assert!(changed(&files, &absent));
        let one = marks(&files);
        assert!(!changed(&files, &one));
        // In place of the first, as tools write it: the same length, perhaps in the same tick of the clock.
        fs::write(dir.path().join("next"), "two").unwrap();
        fs::rename(dir.path().join("next"), &files[0]).unwrap();
        assert!(changed(&files, &one));
    }

    #[test]
    fn keys_are_renewed_before_they_expire_and_short_lives_not_at_once() {
        let after = |seconds| now() + Duration::from_secs(seconds);
        assert_eq!(margin(after(3_600)), EXPIRY_MARGIN);
        let short = margin(after(10));
        assert!(
            short <= Duration::from_secs(2) && short > Duration::from_secs(1),
            "{short:?}"
        );
    }

    #[test]
    fn where_keys_were_looked_for_in_vain_is_told_with_what_to_do() {
        let source = KeySource::new(None, vec![PathBuf::from("/home/me/.aws/credentials")], None);
        let told = source.described();
        for part in ["AWS_ACCESS_KEY_ID", "/home/me/.aws/credentials", "AWS_PROFILE"] {
            assert!(told.contains(part), "{part} is missing in: {told}");
        }
        assert!(!told.contains("answers"), "{told}");
        source.found_mut().silent = true;
        assert!(source.described().contains("no metadata service answers"));
    }

    #[tokio::test]
    async fn given_keys_are_described_without_their_secret_and_never_fetched() {
        let source = KeySource::given("AKIA1", "the-secret", Some("the-token".to_owned()));
        assert_eq!(source.keys().await.unwrap().access_key_id(), "AKIA1");
        assert!(!source.renew_refused().await);
        let told = format!("{} {source:?}", source.described());
        assert!(
            told.contains("AKIA1") && told.contains("register the volume again"),
            "{told}"
        );
        assert!(!told.contains("the-secret") && !told.contains("the-token"), "{told}");
    }
}

//! What this engine leaves to the next one, and what it takes over from the one before: its connections, by way of the keeper.
//!
//! Invariants: a connection is kept only if a successor can serve it without anybody noticing more than a pause, and the mount
//! that is not kept says so in the log. What was kept is served again under its volume's lock, so that nobody finds it missing
//! meanwhile; what can never be served again is let go, so that its programs get errors and no silence.
//! Callers: `engine.rs`, `engine/process.rs`. Absent: what survives in a volume (`volume::tail`), and keeping (`keeper.rs`).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use proto::engine::v1 as wire;
use tokio::runtime::Handle;
use tokio::time::Instant;
use uuid::Uuid;

use super::ending::device_of;
use super::server::{request_of, spec_of};
use super::table::{Served, ServedKey, Shown, Table};
use super::{Engine, EngineError, MountSpec};
use crate::keeper::Kept;
use crate::open::{Connection, OpenFailed, Opened, Refusal, open};
use crate::session::{Attached, Greeting, Session, SessionError};

/// The version of what is left. Raised when an engine of the version before would serve it wrongly.
pub(super) const FORMAT: u32 = 2;

/// The version of a connection beside which nothing lies.
const FORMAT_ALONE: u32 = 1;

/// What the name of a connection follows in the name of the requests beside it.
const REQUESTS: &[u8] = b"requests of ";

/// 50 ms, and then twice as long each time up to 1 s, between tries to open a volume of which the store does not answer.
const AGAIN_FIRST: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(1);

/// 30 s for a volume that cannot be opened for another reason than a store that is away; then it is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);

/// 60 s for one try: longer than a store that answers needs, with a compaction of the tree before it.
const TRY_MAX: Duration = Duration::from_secs(60);

/// 2 tries without an end, one after another, although the store has answered at their beginning: the mount is given up.
const STUCK_MAX: u32 = 2;

/// 5 s between words to the keeper that this engine is still about to serve.
const ADOPTS_EVERY: Duration = Duration::from_secs(5);

/// What is left of one mount.
#[derive(Debug, Clone)]
pub(super) struct Left {
    /// How it was asked for.
    pub spec: MountSpec,
    /// Where it can be seen.
    pub mountpoints: BTreeMap<PathBuf, Shown>,
    /// Identity of the connection.
    pub connection: Uuid,
    /// What the kernel said when the connection was made.
    pub greeting: Greeting,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
}

impl Left {
    /// What an engine must be able to read to serve it.
    fn format(&self) -> u32 {
        match self.greeting.can_send_again() {
            true => FORMAT_ALONE,
            false => FORMAT,
        }
    }

    /// The key of the volume that is served.
    fn key(&self) -> ServedKey {
        ServedKey {
            volume_id: self.spec.volume_id.clone(),
            read_only: self.spec.open.read_only,
        }
    }
}

/// What a keeper calls it.
fn name_of(key: &ServedKey) -> Vec<u8> {
    format!("{} {}", if key.read_only { "ro" } else { "rw" }, key.volume_id).into_bytes()
}

fn name_of_requests(connection: &[u8]) -> Vec<u8> {
    [REQUESTS, connection].concat()
}

fn encode(left: &Left) -> Vec<u8> {
    let shown = left.mountpoints.iter();
    let message = wire::KeptMount {
        request: Some(request_of(&left.spec)),
        mountpoints: shown
            .map(|(path, shown)| wire::KeptMountpoint {
                path: path.to_string_lossy().into_owned(),
                read_only: shown.read_only,
                since_unix_ms: shown.since_unix_ms,
            })
            .collect(),
        connection: left.connection.as_bytes().to_vec(),
        greeting: left.greeting.as_bytes().to_vec(),
        since_unix_ms: left.since_unix_ms,
    };
    message.encode_to_vec()
}

fn decode(beside: &[u8]) -> Result<Left, String> {
    let message = wire::KeptMount::decode(beside).map_err(|error| error.to_string())?;
    let request = message.request.ok_or("it has no request")?;
    let mut spec = spec_of(request).map_err(|status| status.message().to_owned())?;
    // Whoever has taken the volume since has taken it from us.
    spec.open.take_over = false;
    let shown = message.mountpoints.into_iter().map(|shown| {
        let what = Shown {
            read_only: shown.read_only,
            since_unix_ms: shown.since_unix_ms,
        };
        (PathBuf::from(shown.path), what)
    });
    Ok(Left {
        spec,
        mountpoints: shown.collect(),
        connection: Uuid::from_slice(&message.connection).map_err(|error| error.to_string())?,
        greeting: Greeting::kept(message.greeting),
        since_unix_ms: message.since_unix_ms,
    })
}

/// Where the mounts are that were kept: nobody serves them yet, so nobody may look at them.
pub(super) fn mountpoints_of(kept: &[Kept]) -> Vec<PathBuf> {
    let left = kept.iter().filter_map(|kept| decode(&kept.beside).ok());
    left.flat_map(|left| left.mountpoints.into_keys()).collect()
}

impl Engine {
    /// Lets the keeper hold a new connection, before anything of it is served. A mount that cannot outlive this process says so.
    pub(super) fn keep_new(&self, left: &Left, attached: &Attached, survives: bool) {
        let Some(keeper) = &self.inner.keeper else { return };
        let (key, volume_id) = (left.key(), &left.spec.volume_id);
        if attached.is_by_rings() {
            return tracing::warn!(
                volume_id,
                "the mount is served by io_uring, as it was asked for: it does not outlive this engine"
            );
        }
        if !survives {
            return tracing::warn!(
                volume_id,
                "the mount does not outlive this engine: what was written last would be missing"
            );
        }
        let (name, beside) = (name_of(&key), encode(left));
        let kept = match &attached.requests {
            None => keeper.keep(&name, (left.format(), &beside), Some(attached.device.as_fd())),
            Some(requests) => {
                tracing::info!(
                    volume_id,
                    "the mount's requests are kept by this program: the kernel is older than Linux 6.9"
                );
                keeper
                    .keep(&name_of_requests(&name), (FORMAT, &[]), Some(requests.as_fd()))
                    .and_then(|()| keeper.keep(&name, (left.format(), &beside), Some(attached.device.as_fd())))
            }
        };
        match kept {
            Ok(()) => drop(self.table().left.insert(key, left.clone())),
            Err(error) => tracing::error!(%error, volume_id, "the mount does not outlive this engine"),
        }
    }

    /// Tells the keeper what has changed of a mount.
    pub(super) fn keep_again(&self, key: &ServedKey) {
        let Some(keeper) = &self.inner.keeper else { return };
        let (needs, beside) = {
            let mut table = self.table();
            let Table { served, left, .. } = &mut *table;
            let (Some(served), Some(left)) = (served.get(key), left.get_mut(key)) else {
                return;
            };
            left.spec.open = served.spec.clone();
            left.mountpoints = served.mountpoints.clone();
            (left.format(), encode(left))
        };
        if let Err(error) = keeper.keep(&name_of(key), (needs, &beside), None) {
            tracing::error!(%error, volume_id = key.volume_id, "what has changed of the mount does not outlive this engine");
        }
    }

    /// The connection has ended, and its volume is closed.
    pub(super) fn keep_no_more(&self, key: &ServedKey) {
        let was_kept = self.table().left.remove(key);
        if let Some(left) = was_kept {
            self.give_up((&name_of(key), left.greeting.can_send_again()));
        }
    }

    /// Serves again what an engine before this one has left. Returns when all of it is served or given up.
    pub(super) async fn adopt(&self, all: Vec<Kept>, state_dir: Option<&Path>) {
        let (requests, connections): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|kept| kept.key.starts_with(REQUESTS));
        let mut requests: BTreeMap<_, _> = requests.into_iter().map(|kept| (kept.key, kept.connection)).collect();
        let adopting: Vec<_> = connections
            .into_iter()
            .map(|kept| (self.clone(), requests.remove(&name_of_requests(&kept.key)), kept))
            .map(|(engine, requests, kept)| async move {
                match decode(&kept.beside) {
                    Ok(mut left) => {
                        left.spec.open.state_dir = state_dir.map(Path::to_path_buf);
                        engine.adopt_one(left, (kept.connection, requests)).await;
                    }
                    Err(detail) => {
                        tracing::error!(detail, "a mount was left that this engine does not understand: it ends");
                        engine.give_up((&kept.key, requests.is_none()));
                    }
                }
            })
            .collect();
        // Their connections have ended.
        requests.keys().for_each(|name| self.forget(name));
        let adopting = futures::future::join_all(adopting);
        let mut adopted = std::pin::pin!(adopting);
        while tokio::time::timeout(ADOPTS_EVERY, &mut adopted).await.is_err() {
            if let Some(keeper) = &self.inner.keeper
                && let Err(error) = keeper.adopts()
            {
                tracing::debug!(%error, "the keeper waits without a word");
            }
        }
        if let Some(keeper) = &self.inner.keeper
            && let Err(error) = keeper.serves()
        {
            tracing::warn!(%error, "the keeper does not know that its mounts are served");
        }
    }

    /// Lets the keeper forget a connection; `alone` if nothing lies beside it.
    fn give_up(&self, (name, alone): (&[u8], bool)) {
        self.forget(name);
        if !alone {
            self.forget(&name_of_requests(name));
        }
    }

    fn forget(&self, name: &[u8]) {
        if let Some(keeper) = &self.inner.keeper
            && let Err(error) = keeper.forget(name)
        {
            tracing::warn!(%error, "the keeper still holds a connection that has ended");
        }
    }

    async fn adopt_one(&self, left: Left, (device, requests): (OwnedFd, Option<OwnedFd>)) {
        let _held = self.lock(&left.spec.volume_id).await;
        let began = Instant::now();
        let (key, alone) = (left.key(), requests.is_none());
        let Some(opened) = self.open_again(&left, began).await else {
            return self.give_up((&name_of(&key), alone));
        };
        let opened_ms = began.elapsed().as_millis();
        match self.serve_again((&key, left), opened, (device, requests)).await {
            Ok(()) => tracing::info!(
                volume_id = key.volume_id,
                opened_ms,
                served_ms = began.elapsed().as_millis(),
                "a mount of the engine before is served again"
            ),
            Err(error) => {
                tracing::error!(%error, volume_id = key.volume_id, "a mount of the engine before has ended");
                self.give_up((&name_of(&key), alone));
            }
        }
    }

    /// Opens a volume as its engine before had it; `None` if that cannot be.
    async fn open_again(&self, left: &Left, began: Instant) -> Option<Opened> {
        let connection = Connection {
            id: left.connection,
            adopted: true,
            outlives: true,
        };
        let (volume_id, mut wait, mut stuck) = (&left.spec.volume_id, AGAIN_FIRST, 0);
        loop {
            let try_it = open(&left.spec.open, connection, (&self.inner.stores, &self.inner.budget));
            let failed = match tokio::time::timeout(TRY_MAX, try_it).await {
                Ok(Ok(opened)) => return Some(opened),
                Ok(Err(failed)) => failed,
                Err(_) => {
                    stuck += 1;
                    tracing::error!(
                        volume_id,
                        stuck,
                        "a mount of the engine before does not open, though its store answers"
                    );
                    match stuck {
                        STUCK_MAX => return None,
                        _ => continue,
                    }
                }
            };
            stuck = 0;
            if is_final(&failed) || (!is_of_store(&failed) && began.elapsed() > GIVE_UP_AFTER) {
                tracing::error!(error = %failed, volume_id, "a mount of the engine before cannot be served again");
                return None;
            }
            tracing::warn!(error = %failed, volume_id, "a mount of the engine before waits for its volume");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(AGAIN_MAX);
        }
    }

    async fn serve_again(
        &self,
        (key, left): (&ServedKey, Left),
        opened: Opened,
        (device, requests): (OwnedFd, Option<OwnedFd>),
    ) -> Result<(), EngineError> {
        let Opened {
            volume,
            bucket,
            transport,
        } = opened;
        let (of, greeting, runtime) = (volume.clone(), left.greeting.clone(), Handle::current());
        let place = left.mountpoints.keys().next().cloned().unwrap_or_default();
        let adopt = move || Session::adopt(of, (device, greeting), requests, &runtime)?.serve(&place);
        let session: Result<Session, SessionError> = tokio::task::spawn_blocking(adopt)
            .await
            .expect("adopting does not panic");
        let session = match session {
            Ok(session) => session,
            Err(error) => {
                // Unmounted in the very moment: what was left is in the bucket after this.
                super::close(&key.volume_id, &volume).await;
                return Err(error.into());
            }
        };
        let closed = self.close_at_end(key.clone(), session.clone(), volume.clone());
        let served = Served {
            volume,
            bucket,
            session,
            closed,
            device: device_of(left.mountpoints.keys()),
            let_go: false,
            asked: transport.asked,
            spec: left.spec.open.clone(),
            since_unix_ms: left.since_unix_ms,
            mountpoints: left.mountpoints.clone(),
        };
        self.keep_looking(key.clone(), served.closed.clone());
        let mut table = self.table();
        table.left.insert(key.clone(), left);
        table.served.insert(key.clone(), served);
        drop(table);
        self.note();
        Ok(())
    }
}

/// True where trying again cannot help: the volume is another node's now, or is not there.
fn is_final(failed: &OpenFailed) -> bool {
    match &failed.refusal {
        Refusal::Missing | Refusal::Led { .. } | Refusal::Connect(_) | Refusal::Store(_) | Refusal::Name(_) => true,
        Refusal::Head(_) => true,
        Refusal::Bucket(_) | Refusal::Open(_) | Refusal::Root(_) => false,
    }
}

/// True where the store is away: its return is waited for, as a running mount would.
fn is_of_store(failed: &OpenFailed) -> bool {
    matches!(failed.refusal, Refusal::Bucket(_))
}

//! Keys that expire under a mounted volume: from each place that they come from, new ones are used without a remount.
//!
//! A real engine works through a proxy that refuses every request whose session token has expired, as S3 does.

#![allow(clippy::unwrap_used, reason = "each step of a test must succeed")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tests::engine_process::{Ask, EngineProcess};
use tests::fake_cloud::{FakeCloud, Issue};
use tests::local_store::LocalStore;
use tests::s3_proxy::{Delays, Fault, S3Proxy};

/// 60 s for what takes a moment on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The tokens that the store takes.
type Valid = Arc<Mutex<BTreeSet<String>>>;

/// A store that refuses what is signed with another token than those in `valid`.
struct Gate {
    store: LocalStore,
    proxy: S3Proxy,
    valid: Valid,
    id: String,
    secret: String,
}

impl Gate {
    fn new() -> Self {
        let store = LocalStore::start();
        let proxy = store.block_on(S3Proxy::start(&store.endpoint(), Delays::default()));
        let valid = Valid::default();
        let known = Arc::clone(&valid);
        proxy.set_rule(move |seen| {
            let is_valid = known.lock().unwrap().contains(&seen.token);
            (!is_valid).then_some(Fault::Refusal(400, "ExpiredToken", "The provided token has expired."))
        });
        let keys = store.environment();
        let value = |name: &str| keys.iter().find(|(known, _)| known == name).unwrap().1.clone();
        Self {
            id: value("AWS_ACCESS_KEY_ID"),
            secret: value("AWS_SECRET_ACCESS_KEY"),
            store,
            proxy,
            valid,
        }
    }

    /// From now on only this token is valid.
    fn take_only(&self, token: &str) {
        *self.valid.lock().unwrap() = BTreeSet::from([token.to_owned()]);
    }

    fn cloud(&self, life: Duration) -> FakeCloud {
        let issue = Issue {
            id: self.id.clone(),
            secret: self.secret.clone(),
            token: "token-one".to_owned(),
            life,
        };
        self.store.block_on(FakeCloud::start(issue))
    }
}

fn variables(more: &[(&str, &str)]) -> Vec<(String, String)> {
    // A file that does not exist, so that no file of whoever runs the test is used.
    let mut all = vec![
        ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials"),
        ("AWS_CONFIG_FILE", "/nonexistent/config"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    all.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
    all.extend(more);
    all.into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn until(what: &str, engine: &mut EngineProcess, mut holds: impl FnMut(&mut EngineProcess) -> bool) {
    let begun = Instant::now();
    while !holds(engine) {
        assert!(begun.elapsed() < PATIENCE, "{what}; it said:\n{}", engine.said());
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn write_and_sync(path: &Path, content: &str) {
    let mut file = File::create(path).unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file.sync_all().unwrap();
}

/// What every source of keys must do: writers wait while the keys are refused, what is cached is read, the engine says which
/// key of whom is refused and what helps, and after `rotate` all goes on. Nothing secret is in the log.
fn expire_and_rotate(
    gate: &Gate,
    engine: &mut EngineProcess,
    ask: &Ask,
    whose: &str,
    rotate: impl FnOnce(&mut EngineProcess),
) {
    engine.mount(&gate.store, ask).unwrap();
    let root = &ask.mountpoint;
    write_and_sync(&root.join("before"), "before");
    assert_eq!(engine.mounts()[0].outage, "");

    gate.take_only("token-two");
    let waiting = {
        let path = root.join("meanwhile");
        std::thread::spawn(move || write_and_sync(&path, "meanwhile"))
    };
    until("the trouble is not shown", engine, |engine| {
        !engine.mounts()[0].outage.is_empty()
    });
    let told = engine.mounts()[0].outage.clone();
    for part in ["ExpiredToken", gate.id.as_str(), whose, "without a remount"] {
        assert!(told.contains(part), "{part} is missing in: {told}");
    }
    assert!(!waiting.is_finished(), "an fsync waits, it does not fail");
    assert_eq!(fs::read_to_string(root.join("before")).unwrap(), "before");

    rotate(engine);
    until("the writer does not go on", engine, |_| waiting.is_finished());
    waiting.join().unwrap();
    until("the trouble does not end", engine, |engine| {
        engine.mounts()[0].outage.is_empty()
    });
    write_and_sync(&root.join("after"), "after");
    engine.unmount(root, PATIENCE).unwrap();

    let said = engine.said();
    assert!(said.contains("ExpiredToken") && said.contains(&gate.id), "{said}");
    for secret in [
        gate.secret.as_str(),
        "token-one",
        "token-two",
        "identity-one",
        "identity-two",
    ] {
        assert!(!said.contains(secret), "a secret is in the log:\n{said}");
    }
}

fn ask(gate: &Gate) -> Ask {
    let mut ask = Ask::new("v1", &gate.store.folder("mnt"));
    ask.endpoint = Some(gate.proxy.endpoint());
    ask
}

/// Keys of the instance's role are asked for again when the store refuses them, though they claim to be valid for hours.
#[test]
fn keys_of_an_instance_that_expire_are_renewed_without_a_remount() {
    let gate = Gate::new();
    gate.take_only("token-one");
    let cloud = gate.cloud(Duration::from_secs(6 * 3_600));
    let environment = variables(&[
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &cloud.endpoint()),
    ]);
    let mut engine = EngineProcess::start_with(&environment, &gate.store.folder("engine"));
    expire_and_rotate(&gate, &mut engine, &ask(&gate), "of the instance's role", |_| {
        cloud.set_token("token-two")
    });
}

/// A web identity token file that changes is shown to the token service at once.
#[test]
fn a_web_identity_token_file_that_changes_brings_new_keys_without_a_remount() {
    let gate = Gate::new();
    gate.take_only("token-one");
    let cloud = gate.cloud(Duration::from_secs(3_600));
    let file = gate.store.folder("identity").join("token");
    fs::write(&file, "identity-one").unwrap();
    let environment = variables(&[
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file.to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/node"),
        ("AWS_ENDPOINT_URL_STS", &cloud.endpoint()),
    ]);
    let mut engine = EngineProcess::start_with(&environment, &gate.store.folder("engine"));
    expire_and_rotate(
        &gate,
        &mut engine,
        &ask(&gate),
        "of the web identity token file",
        |_| {
            cloud.set_token("token-two");
            fs::write(&file, "identity-two").unwrap();
        },
    );
    let identities = cloud.identities();
    assert_eq!(identities.first().map(String::as_str), Some("identity-one"));
    assert_eq!(identities.last().map(String::as_str), Some("identity-two"));
}

/// A profile file that changes is read again at once.
#[test]
fn a_profile_file_that_changes_brings_new_keys_without_a_remount() {
    let gate = Gate::new();
    gate.take_only("token-one");
    let file = gate.store.folder("profile").join("credentials");
    let profile = |token: &str| {
        let (id, secret) = (&gate.id, &gate.secret);
        format!("[default]\naws_access_key_id={id}\naws_secret_access_key={secret}\naws_session_token={token}\n")
    };
    fs::write(&file, profile("token-one")).unwrap();
    let environment = variables(&[("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap())]);
    let mut engine = EngineProcess::start_with(&environment, &gate.store.folder("engine"));
    expire_and_rotate(&gate, &mut engine, &ask(&gate), "of the profile file", |_| {
        fs::write(&file, profile("token-two")).unwrap();
    });
}

/// Keys from a volume's secrets are replaced by the next call that brings others.
#[test]
fn keys_of_a_volume_are_replaced_by_new_secrets_without_a_remount() {
    let gate = Gate::new();
    gate.take_only("");
    let mut engine = EngineProcess::start_with(&variables(&[]), &gate.store.folder("engine"));
    let mut ask = ask(&gate);
    ask.keys = Some((gate.id.clone(), gate.secret.clone()));
    let (id, secret) = (gate.id.clone(), gate.secret.clone());
    expire_and_rotate(&gate, &mut engine, &ask, "of the volume's secrets", |engine| {
        engine.set_credentials("v1", (&id, &secret, "token-two")).unwrap();
    });
}

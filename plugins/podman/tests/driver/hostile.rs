//! Input that nobody meant to send: options, driver states and answers of Podman, made at random. Goal: never a panic; what is
//! refused is refused by the name of its key. Method: proptest, bounded, so that a run costs seconds; a failure prints the smallest
//! input. `PROPTEST_CASES=100000` runs it longer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use podman_driver::compute::Compute;
use podman_driver::config::Config;
use podman_driver::events::Subject;
use podman_driver::handle::Handle;
use podman_driver::host::Host;
use podman_driver::images::reference::Source;
use podman_driver::nomad_task::NomadTask;
use podman_driver::podman::{Client, HostInfo, Podman as _, PullRequest};
use podman_driver::schema;
use podman_driver::spec::{self, Inputs};
use podman_driver::task_config::TaskConfig;
use proptest::prelude::*;
use proto::nomad::hclspec::{Spec, spec::Block};
use rmpv::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A part or a multiple of what proptest does by itself (256 cases), and nothing written into the source tree.
fn bounded(times: u32) -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig {
        cases: usual.cases.saturating_mul(times),
        failure_persistence: None,
        ..usual
    }
}

/// Texts that options are made of, and texts that they are not.
fn text() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        Just("".to_owned()),
        Just("/".to_owned()),
        Just(":".to_owned()),
        Just("host".to_owned()),
        Just("task:x".to_owned()),
        Just("..".to_owned()),
        Just("auto:size=".to_owned()),
        Just("1g".to_owned()),
        Just("99999999999999999999".to_owned()),
        Just("-1".to_owned()),
        Just("=,;%${}".to_owned()),
        "\\PC{0,8}",
        "[a-z/:.=,0-9-]{0,16}",
    ];
    proptest::collection::vec(pieces, 0..4).prop_map(|pieces| pieces.concat())
}

/// Any value that msgpack can carry.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..2000).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
        proptest::collection::vec(any::<u8>(), 0..8).prop_map(Value::Binary),
        proptest::collection::vec(any::<u8>(), 0..4).prop_map(|bytes| Value::Ext(1, bytes)),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let entries = proptest::collection::vec((text().prop_map(Value::from), inner.clone()), 0..4);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            entries.prop_map(Value::Map),
            (inner.clone(), inner).prop_map(|(key, value)| Value::Map(vec![(key, value)])),
        ]
    })
}

/// The names of a schema's options.
fn options(spec: &Spec) -> Vec<String> {
    match &spec.block {
        Some(Block::Object(object)) => object.attributes.keys().cloned().collect(),
        _ => panic!("the schema is no object"),
    }
}

fn msgpack(entries: Vec<(String, Value)>) -> Vec<u8> {
    let entries = entries.into_iter().map(|(key, value)| (Value::from(key), value));
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &Value::Map(entries.collect())).expect("a vector takes all");
    bytes
}

fn subject() -> Subject {
    Subject {
        task_id: "alloc/web/1".to_owned(),
        task_name: "web".to_owned(),
        alloc_id: "alloc".to_owned(),
    }
}

/// What becomes of decoded options must not panic either.
fn make_container(options: &TaskConfig) {
    let task = NomadTask {
        id: "alloc/web/1".to_owned(),
        name: "web".to_owned(),
        alloc_id: "alloc".to_owned(),
        alloc_dir: PathBuf::from("/nomad/alloc"),
        ..NomadTask::default()
    };
    let config = Config::default_for(0);
    for rootless in [false, true] {
        let host = Host {
            rootless,
            cpus: 4,
            ..Host::default()
        };
        let made = spec::container(Inputs {
            task: &task,
            options,
            config: &config,
            host: &host,
            logs: None,
        });
        if let Err(error) = made {
            assert!(!error.to_string().is_empty());
        }
    }
}

proptest! {
    #![proptest_config(bounded(8))]

    #[test]
    fn bytes_that_are_no_options_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = TaskConfig::decode(&bytes);
        let _ = Config::decode(&bytes, 0);
        let _ = Handle::decode(&bytes, &subject());
    }

    #[test]
    fn a_task_option_of_any_value_is_read_or_named(which in any::<prop::sample::Index>(), value in value()) {
        let keys = options(&schema::task());
        let key = which.get(&keys).clone();
        let mut entries = vec![(key.clone(), value)];
        if key != "image" {
            entries.push(("image".to_owned(), "busybox".into()));
        }
        match TaskConfig::decode(&msgpack(entries)) {
            Ok(options) => make_container(&options),
            Err(errors) => {
                for error in &errors.0 {
                    prop_assert!(error.to_string().contains(&key), "{key}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_plugin_option_of_any_value_is_read_or_named(which in any::<prop::sample::Index>(), value in value()) {
        let keys = options(&schema::plugin());
        let key = which.get(&keys).clone();
        if let Err(errors) = Config::decode(&msgpack(vec![(key.clone(), value)]), 0) {
            for error in &errors.0 {
                prop_assert!(error.to_string().contains(&key), "{key}: {error}");
            }
        }
    }

    #[test]
    fn any_options_together_never_panic(values in proptest::collection::vec((any::<prop::sample::Index>(), value()), 0..12)) {
        let task: Vec<_> = values.iter().map(|(which, value)| (which.get(&options(&schema::task())).clone(), value.clone())).collect();
        if let Ok(options) = TaskConfig::decode(&msgpack(task)) {
            make_container(&options);
        }
        let plugin = values.into_iter().map(|(which, value)| (which.get(&options(&schema::plugin())).clone(), value)).collect();
        let _ = Config::decode(&msgpack(plugin), 0);
    }

    #[test]
    fn an_image_of_any_text_is_read_or_named(text in text()) {
        if let Err(error) = Source::parse(&text, Path::new("/task")) {
            let message = error.to_string();
            prop_assert!(message.contains("is not an image reference") || message.contains("transport"), "{message}");
        }
    }

    #[test]
    fn a_driver_state_that_was_damaged_is_refused_or_read(
        at in any::<prop::sample::Index>(), bits in 1u8.., cut in any::<prop::sample::Index>(), whole in any::<bool>(),
    ) {
        let handle = Handle {
            version: 1,
            task_id: "alloc/web/1".to_owned(),
            container_id: "c".repeat(64),
            compute: Compute::default(),
            ..Handle::default()
        };
        let mut bytes = handle.encode();
        prop_assert_eq!(Handle::decode(&bytes, &subject()).unwrap(), handle);
        let place = at.index(bytes.len());
        bytes[place] ^= bits;
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = Handle::decode(&bytes, &subject());
    }
}

/// Options nested beyond any sense end in an error, not in the end of the stack.
#[test]
fn options_that_are_nested_too_deep_are_refused() {
    let mut bytes = b"\x81\xa5image".to_vec();
    bytes.extend(std::iter::repeat_n(0x91, 1_000_000));
    assert!(TaskConfig::decode(&bytes).is_err());
    assert!(Config::decode(&bytes, 0).is_err());
    assert!(Handle::decode(&bytes, &subject()).is_err());
}

/// JSON as Podman might answer if it were another program.
fn answer() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<f64>().prop_map(serde_json::Value::from),
        text().prop_map(serde_json::Value::from),
    ];
    let keys = prop_oneof![
        "[a-zA-Z]{0,6}",
        proptest::sample::select(vec![
            "Id",
            "id",
            "State",
            "Status",
            "Running",
            "Pid",
            "ExitCode",
            "OOMKilled",
            "Config",
            "Labels",
            "Env",
            "HostConfig",
            "LogConfig",
            "NetworkSettings",
            "Networks",
            "host",
            "version",
            "cpus",
            "error",
            "stream",
            "Names",
            "Warnings",
            "message",
            "cause",
            "response",
            "StopSignal",
        ])
        .prop_map(str::to_owned),
    ];
    let json = leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            proptest::collection::vec((keys.clone(), inner), 0..6)
                .prop_map(|entries| serde_json::Value::Object(entries.into_iter().collect())),
        ]
    });
    prop_oneof![4 => json.prop_map(|json| json.to_string()), 1 => "\\PC{0,40}"]
}

/// Answers every call in the same way, as often as it is asked.
async fn answering(listener: tokio::net::UnixListener, status: u16, body: String) {
    while let Ok((mut connection, _)) = listener.accept().await {
        let (head, body) = (
            format!(
                "HTTP/1.1 {status} X\r\nLibpod-API-Version: 4.3.1\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            ),
            body.clone(),
        );
        tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                match connection.read_u8().await {
                    Ok(byte) => request.push(byte),
                    Err(_) => return,
                }
            }
            let _ = connection.write_all(head.as_bytes()).await;
            let _ = connection.write_all(body.as_bytes()).await;
        });
    }
}

/// A minute: all the calls below take milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

async fn ask_everything(client: &Client) {
    let _ = client.ping().await;
    if let Ok(info) = client.info().await {
        let _ = Host::read(&info, Path::new("/nowhere"), "");
        let _: HostInfo = info;
    }
    let _ = client.inspect_container("c").await;
    let _ = client.list_containers(&std::collections::BTreeMap::new()).await;
    let _ = client.inspect_image("i").await;
    let _ = client.network_exists("n").await;
    let _ = client.inspect_exec("e").await;
    let _ = client.kill_container("c", "SIGTERM").await;
    let pull = PullRequest {
        reference: "i".to_owned(),
        ..PullRequest::default()
    };
    let _ = client.pull_image(&pull, &|_| {}).await;
}

proptest! {
    #![proptest_config(bounded(1))]

    #[test]
    fn an_answer_of_any_shape_is_an_error_at_most(
        body in answer(), status in prop_oneof![4 => Just(200u16), 1 => prop::sample::select(vec![201u16, 204, 304, 400, 404, 409, 500, 599])],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let socket = folder.path().join("podman.sock");
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            let service = tokio::spawn(answering(listener, status, body));
            let asked = tokio::time::timeout(PATIENCE, ask_everything(&Client::new(socket))).await;
            service.abort();
            assert!(asked.is_ok(), "a call hangs");
        });
    }
}

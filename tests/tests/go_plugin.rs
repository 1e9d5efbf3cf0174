//! Our plugins against HashiCorp's own go-plugin client, as a Nomad agent uses it: see `tests/go`.
#![expect(
    clippy::disallowed_macros,
    reason = "what the Go program prints is the test's own output"
)]

#[path = "../../plugins/podman/tests/fixture/mod.rs"]
mod fixture;

use std::path::{Path, PathBuf};
use std::process::Command;

use fixture::{BUSYBOX, PodmanService};
use pannier::try_job::{driver_config, hcl_reader::Source, job_file};
use prost::Message;
use tests::binaries::{Program, built};
use tests::go_module;

/// The Go program, or `None`, with the reason on stdout, where it cannot be built.
fn conformance() -> Option<PathBuf> {
    let Some(go) = go_module::go() else {
        println!("skipped: the Go tool chain is not installed (https://go.dev/doc/install)");
        return None;
    };
    Some(go_module::build(&go, Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("the Go module builds"))
}

fn run(command: &mut Command) {
    let output = command.output().expect("the Go program starts");
    println!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{command:?}: {}", output.status);
}

/// Goal: what we call the plugin protocol is what HashiCorp's client calls it. Method: launch, dispense, call every service, kill
/// and reattach the example driver with that client.
#[test]
fn the_protocol_is_the_one_that_hashicorps_client_speaks() {
    let Some(conformance) = conformance() else { return };
    run(Command::new(conformance)
        .arg("protocol")
        .arg("-plugin")
        .arg(built(Program::Example("timer"))));
}

/// Goal: a task under Podman outlives the plugin and the agent, and every option does what users of the driver that they come from
/// know of it. Method: HashiCorp's client runs the driver against a Podman service of this test's own, kills either at the worst
/// moment, takes tasks over again, and looks at each option from inside the container or through Podman.
#[test]
fn the_podman_driver_conforms_under_hashicorps_client() {
    let Some(conformance) = conformance() else { return };
    let Some(podman) = PodmanService::start() else { return };
    let driver = built(Program::Binary("nomad-driver-podman"));
    // The bench in its short form too: what it measures is printed, what it must not lose is asserted.
    for suite in ["podman", "bench"] {
        let mut command = Command::new(&conformance);
        command
            .arg(suite)
            .arg("-plugin")
            .arg(&driver)
            .arg("-socket")
            .arg(podman.socket())
            .args(["-image", BUSYBOX]);
        run(&mut command);
    }
}

/// Goal: `pannier try` sends a driver what Nomad would. Method: the same configuration through ours and through the libraries
/// that Nomad uses (HCL's decoder, go-cty's msgpack), compared value by value.
#[test]
fn a_task_is_encoded_as_nomads_own_libraries_encode_it() {
    let Some(conformance) = conformance() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let schema = podman_driver::schema::task();
    let schema_file = folder.path().join("schema");
    std::fs::write(&schema_file, schema.encode_to_vec()).expect("the schema is written");
    for config in [
        r#"image = "busybox""#,
        r#"
        image = "docker://docker.io/library/redis:7"
        args = ["a", "", "ü\n"]
        entrypoint = ["/bin/sh", "-c"]
        force_pull = true
        cpu_cfs_period = 250000
        memory_swappiness = 60.5
        oom_score_adj = -17
        labels = [{ a = "1", b = "2" }, { c = "3" }]
        port_map = [{ http = 8080, big = 4294967296 }]
        auth {
          username = "me"
          password = "secret"
        }
        logging {
          driver = "journald"
          options = [{ tag = "x" }]
        }
        "#,
        r#"
        image = "busybox"
        entrypoint = "/bin/sh -c"
        pids_limit = "300"
        "#,
    ] {
        let config_file = folder.path().join("config.hcl");
        std::fs::write(&config_file, config).expect("the configuration is written");
        let theirs = Command::new(&conformance)
            .arg("encode")
            .args([&schema_file, &config_file])
            .output()
            .expect("it runs");
        assert!(
            theirs.status.success(),
            "{config}: {}",
            String::from_utf8_lossy(&theirs.stderr)
        );
        let source = Source::from_text("config.hcl", config);
        let body = source.parse().expect("the configuration is HCL");
        let ours =
            driver_config::encode(&source, &job_file::task_context(), &body, &schema).expect("it fits the schema");
        assert_eq!(
            sorted(&ours).to_string(),
            sorted(&theirs.stdout).to_string(),
            "{config}"
        );
    }
}

/// Reads msgpack, and puts the keys of maps in order: theirs are, and the wire does not care.
fn sorted(mut bytes: &[u8]) -> rmpv::Value {
    fn sort(value: rmpv::Value) -> rmpv::Value {
        match value {
            rmpv::Value::Array(values) => rmpv::Value::Array(values.into_iter().map(sort).collect()),
            rmpv::Value::Map(mut pairs) => {
                pairs.sort_by_key(|(key, _)| key.to_string());
                rmpv::Value::Map(pairs.into_iter().map(|(key, value)| (key, sort(value))).collect())
            }
            plain => plain,
        }
    }
    sort(rmpv::decode::read_value(&mut bytes).expect("it is msgpack"))
}

//! The nomad-driver-podman plugin: Nomad launches it, not a person. The same binary is the process that carries a task's output.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use go_plugin::{Agreement, MESSAGE_BYTES_MAX};
use podman_driver::base_plugin::BasePluginService;
use podman_driver::config::Config;
use podman_driver::driver::DriverService;
use podman_driver::logs::{self, RelayProgram};
use podman_driver::plugin::{Connect, Plugin};
use podman_driver::podman::{Client, Podman};
use proto::nomad::base::base_plugin_server::BasePluginServer;
use proto::nomad::driver::driver_server::DriverServer;
use tonic::service::Routes;

/// What `--help` says.
const HELP: &str = "\
nomad-driver-podman runs containers of Nomad jobs with Podman. Nomad's agent launches it: put it into the agent's plugin_dir
and name it in the agent's configuration:

    plugin \"nomad-driver-podman\" {
      config {
        socket_path = \"unix:///run/podman/podman.sock\"
      }
    }

Options: --version, --help
";

fn main() -> ExitCode {
    // First of all, before there is any runtime, thread or logger: this may be a log process.
    if let Some(code) = logs::relay_main(std::env::args_os()) {
        return ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX));
    }
    match std::env::args().nth(1).as_deref() {
        Some("--version" | "-version" | "version") => {
            say(concat!("nomad-driver-podman v", env!("CARGO_PKG_VERSION"), "\n"))
        }
        Some("--help" | "-help" | "-h") => say(HELP),
        Some(_) | None => {
            let plugin = go_plugin::Plugin {
                name: "nomad-driver-podman",
                agreement: Agreement::NOMAD,
            };
            go_plugin::run(&plugin, async || Ok(routes()))
        }
    }
}

/// The two services that Nomad calls. Nothing is connected or read yet: Nomad may only want to know who we are.
fn routes() -> Routes {
    let uid = nix::unistd::geteuid().as_raw();
    let connect: Connect = Arc::new(|socket: &Path, call_limit: Option<Duration>| -> Arc<dyn Podman> {
        Arc::new(Client::new(socket).with_call_limit(call_limit))
    });
    let plugin = Plugin::new(Config::default_for(uid), connect, RelayProgram::default(), now);
    let base = BasePluginServer::new(BasePluginService::new(plugin.clone(), uid));
    let driver = DriverServer::new(DriverService::new(plugin));
    Routes::new(base.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(driver.max_decoding_message_size(MESSAGE_BYTES_MAX))
}

#[expect(clippy::disallowed_methods, reason = "main is where the clock comes from")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn say(text: &str) -> ExitCode {
    print!("{text}");
    ExitCode::SUCCESS
}

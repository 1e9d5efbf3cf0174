//! The nomad-driver-podman plugin binary.

fn main() {
    // First of all, before there is any runtime, thread or logger: this may be a log process.
    if let Some(code) = podman_driver::logs::relay_main(std::env::args_os()) {
        std::process::exit(code);
    }
}

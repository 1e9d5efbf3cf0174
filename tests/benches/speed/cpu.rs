//! Whose processor time a load took: on a machine that volume, store, proxy and load share, that bounds what each of them can
//! reach, and says where what is missing goes.
//!
//! Caller: the groups, with `--cpu`. Absent: what the kernel does for nobody (interrupts, writing dirty pages back).

use std::fmt;
use std::fs;

/// Name of the threads that carry the proxy.
pub const PROXY_THREADS: &str = "s3-proxy";

/// Name of the threads that carry our client of the store where it is measured without a file system.
pub const CLIENT_THREADS: &str = "s3-client";

/// Ticks of the processor times in /proc, a second: fixed by the kernel's promise to programs (USER_HZ).
const TICKS: f64 = 100.0;

/// Seconds of processor time, up to a moment or since one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    load: f64,
    client: f64,
    proxy: f64,
    store: f64,
    system: f64,
}

impl Cpu {
    /// Up to now: of this process by its threads, of the store, and of the process behind a file system.
    pub fn now(store: u32, system: Option<u32>) -> Self {
        let threads = |name: &str| -> f64 {
            let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
            let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
            stats.filter_map(|stat| seconds_if(&stat, name)).sum()
        };
        let (client, proxy) = (threads(CLIENT_THREADS), threads(PROXY_THREADS));
        Self {
            load: of_process("self") - client - proxy,
            client,
            proxy,
            store: of_process(&store.to_string()),
            system: system.map_or(0.0, |pid| of_process(&pid.to_string())),
        }
    }

    /// Since an earlier moment.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            load: self.load - earlier.load,
            client: self.client - earlier.client,
            proxy: self.proxy - earlier.proxy,
            store: self.store - earlier.store,
            system: self.system - earlier.system,
        }
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            load,
            client,
            proxy,
            store,
            system,
        } = self;
        let all = load + client + proxy + store + system;
        write!(
            f,
            "{all:.2} s of processors: load {load:.2}, client {client:.2}, proxy {proxy:.2}, store {store:.2}, file system {system:.2}"
        )
    }
}

fn of_process(pid: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    seconds_if(&stat, "").unwrap_or(0.0)
}

/// The seconds of user and system in a line of /proc, if the name in it begins with `name`.
fn seconds_if(stat: &str, name: &str) -> Option<f64> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, comm) = before.split_once('(')?;
    let mut times = after
        .split_whitespace()
        .skip(11)
        .map_while(|field| field.parse::<f64>().ok());
    let ticks = times.next()? + times.next()?;
    comm.starts_with(name).then_some(ticks / TICKS)
}

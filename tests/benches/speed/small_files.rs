//! Small files by one process and by eight: each phase on all systems before the next, round by round.

use std::path::Path;
use std::time::Duration;

use crate::Bench;
use crate::loads::{self, Budget, Done};
use crate::systems::{System, forget_caches};
use crate::table::{Limit, Metric};

/// 10 s for a phase: the slowest systems do what they can in it.
const TIME_MAX: Duration = Duration::from_secs(10);

/// What the kernel knows when a phase begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// What the phase before left.
    AsIs,
    /// All names and attributes.
    Warm,
    /// Nothing.
    Cold,
}

/// A phase.
struct Phase {
    /// By one process, by eight.
    names: [&'static str; 2],
    limit: Limit,
    load: fn(&Path, u64, Budget) -> Done,
    kernel: Kernel,
}

const OF_NULL: Limit = Limit::ShareOf(System::Null, 0.5);

const PHASES: [Phase; 6] = [
    Phase {
        names: ["create + write 4 KiB + close, 1", "create + write 4 KiB + close, 8"],
        limit: Limit::ShareOf(System::Null, 0.6),
        load: loads::create,
        kernel: Kernel::AsIs,
    },
    Phase {
        names: ["stat warm, 1", "stat warm, 8"],
        limit: Limit::ShareOf(System::Ext4, 0.9),
        load: loads::stat,
        kernel: Kernel::Warm,
    },
    Phase {
        names: ["stat, kernel cold, 1", "stat, kernel cold, 8"],
        limit: OF_NULL,
        load: loads::stat,
        kernel: Kernel::Cold,
    },
    Phase {
        names: ["open + read 4 KiB, kernel cold, 1", "open + read 4 KiB, kernel cold, 8"],
        limit: OF_NULL,
        load: loads::open_read,
        kernel: Kernel::Cold,
    },
    Phase {
        names: ["rename, 1", "rename, 8"],
        limit: OF_NULL,
        load: loads::rename,
        kernel: Kernel::AsIs,
    },
    Phase {
        names: ["unlink, 1", "unlink, 8"],
        limit: OF_NULL,
        load: loads::unlink,
        kernel: Kernel::AsIs,
    },
];

/// Who does a phase, where, and how much of it.
#[derive(Clone, Copy)]
struct Turn<'a> {
    at: usize,
    system: System,
    dir: &'a Path,
    workers: u64,
    count: u64,
}

/// Measures small files.
pub fn group(bench: &mut Bench) {
    for workers in [1, 8] {
        for round in 0..bench.arguments.rounds {
            let mut made = vec![bench.arguments.files; bench.systems.len()];
            for (number, phase) in PHASES.iter().enumerate() {
                for (at, made) in made.iter_mut().enumerate() {
                    let dir = bench.systems[at].dir.join(format!("files-{workers}-{round}"));
                    let turn = Turn {
                        at,
                        system: bench.systems[at].system,
                        dir: &dir,
                        workers,
                        count: *made,
                    };
                    if number == 0 {
                        loads::prepare(&dir, workers);
                    }
                    let done = run(bench, phase, turn);
                    // Later phases find what a slow system has made and renamed in its time, and no more.
                    *made = (*made).min(done.by_all);
                }
            }
        }
    }
}

fn run(bench: &mut Bench, phase: &Phase, turn: Turn<'_>) -> Done {
    let Turn {
        at,
        system,
        dir,
        workers,
        count,
    } = turn;
    let budget = Budget { count, time: TIME_MAX };
    let metric = Metric {
        name: phase.names[usize::from(workers > 1)],
        unit: "/s",
        limit: Some(phase.limit),
    };
    bench.settle(system);
    match phase.kernel {
        Kernel::AsIs => {}
        Kernel::Warm => {
            (phase.load)(dir, workers, budget);
        }
        Kernel::Cold => forget_caches(dir),
    }
    let (before, cpu) = (bench.proxy.counts(), bench.cpu(Some(at)));
    let done = (phase.load)(dir, workers, budget);
    bench.table.note(metric, system, done.rate());
    bench.tell_cpu(Some(at), cpu);
    if system == System::Pannier {
        bench.table.note_counts(metric, bench.proxy.counts().since(&before));
    }
    done
}

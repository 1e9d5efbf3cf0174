//! Reads the cgroups of all tasks together. The samples of many tasks are due at the same moments (a grid that all share),
//! and what is due at one moment is read by one thread in one go and answered together: so the plugin wakes up once a second
//! and not once a second for each task.
//!
//! Invariants: the runtime's own threads read nothing; every reading that was asked for is answered, if only with an
//! error; there is at most one asked for by each stream of samples, which bounds the queue.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::cgroup::{Cgroup, Reading};

/// 2 ms in which those whose samples are due at the same moment come together.
const GATHERING: Duration = Duration::from_millis(2);

/// Reads for all tasks of a plugin.
#[derive(Debug)]
pub struct Reader {
    began: Instant,
    queue: Arc<Mutex<Vec<Asked>>>,
}

#[derive(Debug)]
struct Asked {
    cgroup: Arc<Cgroup>,
    answer: oneshot::Sender<io::Result<Reading>>,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            queue: Arc::default(),
        }
    }
}

impl Reader {
    /// Reads a cgroup in the next round.
    ///
    /// # Errors
    /// As `Cgroup::read`.
    pub async fn read(&self, cgroup: &Arc<Cgroup>) -> io::Result<Reading> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked {
            cgroup: Arc::clone(cgroup),
            answer,
        };
        let begins_a_round = {
            let mut queue = lock(&self.queue);
            queue.push(asked);
            queue.len() == 1
        };
        if begins_a_round {
            tokio::spawn(round(Arc::clone(&self.queue)));
        }
        answered
            .await
            .map_err(|_| io::Error::other("the reading was given up"))?
    }

    /// The moment after `now` at which samples of this interval are due: the same for all who have it, and at least half an
    /// interval away.
    #[must_use]
    pub fn next_due(&self, now: Instant, interval: Duration) -> Instant {
        let since = now.saturating_duration_since(self.began).as_nanos();
        let step = interval.as_nanos().max(1);
        let into = since % step;
        let ahead = if into * 2 > step { 2 * step - into } else { step - into };
        now + Duration::from_nanos(u64::try_from(ahead).unwrap_or(u64::MAX))
    }
}

/// Answers all who have come together. It is a task of its own, so that nobody's going away takes the others' answers along.
async fn round(queue: Arc<Mutex<Vec<Asked>>>) {
    tokio::time::sleep(GATHERING).await;
    let all = std::mem::take(&mut *lock(&queue));
    let read = move || -> Vec<_> {
        all.into_iter()
            .map(|asked| (asked.cgroup.read(), asked.answer))
            .collect()
    };
    // Answered only when all were read: each answer would wake a thread that slept again meanwhile.
    let Ok(readings) = tokio::task::spawn_blocking(read).await else {
        return;
    };
    for (reading, answer) in readings {
        // Who went away wants none.
        let _ = answer.send(reading);
    }
}

fn lock(queue: &Mutex<Vec<Asked>>) -> std::sync::MutexGuard<'_, Vec<Asked>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    fn cgroup_that_used(usec: u64) -> (tempfile::TempDir, Arc<Cgroup>) {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("cgroup.controllers"), "cpu").unwrap();
        std::fs::create_dir(root.path().join("c")).unwrap();
        std::fs::write(root.path().join("c/cpu.stat"), format!("usage_usec {usec}\n")).unwrap();
        let cgroup = Arc::new(Cgroup::open(root.path(), "/c").unwrap());
        (root, cgroup)
    }

    /// Goal: nobody gets another's numbers, and who goes away takes nobody's along. Method: fifty ask at once, every fifth of
    /// them is dropped before its answer.
    #[tokio::test(start_paused = true)]
    async fn readings_made_together_go_to_those_who_asked() {
        let reader = Arc::new(Reader::default());
        let worlds: Vec<_> = (0..50).map(cgroup_that_used).collect();
        let tasks: Vec<_> = worlds
            .iter()
            .map(|(_, cgroup)| {
                let (reader, cgroup) = (Arc::clone(&reader), Arc::clone(cgroup));
                tokio::spawn(async move { reader.read(&cgroup).await.unwrap().cpu_ns })
            })
            .collect();
        tokio::task::yield_now().await;
        for task in tasks.iter().step_by(5) {
            task.abort();
        }
        for (n, task) in tasks.into_iter().enumerate() {
            let read = task.await;
            if n % 5 == 0 {
                assert!(read.unwrap_err().is_cancelled());
            } else {
                assert_eq!(read.unwrap(), n as u64 * 1000);
            }
        }
        assert!(lock(&reader.queue).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn samples_of_an_interval_are_due_together() {
        let reader = Reader::default();
        let at = |ms| reader.began + Duration::from_millis(ms);
        let second = Duration::from_secs(1);
        for (now, due) in [
            (0, 1000),
            (1, 1000),
            (500, 1000),
            (501, 2000),
            (999, 2000),
            (1000, 2000),
        ] {
            assert_eq!(reader.next_due(at(now), second), at(due), "{now} ms");
        }
    }
}

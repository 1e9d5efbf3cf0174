//! Who runs: the tasks of this process by id.
//! Invariant: one id is started at most once at a time; a start that fails leaves no trace.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::task::Task;

/// All tasks.
#[derive(Debug, Default)]
pub struct Roster {
    // Never held across an await: every method below returns at once.
    tasks: Mutex<BTreeMap<String, Entry>>,
}

#[derive(Debug)]
enum Entry {
    Starting,
    Known(Arc<Task>),
}

/// The place of a task that is being started. Dropped without `commit`, it is free again.
#[derive(Debug)]
pub struct Reservation {
    roster: Arc<Roster>,
    id: String,
    committed: bool,
}

/// What stands in the way of a start.
#[derive(Debug)]
pub enum Taken {
    /// The same id is being started right now.
    Starting,
    /// The same id was started before.
    Known(Arc<Task>),
}

impl Roster {
    /// Keeps a place for a start.
    ///
    /// # Errors
    /// Who has the place already.
    pub fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation, Taken> {
        let mut tasks = self.lock();
        match tasks.get(id) {
            Some(Entry::Starting) => Err(Taken::Starting),
            Some(Entry::Known(task)) => Err(Taken::Known(Arc::clone(task))),
            None => {
                tasks.insert(id.to_owned(), Entry::Starting);
                Ok(Reservation {
                    roster: Arc::clone(self),
                    id: id.to_owned(),
                    committed: false,
                })
            }
        }
    }

    /// The task of this id, if it was started or recovered.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<Task>> {
        match self.lock().get(id) {
            Some(Entry::Known(task)) => Some(Arc::clone(task)),
            Some(Entry::Starting) | None => None,
        }
    }

    /// Whether the task of this id is known, or being started.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        self.lock().contains_key(id)
    }

    /// Forgets a task. A start in progress keeps its place.
    pub fn remove(&self, id: &str) -> Option<Arc<Task>> {
        let mut tasks = self.lock();
        if !matches!(tasks.get(id), Some(Entry::Known(_))) {
            return None;
        }
        match tasks.remove(id) {
            Some(Entry::Known(task)) => Some(task),
            Some(Entry::Starting) | None => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // A panic elsewhere cannot leave the map half changed: each change is one call.
        self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Reservation {
    /// The task is there.
    pub fn commit(mut self, task: Task) -> Arc<Task> {
        let task = Arc::new(task);
        self.roster
            .lock()
            .insert(self.id.clone(), Entry::Known(Arc::clone(&task)));
        self.committed = true;
        task
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.committed {
            self.roster.lock().remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_the_start_fails() {
        let roster = Arc::new(Roster::default());
        let reservation = roster.reserve("a").unwrap();
        assert!(matches!(roster.reserve("a"), Err(Taken::Starting)));
        assert!(roster.remove("a").is_none(), "a start in progress keeps its place");
        assert!(roster.get("a").is_none());
        drop(reservation);
        assert!(roster.reserve("a").is_ok());
    }
}

//! What was just seen of a tree, so that opening it does not ask for the same again.
//!
//! A manifest never changes once it is there, and whoever goes on from one that is not the newest loses the race for the next
//! number and looks again: so an answer that is some milliseconds old is as good as a new one. Invariant: each answer is
//! given once. Caller: `object_store.rs`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use object_store::ObjectMeta;

use crate::bucket::Object;

/// Answers of a bucket. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Look(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    lists: HashMap<String, Vec<ObjectMeta>>,
    objects: HashMap<String, Object>,
}

impl Look {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what is in a folder.
    pub fn note_list(&self, prefix: String, objects: Vec<ObjectMeta>) {
        self.seen().lists.insert(prefix, objects);
    }

    /// Remembers an object.
    pub fn note_object(&self, key: &str, object: &Object) {
        self.seen().objects.insert(key.to_owned(), object.clone());
    }

    /// What was in a folder.
    pub fn take_list(&self, prefix: &str) -> Option<Vec<ObjectMeta>> {
        self.seen().lists.remove(prefix)
    }

    /// An object as it was.
    pub fn take_object(&self, key: &str) -> Option<Object> {
        self.seen().objects.remove(key)
    }
}

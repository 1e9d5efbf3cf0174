//! How a request gets its reply: run in place if nothing has to wait, as a task otherwise; errors become numbers, and
//! those that are faults of ours or the store's are logged here, once.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Waker};

use futures::FutureExt;
use volume::error::FsError;
use volume::ids::InodeNo;

use super::Skin;
use super::reply::{Refuse, Reply};
use crate::errno::{errno_of, errno_of_sync, is_fault};

impl Skin {
    /// Runs `work` in place as far as it goes without waiting, and the rest of it as a task.
    pub(super) fn run(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut work: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(work);
        let _entered = self.runtime.enter();
        let mut context = Context::from_waker(Waker::noop());
        // A panic must not end the thread that serves the mount: the reply is dropped, which answers EIO.
        match std::panic::catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(&mut context))) {
            Ok(polled) if polled.is_pending() => {
                self.runtime.spawn(work);
            }
            Ok(_) => {}
            Err(_) => tracing::error!("an operation panicked; its caller got EIO"),
        }
    }

    /// Runs `work` and gives what `shape` makes of its result to the reply, or its failure.
    pub(super) fn answer<T, A>(
        &self,
        about: About,
        work: impl Future<Output = Result<T, FsError>> + Send + 'static,
        reply: impl Reply<A>,
        shape: impl FnOnce(T) -> A + Send + 'static,
    ) {
        // Not in a block of its own, which would have room for the work twice.
        self.run(work.map(move |done| match done {
            Ok(value) => reply.give(shape(value)),
            Err(error) => refuse(reply, about, &error),
        }));
    }
}

/// Which request, for the log.
#[derive(Debug, Clone, Copy)]
pub struct About(pub &'static str, pub InodeNo);

/// Replies with an error.
pub fn refuse(reply: impl Refuse, about: About, error: &FsError) {
    let About(operation, ino) = about;
    if is_fault(error) {
        tracing::error!(operation, ino = ino.0, error = ?error, "{operation} failed: {error}");
    }
    match operation {
        "fsync" | "flush" => reply.refuse(errno_of_sync(error)),
        _ => reply.refuse(errno_of(error)),
    }
}

//! Calls that are done once, though they may be asked twice: a program's call that a mount has done and not answered comes
//! again to its successor.
//!
//! The number of a call travels with its work as a value of its task, so that the change that it makes (`mount.rs`) finds it,
//! and is recorded together with it. Callers: the skin (`csi/mount`), which knows the numbers.

use std::cell::Cell;

use crate::tail::OpenCall;

struct Call {
    number: u64,
    open: Cell<Option<OpenCall>>,
}

tokio::task_local! {
    static CALL: Call;
}

/// Keeps what is known of a call until its answer has left. Drop it then.
#[derive(Debug)]
#[must_use = "dropped before the answer has left, a call could be done twice"]
pub struct Unanswered {
    _open: Option<OpenCall>,
}

/// Runs `work` as the call of this number: what it changes is recorded with the number.
pub async fn once<T>(number: u64, work: impl Future<Output = T>) -> (T, Unanswered) {
    let call = Call {
        number,
        open: Cell::new(None),
    };
    let run = async {
        let done = work.await;
        (done, CALL.with(|call| call.open.take()))
    };
    let (done, open) = CALL.scope(call, run).await;
    (done, Unanswered { _open: open })
}

/// The number of the call that runs here.
pub(crate) fn number() -> Option<u64> {
    CALL.try_with(|call| call.number).ok()
}

/// Its answer is in the log, and has not left yet.
pub(crate) fn keep(open: OpenCall) {
    // Who asked for no number keeps nothing.
    let _ = CALL.try_with(|call| call.open.set(Some(open)));
}

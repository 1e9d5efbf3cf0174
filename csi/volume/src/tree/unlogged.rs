//! SlateDB without a log of its own, not even an empty one: our journal is the log, and the head says whose it is.
//!
//! SlateDB's own log would look for its end and put a fence there at each opening, though nothing is ever written to it:
//! some ten requests, one after the other. Invariant: where the log has ended stays as it was found. Caller: `slate.rs`.

use async_trait::async_trait;
use slatedb::RowEntry;
use slatedb::wal::{
    WalError, WalFlushResult, WalIterator, WalObserver, WalRows, WalStatus, WalStatusListener, WalWriter, WriterInit,
    WriterInitResult, WriterManifest,
};

/// Begins a tree that has no log.
pub(super) struct Unlogged;

#[async_trait]
impl WriterInit for Unlogged {
    async fn fence_and_init(&self, manifest: &mut WriterManifest) -> Result<WriterInitResult, WalError> {
        let status = WalStatus {
            closed_reason: Some(WalError::Closed),
            estimated_bytes: 0,
            last_flushed_wal_id: manifest.replay_after_wal_id(),
            last_flushed_seq: None,
            buffered_wal_entries_count: 0,
        };
        Ok(WriterInitResult {
            replay_iterator: Box::new(Nothing),
            wal_writer: Box::new(Closed(status)),
        })
    }
}

/// What is to be replayed of it.
struct Nothing;

#[async_trait]
impl WalIterator for Nothing {
    async fn next(&mut self) -> Result<Option<WalRows>, WalError> {
        Ok(None)
    }
}

/// The log that is never written: SlateDB closes it at once, where its settings say that there is none.
#[derive(Clone)]
struct Closed(WalStatus);

#[async_trait]
impl WalWriter for Closed {
    async fn append(&mut self, _: &[RowEntry]) -> Result<(), WalError> {
        Err(WalError::Closed)
    }

    async fn flush(&mut self) -> Result<WalFlushResult, WalError> {
        Err(WalError::Closed)
    }

    fn observer(&self) -> Box<dyn WalObserver> {
        Box::new(self.clone())
    }

    fn status(&self) -> Result<WalStatus, WalStatus> {
        Err(self.0.clone())
    }

    async fn close(&mut self) -> Result<(), WalError> {
        Ok(())
    }
}

impl WalObserver for Closed {
    fn status(&self) -> Result<WalStatus, WalStatus> {
        Err(self.0.clone())
    }

    fn subscribe(&self, _: WalStatusListener) -> Result<(), WalError> {
        Err(WalError::Closed)
    }
}

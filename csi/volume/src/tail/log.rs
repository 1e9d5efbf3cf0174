//! The tail as it is written: a thread that takes what changed out of the tables, writes it and syncs it, for all who ask at
//! the same time together.
//!
//! Invariant: whoever asked is answered only when everything done before it asked is on the disk or in the bucket, or is
//! told to wait for the bucket. Caller: `ops/sync.rs`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::watch;

use super::file::{Entry, LogFiles, Needs, Refused};
use super::record::Batch;
use super::{TailDir, TailError, TailName};
use crate::ids::Generation;

/// What changed, as the log asks for it.
pub(crate) trait Changes: Send + Sync + 'static {
    /// Everything that changed since the last call and is not in the bucket yet; `None` if nothing did.
    ///
    /// # Errors
    /// The commit to wait for, where a record cannot hold what changed.
    fn take(&self) -> Result<Option<Batch>, Generation>;

    /// The last commit that the bucket has.
    fn durable(&self) -> Generation;
}

/// What was asked of the thread.
#[derive(Debug, Default)]
struct Asked {
    tickets: u64,
    ending: bool,
}

/// What became of it.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    /// Every ticket up to here is answered.
    done: u64,
    /// The last one of them whose changes are not in the log.
    refused: u64,
    /// No more will be.
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    /// Held for moments, and taken under no other lock.
    asked: Mutex<Asked>,
    wake: Condvar,
    told: watch::Sender<Told>,
}

impl Shared {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says that the thread has ended, however it did.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.told.send_modify(|told| told.ended = true);
    }
}

/// The running log of a mount. Dropping it is `abandon`.
#[derive(Debug)]
pub(crate) struct TailLog {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<LogFiles>>>,
    /// Until it is given up.
    dir: Mutex<Option<TailDir>>,
    name: TailName,
}

impl TailLog {
    /// Starts a log that writes `changes` to `files`, which are in `dir`.
    ///
    /// # Errors
    /// `Io` if there is no thread for it.
    pub fn start(
        dir: TailDir,
        (name, files): (TailName, LogFiles),
        changes: Arc<dyn Changes>,
    ) -> Result<Self, TailError> {
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            files,
            changes,
            waits_for: None,
            broken: false,
        };
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("volume-tail".into())
            .spawn(move || serve(&served, writer))
            .map_err(super::io_error("start a thread for", dir.path()))?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
            dir: Mutex::new(Some(dir)),
            name,
        })
    }

    /// Puts everything done before the call into the log. False if the bucket must be waited for instead.
    ///
    /// # Durability
    /// After `true` it is found after a crash of this machine, as long as its disk is.
    pub async fn sync(&self) -> bool {
        let mut told = self.shared.told.subscribe();
        let ticket = {
            let mut asked = self.shared.asked();
            asked.tickets += 1;
            asked.tickets
        };
        self.shared.wake.notify_one();
        let answer = told.wait_for(|told| told.done >= ticket || told.ended).await;
        let answer = *answer.expect("the sender lives in what this handle holds");
        answer.done >= ticket && answer.refused < ticket
    }

    fn end(&self) -> Option<LogFiles> {
        self.shared.asked().ending = true;
        self.shared.wake.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        thread.join().ok()
    }

    /// Ends the log and empties it: the bucket has everything. The folder stays until `remove`.
    ///
    /// # Errors
    /// `Io`; then it still holds what the bucket has as well.
    pub fn finish(&self) -> Result<(), TailError> {
        match self.end() {
            Some(mut files) => files.clear(),
            None => Ok(()),
        }
    }

    /// Removes the files of a tail that the head does not name any more: this one's or an earlier one's.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove(&self, name: TailName) -> Result<(), TailError> {
        match &*self.dir.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(dir) => dir.remove(name),
            None => Ok(()),
        }
    }

    /// Whose tail it is.
    pub fn name(&self) -> TailName {
        self.name
    }

    /// Ends the thread and lets go of the folder, as a crash would.
    pub fn abandon(&self) {
        self.end();
        self.dir.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for TailLog {
    fn drop(&mut self) {
        self.abandon();
    }
}

fn serve(shared: &Arc<Shared>, mut writer: Writer) -> LogFiles {
    let _end = End(Arc::clone(shared));
    let mut done = 0;
    loop {
        let tickets = {
            let mut asked = shared.asked();
            while asked.tickets == done && !asked.ending {
                asked = shared.wake.wait(asked).unwrap_or_else(PoisonError::into_inner);
            }
            if asked.ending {
                return writer.files;
            }
            asked.tickets
        };
        let logged = writer.log();
        done = tickets;
        shared.told.send_modify(|told| {
            told.done = done;
            if !logged {
                told.refused = done;
            }
        });
    }
}

struct Writer {
    files: LogFiles,
    changes: Arc<dyn Changes>,
    /// What was taken and is in no record: nothing is logged before the bucket has this commit.
    waits_for: Option<Generation>,
    /// The disk has failed: the files are made anew before they are trusted again.
    broken: bool,
}

impl Writer {
    /// Logs what changed. False if that is not possible now.
    fn log(&mut self) -> bool {
        let durable = self.changes.durable();
        if self.waits_for.is_some_and(|generation| generation > durable) {
            return false;
        }
        self.waits_for = None;
        if self.broken {
            if let Err(error) = self.files.reset() {
                tracing::debug!(%error, "the log of the volume's tail still fails");
                return false;
            }
            tracing::info!("the log of the volume's tail works again");
            self.broken = false;
        }
        let batch = match self.changes.take() {
            Ok(Some(batch)) => batch,
            Ok(None) => return true,
            Err(generation) => {
                self.waits_for = Some(generation);
                return false;
            }
        };
        let entry = Entry {
            generation: batch.generation,
            prefix: &[],
            record: &batch.record,
        };
        let Err(refused) = self.files.append(&entry, Needs::after(durable)) else {
            return true;
        };
        self.waits_for = Some(batch.generation);
        match refused {
            Refused::Full => tracing::debug!("the log of the volume's tail is full: fsync waits for the bucket"),
            Refused::Disk(error) => {
                tracing::warn!(%error, "the log of the volume's tail fails: fsync waits for the bucket until it works");
                self.broken = true;
            }
        }
        false
    }
}

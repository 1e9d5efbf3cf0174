//! What the store was asked for: requests and bytes per operation.
//!
//! Every HTTP request counts, also one that failed or repeats another, because each one is paid for. Read by the benches
//! and by metrics. The counters are independent: a snapshot taken while requests run may be one request apart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use volume::metrics::{Histogram, HistogramSnapshot};

/// What a request did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `get`, whole or ranged.
    Get,
    /// `head`.
    Head,
    /// `put_if_absent`.
    PutIfAbsent,
    /// `put_if_match`.
    PutIfMatch,
    /// `delete` and `delete_if_match`.
    Delete,
    /// `list`, one page.
    List,
    /// A put without a condition, or of a part: only import and export send them.
    Put,
    /// The beginning and end of an object that is put in parts.
    Upload,
}

impl Operation {
    /// All operations, in the order of the snapshot.
    pub const ALL: [Operation; 8] = [
        Operation::Get,
        Operation::Head,
        Operation::PutIfAbsent,
        Operation::PutIfMatch,
        Operation::Delete,
        Operation::List,
        Operation::Put,
        Operation::Upload,
    ];

    /// A name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::Head => "head",
            Operation::PutIfAbsent => "put_if_absent",
            Operation::PutIfMatch => "put_if_match",
            Operation::Delete => "delete",
            Operation::List => "list",
            Operation::Put => "put",
            Operation::Upload => "upload",
        }
    }
}

#[derive(Debug, Default)]
struct Counter {
    requests: AtomicU64,
    repeats: AtomicU64,
    hedges: AtomicU64,
    hedges_won: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    seconds: Histogram,
}

/// The counters of one store.
#[derive(Debug, Default)]
pub struct Counters {
    operations: [Counter; Operation::ALL.len()],
}

/// The counts of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OperationCount {
    /// HTTP requests sent, repeats included.
    pub requests: u64,
    /// Of these, requests that repeat one that failed.
    pub repeats: u64,
    /// Of these, second requests beside one that was slow.
    pub hedges: u64,
    /// Second requests whose answer came first.
    pub hedges_won: u64,
    /// Bytes of bodies sent.
    pub sent_bytes: u64,
    /// Bytes of bodies received.
    pub received_bytes: u64,
}

/// All counts at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CountersSnapshot {
    operations: [OperationCount; Operation::ALL.len()],
}

impl Counters {
    pub(crate) fn request(&self, operation: Operation, repeat: bool, sent_bytes: u64) {
        let counter = &self.operations[operation as usize];
        counter.requests.fetch_add(1, Ordering::Relaxed);
        counter.repeats.fetch_add(u64::from(repeat), Ordering::Relaxed);
        counter.sent_bytes.fetch_add(sent_bytes, Ordering::Relaxed);
    }

    pub(crate) fn hedge(&self, operation: Operation) {
        self.operations[operation as usize]
            .hedges
            .fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn hedge_won(&self, operation: Operation) {
        self.operations[operation as usize]
            .hedges_won
            .fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, operation: Operation, bytes: u64) {
        self.operations[operation as usize]
            .received_bytes
            .fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn answered(&self, operation: Operation, time: Duration) {
        self.operations[operation as usize].seconds.observe(time);
    }

    /// How long requests of one operation took until their answer began, those that got none included.
    pub fn seconds(&self, operation: Operation) -> HistogramSnapshot {
        self.operations[operation as usize].seconds.snapshot()
    }

    /// All counts now.
    pub fn snapshot(&self) -> CountersSnapshot {
        let mut snapshot = CountersSnapshot::default();
        for (count, counter) in snapshot.operations.iter_mut().zip(&self.operations) {
            *count = OperationCount {
                requests: counter.requests.load(Ordering::Relaxed),
                repeats: counter.repeats.load(Ordering::Relaxed),
                hedges: counter.hedges.load(Ordering::Relaxed),
                hedges_won: counter.hedges_won.load(Ordering::Relaxed),
                sent_bytes: counter.sent_bytes.load(Ordering::Relaxed),
                received_bytes: counter.received_bytes.load(Ordering::Relaxed),
            };
        }
        snapshot
    }
}

impl CountersSnapshot {
    /// The counts of one operation.
    pub fn of(&self, operation: Operation) -> OperationCount {
        self.operations[operation as usize]
    }

    /// All kinds of put together: what S3 bills as PUT.
    pub fn puts(&self) -> u64 {
        let puts = [
            Operation::PutIfAbsent,
            Operation::PutIfMatch,
            Operation::Put,
            Operation::Upload,
        ];
        puts.into_iter().map(|operation| self.of(operation).requests).sum()
    }

    /// What was counted after `earlier` was taken.
    #[must_use]
    pub fn since(&self, earlier: &CountersSnapshot) -> CountersSnapshot {
        let mut difference = *self;
        for (count, before) in difference.operations.iter_mut().zip(&earlier.operations) {
            count.requests -= before.requests;
            count.repeats -= before.repeats;
            count.hedges -= before.hedges;
            count.hedges_won -= before.hedges_won;
            count.sent_bytes -= before.sent_bytes;
            count.received_bytes -= before.received_bytes;
        }
        difference
    }
}

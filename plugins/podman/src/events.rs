//! Task events: what a person sees in the task's history. Every subscriber hears every event from its subscription on.
//! Invariant: a subscription never ends by itself. Nomad opens an ended one again at once, without a pause.

use std::collections::BTreeMap;
use std::time::SystemTime;

use futures::{Stream, StreamExt};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// Where the time comes from: main hands in the system's clock, tests their own.
pub type Clock = fn() -> SystemTime;

/// 1,024 events wait for the slowest subscriber. Beyond it that subscriber loses the oldest; the tasks lose nothing.
const EVENTS_WAITING_MAX: usize = 1024;

/// Whom an event concerns. Nomad routes by allocation and task name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// The run of the task.
    pub task_id: String,
    /// The task's name.
    pub task_name: String,
    /// Its allocation.
    pub alloc_id: String,
}

/// Something that happened to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskEvent {
    /// To whom.
    pub subject: Subject,
    /// When.
    pub at: SystemTime,
    /// What, in a sentence.
    pub message: String,
    /// Details.
    pub annotations: BTreeMap<String, String>,
}

/// The sender of all events of this process.
#[derive(Debug)]
pub struct Events {
    sender: broadcast::Sender<TaskEvent>,
    clock: Clock,
}

impl Events {
    /// An empty hall: events that nobody listens to are dropped.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            sender: broadcast::channel(EVENTS_WAITING_MAX).0,
            clock,
        }
    }

    /// Tells all subscribers.
    pub fn emit(&self, subject: &Subject, message: impl Into<String>) {
        let message = message.into();
        tracing::debug!(task = subject.task_id, message, "task event");
        let (subject, at, annotations) = (subject.clone(), (self.clock)(), BTreeMap::new());
        // No subscriber is no mistake: Nomad may just be reconnecting.
        let _ = self.sender.send(TaskEvent {
            subject,
            at,
            message,
            annotations,
        });
    }

    /// Whether an agent is connected: it listens for as long as it is.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Everything from now on. Never ends: even when the sender is gone it stays pending.
    pub fn subscribe(&self) -> impl Stream<Item = TaskEvent> + Send + use<> {
        let events = BroadcastStream::new(self.sender.subscribe());
        events
            .filter_map(|event| async { event.ok() })
            .chain(futures::stream::pending())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn subject() -> Subject {
        Subject {
            task_id: "a/web/1".into(),
            task_name: "web".into(),
            alloc_id: "a".into(),
        }
    }

    #[tokio::test]
    async fn every_subscriber_hears_every_event() {
        let events = Events::new(|| SystemTime::UNIX_EPOCH);
        events.emit(&subject(), "nobody listens yet");
        let mut one = Box::pin(events.subscribe());
        let mut two = Box::pin(events.subscribe());
        events.emit(&subject(), "hello");
        assert_eq!(one.next().await.unwrap().message, "hello");
        assert_eq!(two.next().await.unwrap().message, "hello");
    }

    /// Trap 5: a TaskEvents stream that ends is opened again at once, for ever.
    #[tokio::test]
    async fn a_subscription_never_ends() {
        let events = Events::new(|| SystemTime::UNIX_EPOCH);
        let mut stream = Box::pin(events.subscribe());
        for round in 0..EVENTS_WAITING_MAX * 2 {
            events.emit(&subject(), round.to_string());
        }
        assert!(
            stream.next().await.is_some(),
            "a subscriber that lags goes on with what is left"
        );
        drop(events);
        let rest = async { while stream.next().await.is_some() {} };
        assert!(
            tokio::time::timeout(Duration::from_millis(200), rest).await.is_err(),
            "the stream has ended"
        );
    }
}

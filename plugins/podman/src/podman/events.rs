//! `events`: what happens to containers, as it happens.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BytesMut};
use futures::stream;
use serde::Deserialize;

use super::client::Client;
use super::containers::label_filter;
use super::socket::{Call, StreamedAnswer, percent_encoded};
use super::{ContainerEvent, EventFilter, EventStream, PodmanError};

/// 1 MiB: a line longer than this is no event.
const EVENT_BYTES_MAX: usize = 1 << 20;

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireEvent {
    #[serde(rename = "Action")]
    action: Option<String>,
    status: Option<String>,
    id: Option<String>,
    #[serde(rename = "Actor")]
    actor: Option<WireActor>,
    time: Option<i64>,
    #[serde(rename = "timeNano")]
    time_nano: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireActor {
    #[serde(rename = "ID")]
    id: Option<String>,
    #[serde(rename = "Attributes")]
    attributes: Option<BTreeMap<String, String>>,
}

struct Following {
    client_call: Call,
    answer: StreamedAnswer,
    unread: BytesMut,
    ready: VecDeque<ContainerEvent>,
}

pub(super) async fn follow(client: &Client, filter: &EventFilter) -> Result<EventStream, PodmanError> {
    let mut filters = serde_json::json!({ "type": ["container"] });
    if !filter.statuses.is_empty() {
        filters["event"] = serde_json::json!(filter.statuses);
    }
    if !filter.labels.is_empty() {
        let labels: Vec<String> = filter
            .labels
            .iter()
            .map(|(key, value)| label_filter(key, value))
            .collect();
        filters["label"] = serde_json::json!(labels);
    }
    let since = filter
        .since
        .map(|seconds| format!("&since={seconds}"))
        .unwrap_or_default();
    let endpoint = format!(
        "events?stream=true&filters={}{since}",
        percent_encoded(&filters.to_string())
    );
    let call = Call::get(client.target(&endpoint).await?).limit(None);
    let answer = client.socket.stream(&call).await?.success().await?;
    let following = Following {
        client_call: call,
        answer,
        unread: BytesMut::new(),
        ready: VecDeque::new(),
    };
    Ok(Box::pin(stream::try_unfold(following, |mut following| async move {
        Ok(following.next().await?.map(|event| (event, following)))
    })))
}

impl Following {
    async fn next(&mut self) -> Result<Option<ContainerEvent>, PodmanError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let Some(piece) = self.answer.next().await? else {
                return Ok(None);
            };
            self.unread.extend_from_slice(&piece);
            self.take_lines()?;
        }
    }

    fn take_lines(&mut self) -> Result<(), PodmanError> {
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line = self.unread.split_to(end);
            self.unread.advance(1);
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let wire: WireEvent =
                serde_json::from_slice(&line).map_err(|error| self.client_call.protocol(error.to_string()))?;
            self.ready.extend(wire.into_event());
        }
        if self.unread.len() > EVENT_BYTES_MAX {
            return Err(self
                .client_call
                .protocol(format!("an event is longer than {EVENT_BYTES_MAX} bytes")));
        }
        Ok(())
    }
}

impl WireEvent {
    fn into_event(self) -> Option<ContainerEvent> {
        let actor = self.actor.unwrap_or_default();
        Some(ContainerEvent {
            id: actor.id.or(self.id)?,
            status: self.action.or(self.status)?,
            time_nanos: self
                .time_nano
                .or(self.time.map(|seconds| seconds * 1_000_000_000))
                .unwrap_or(0),
            attributes: actor.attributes.unwrap_or_default(),
        })
    }
}

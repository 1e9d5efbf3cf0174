//! A plugin's standard error, read as HashiCorp's host reads it: hclog's JSON where a line is that, raw text where not.
//! Bounded: a line is read in pieces of 64 KiB, and only the end of the text is kept for an explanation.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::{Map, Value};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::ChildStderr,
};
use tracing::Level;

use super::LogReader;

/// 64 KiB: a longer line comes in raw pieces, as in HashiCorp's host.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// 16 KiB of the last text are kept, to explain a plugin that does not come up.
const TAIL_BYTES_MAX: usize = 16 * 1024;

/// A line of a plugin's log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    /// How grave; DEBUG for a line that does not say.
    pub level: Level,
    /// What it says.
    pub message: String,
    /// Who says it.
    pub module: Option<String>,
    /// When, as the plugin wrote it.
    pub timestamp: Option<String>,
    /// More, by name.
    pub fields: Map<String, Value>,
}

impl LogLine {
    /// Reads one line, without its newline.
    pub fn parse(line: &str) -> Self {
        Self::parse_json(line).unwrap_or_else(|| {
            let prefixes = [
                ("[TRACE]", Level::TRACE),
                ("[DEBUG]", Level::DEBUG),
                ("[INFO]", Level::INFO),
                ("[WARN]", Level::WARN),
                ("[ERROR]", Level::ERROR),
                ("panic: ", Level::ERROR),
                ("fatal error: ", Level::ERROR),
            ];
            let level = prefixes
                .iter()
                .find(|(prefix, _)| line.starts_with(prefix))
                .map_or(Level::DEBUG, |(_, level)| *level);
            Self::raw(level, line.to_owned())
        })
    }

    /// A warning of this host itself.
    pub(super) fn warning(message: String) -> Self {
        Self::raw(Level::WARN, message)
    }

    fn raw(level: Level, message: String) -> Self {
        Self {
            level,
            message,
            module: None,
            timestamp: None,
            fields: Map::new(),
        }
    }

    fn parse_json(line: &str) -> Option<Self> {
        let mut fields: Map<String, Value> = serde_json::from_str(line).ok()?;
        let mut take = |key: &str| match fields.remove(key) {
            Some(Value::String(text)) => Some(text),
            // HashiCorp's host panics here; ours keeps the line readable.
            Some(other) => Some(other.to_string()),
            None => None,
        };
        let level = match take("@level")?.as_str() {
            "trace" => Level::TRACE,
            "info" => Level::INFO,
            "warn" => Level::WARN,
            "error" => Level::ERROR,
            _ => Level::DEBUG,
        };
        let (message, module, timestamp) = (take("@message")?, take("@module"), take("@timestamp"));
        Some(Self {
            level,
            message,
            module,
            timestamp,
            fields,
        })
    }
}

/// The last text of a stream.
#[derive(Debug, Default)]
pub(super) struct Tail(VecDeque<u8>);

impl Tail {
    /// The text, without a first character that was cut.
    pub(super) fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    }

    fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let excess = self.0.len().saturating_sub(TAIL_BYTES_MAX);
        self.0.drain(..excess);
    }
}

/// Reads `stderr` to its end, giving each line to `log` and the last text to `tail`.
pub(super) async fn read(stderr: ChildStderr, log: LogReader, tail: Arc<Mutex<Tail>>) {
    let mut reader = BufReader::with_capacity(LINE_BYTES_MAX, stderr);
    let mut line = Vec::new();
    // Whether the line before was cut and this is the rest of it.
    let mut continued = false;
    loop {
        let Ok(bytes) = reader.fill_buf().await else { return };
        if bytes.is_empty() {
            if !line.is_empty() {
                log(LogLine::parse(&String::from_utf8_lossy(&line)));
            }
            return;
        }
        let room = LINE_BYTES_MAX - line.len();
        let newline = bytes.iter().take(room).position(|byte| *byte == b'\n');
        let taken = newline.map_or(bytes.len().min(room), |at| at + 1);
        tail.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(&bytes[..taken]);
        line.extend_from_slice(&bytes[..taken]);
        reader.consume(taken);

        let whole = newline.is_some();
        if !whole && line.len() < LINE_BYTES_MAX {
            continue;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches('\n');
        if whole && !continued {
            log(LogLine::parse(text));
        } else if !text.is_empty() {
            log(LogLine::raw(Level::DEBUG, text.to_owned()));
        }
        continued = !whole;
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hclogs_json_is_taken_apart() {
        let line = r#"{"@level":"warn","@message":"slow","@module":"demo.disk","@timestamp":"2026-01-02T03:04:05.000006Z","ms":7}"#;
        let line = LogLine::parse(line);
        assert_eq!((line.level, line.message.as_str()), (Level::WARN, "slow"));
        assert_eq!(line.module.as_deref(), Some("demo.disk"));
        assert_eq!(line.fields["ms"], 7);
    }

    #[test]
    fn other_text_is_kept_as_it_is() {
        for (text, level) in [
            ("[ERROR] no disk", Level::ERROR),
            ("panic: no disk", Level::ERROR),
            ("no disk", Level::DEBUG),
            (r#"{"json": "but not hclog's"}"#, Level::DEBUG),
        ] {
            let line = LogLine::parse(text);
            assert_eq!((line.level, line.message.as_str()), (level, text));
        }
    }

    #[test]
    fn a_message_that_is_no_string_does_not_end_the_host() {
        assert_eq!(LogLine::parse(r#"{"@level":"info","@message":7}"#).message, "7");
    }

    #[test]
    fn only_the_end_of_a_long_text_is_kept() {
        let mut tail = Tail::default();
        tail.push(&[b'a'; TAIL_BYTES_MAX]);
        tail.push(b"the end\n");
        let text = tail.text();
        assert!(text.len() < TAIL_BYTES_MAX && text.ends_with("the end"));
    }
}

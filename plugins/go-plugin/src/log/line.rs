//! One log line in hclog's format. Pure. `log.rs` calls it; the bounds below are its promise to the host.

use serde_json::{Map, Value};

/// 60 KiB: the host's reader takes lines of less than 64 KiB; a longer one reaches its log as raw pieces.
pub(super) const LINE_BYTES_MAX: usize = 60 * 1024;

/// 8 KiB: longer messages are cut. JSON may spend six bytes on one of them.
const MESSAGE_BYTES_MAX: usize = 8 * 1024;

/// 4 KiB: longer text in a field is cut, so that one of them does not push out the others.
const FIELD_BYTES_MAX: usize = 4 * 1024;

/// 256 bytes: names of modules and keys are ours and short; this holds if one is not.
const NAME_BYTES_MAX: usize = 256;

/// What is left beside the message: braces, level, time, module, and the note of omitted fields.
const FRAME_BYTES_MAX: usize = 4 * 1024;

const _: () = assert!(6 * (MESSAGE_BYTES_MAX + NAME_BYTES_MAX) + FRAME_BYTES_MAX <= LINE_BYTES_MAX);

/// What a line says.
pub(super) struct Record<'a> {
    /// trace, debug, info, warn or error.
    pub(super) level: &'a str,
    /// Who says it.
    pub(super) module: &'a str,
    /// What.
    pub(super) message: &'a str,
    /// When, with six digits of a second.
    pub(super) timestamp: &'a str,
    /// More, by name.
    pub(super) fields: Map<String, Value>,
}

/// The line with its newline, at most [`LINE_BYTES_MAX`] long: long texts are cut, fields that do not fit are counted.
pub(super) fn format(record: &Record<'_>) -> Vec<u8> {
    let mut line = String::from("{");
    let fixed = [
        ("@level", record.level),
        ("@message", cut(record.message, MESSAGE_BYTES_MAX)),
        ("@module", cut(record.module, NAME_BYTES_MAX)),
        ("@timestamp", record.timestamp),
    ];
    for (index, (key, text)) in fixed.into_iter().enumerate() {
        if index > 0 {
            line.push(',');
        }
        line.push_str(&pair(key, &Value::from(text)));
    }
    let mut omitted = 0_u32;
    for (key, value) in &record.fields {
        // The host takes keys with an @ for its own.
        let key = cut(key.trim_start_matches('@'), NAME_BYTES_MAX);
        let pair = match value {
            Value::String(text) => pair(key, &Value::from(cut(text, FIELD_BYTES_MAX))),
            other => pair(key, other),
        };
        if line.len() + pair.len() + FRAME_BYTES_MAX > LINE_BYTES_MAX {
            omitted += 1;
            continue;
        }
        line.push(',');
        line.push_str(&pair);
    }
    if omitted > 0 {
        line.push(',');
        line.push_str(&pair("omitted_fields", &Value::from(omitted)));
    }
    line.push_str("}\n");
    assert!(line.len() <= LINE_BYTES_MAX, "a log line of {} bytes", line.len());
    line.into_bytes()
}

/// `"key":value`.
fn pair(key: &str, value: &Value) -> String {
    format!("{}:{value}", Value::from(key))
}

/// The longest start of `text` that is whole characters and at most `bytes_max` long.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

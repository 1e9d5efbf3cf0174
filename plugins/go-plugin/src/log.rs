//! A plugin's log: hclog's JSON, one object a line, on the standard error that the host reads.
//! What may never happen here: a line whose `@message`, `@level` or `@timestamp` is not a string, for the host's reader
//! panics on it and takes the agent down; a line of 64 KiB or more, for the host cuts it into raw pieces; a write that
//! blocks the plugin because the host does not read. Absent: a choice of level; the host filters by its own.

mod line;
mod sink;

use std::{fmt, panic};

use serde_json::{Map, Value, json};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};
use tracing_subscriber::{
    Layer, filter::Targets, fmt::time::FormatTime, layer::Context, layer::SubscriberExt, registry::LookupSpan,
    util::SubscriberInitExt,
};

use line::Record;
pub(crate) use sink::Sink;

/// Makes `sink` this process's log: everything that is traced, and every panic, goes there. Called once, early in `run`.
pub(crate) fn install(plugin: &'static str, sink: &Sink) {
    // The transport's own debug lines are a line for each frame; they would drown a plugin's.
    let filter = Targets::new()
        .with_default(LevelFilter::DEBUG)
        .with_targets(["h2", "hyper", "hyper_util", "tonic", "tower"].map(|target| (target, LevelFilter::WARN)));
    let layer = HclogLayer {
        plugin,
        sink: sink.clone(),
    };
    // A second call, as a test in the same process may make, keeps the first log.
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init();

    let sink = sink.clone();
    panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or("panic without a message");
        let mut fields = Map::new();
        if let Some(location) = panic.location() {
            fields.insert("location".into(), json!(location.to_string()));
        }
        let thread = std::thread::current();
        fields.insert("thread".into(), json!(thread.name().unwrap_or("unnamed")));
        let message = format!("panicked: {message}");
        sink.write(line::format(&Record {
            level: "error",
            module: plugin,
            message: &message,
            timestamp: &now(),
            fields,
        }));
        sink.flush();
    }));
}

/// The layer between `tracing` and the sink.
struct HclogLayer {
    plugin: &'static str,
    sink: Sink,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for HclogLayer {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        // From the root inwards, so that the innermost value of a name wins.
        for span in context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields.values.extend(outer.values.clone());
            }
        }
        event.record(&mut fields);
        let metadata = event.metadata();
        self.sink.write(line::format(&Record {
            level: level_name(*metadata.level()),
            module: &format!("{}.{}", self.plugin, metadata.target().replace("::", ".")),
            message: &fields.message,
            timestamp: &now(),
            fields: fields.values,
        }));
    }
}

/// hclog's word for a level.
fn level_name(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::TRACE => "trace",
        tracing::Level::DEBUG => "debug",
        tracing::Level::INFO => "info",
        tracing::Level::WARN => "warn",
        tracing::Level::ERROR => "error",
    }
}

/// The wall clock as hclog prints it: RFC 3339 with exactly six digits of a second, in UTC.
fn now() -> String {
    let mut text = String::new();
    let mut writer = tracing_subscriber::fmt::format::Writer::new(&mut text);
    // Writing into a String does not fail.
    let _ = tracing_subscriber::fmt::time::SystemTime.format_time(&mut writer);
    text
}

/// The fields of a span or an event, the message apart.
#[derive(Default)]
struct Fields {
    message: String,
    values: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", other) => self.message = other.to_string(),
            (name, value) => {
                self.values.insert(name.to_owned(), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, json!(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, json!(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, json!(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        self.put(field, json!(text));
    }
}

#[cfg(test)]
mod tests;

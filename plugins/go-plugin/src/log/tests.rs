//! The log as a host reads it.

use std::{
    fs::File,
    io::{BufRead, BufReader, PipeReader},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
};

use super::*;

fn sink_and_reader() -> (Sink, BufReader<PipeReader>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let sink = Sink::start("demo", File::from(OwnedFd::from(writer)), "/nonexistent".into()).unwrap();
    (sink, BufReader::new(reader))
}

fn next_line(reader: &mut BufReader<PipeReader>) -> Map<String, Value> {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.len() < 64 * 1024, "a line of {} bytes", line.len());
    serde_json::from_str(&line).unwrap()
}

/// Goal: a host never panics on a line. Method: everything `tracing` can carry, read back as the host reads it.
#[test]
fn an_event_is_one_json_object_with_hclogs_keys_as_strings() {
    let (sink, mut reader) = sink_and_reader();
    let subscriber = tracing_subscriber::registry().with(HclogLayer { plugin: "demo", sink });
    tracing::subscriber::with_default(subscriber, || {
        let span = tracing::info_span!("task", task_id = "t1", attempt = 1);
        let _inside = span.enter();
        let error = std::io::Error::other("disk");
        tracing::warn!(
            attempt = 2,
            flag = true,
            ratio = 0.5,
            error = &error as &dyn std::error::Error,
            "line\nbreak"
        );
        tracing::error!(message = 7);
    });

    let first = next_line(&mut reader);
    assert_eq!(first["@level"], "warn");
    assert_eq!(first["@message"], "line\nbreak");
    assert_eq!(first["@module"], "demo.go_plugin.log.tests");
    assert_eq!(first["task_id"], "t1");
    assert_eq!(first["attempt"], 2, "the event's own value wins over its span's");
    assert_eq!(first["flag"], true);
    assert_eq!(first["ratio"], 0.5);
    assert_eq!(first["error"], "disk");
    let timestamp = first["@timestamp"].as_str().unwrap();
    assert_eq!(timestamp.len(), "2006-01-02T15:04:05.000000Z".len(), "{timestamp}");
    assert!(
        timestamp.ends_with('Z') && timestamp.as_bytes()[19] == b'.',
        "{timestamp}"
    );

    assert_eq!(
        next_line(&mut reader)["@message"],
        "7",
        "a number for a message is still a string on the wire"
    );
}

#[test]
fn a_long_line_is_cut_below_the_hosts_limit_and_stays_json() {
    let (sink, mut reader) = sink_and_reader();
    // \u{1} takes six bytes in JSON, the worst case.
    let long = "\u{1}".repeat(1_000_000);
    let fields = (0..100).map(|n| (format!("field{n:03}"), json!(long))).collect();
    let record = Record {
        level: "info",
        module: &long,
        message: &long,
        timestamp: &now(),
        fields,
    };
    sink.write(line::format(&record));
    let line = next_line(&mut reader);
    assert!(line["@message"].as_str().unwrap().len() > 1000);
    assert!(
        line["omitted_fields"].as_u64().unwrap() > 50,
        "what was left out is counted"
    );

    let wide = "ä".repeat(100_000);
    let record = Record {
        level: "info",
        module: "m",
        message: &wide,
        timestamp: &now(),
        fields: Map::new(),
    };
    sink.write(line::format(&record));
    assert!(
        next_line(&mut reader)["@message"]
            .as_str()
            .unwrap()
            .chars()
            .all(|letter| letter == 'ä')
    );
}

#[test]
fn a_field_with_the_hosts_prefix_cannot_stand_for_the_hosts_own() {
    let fields = Map::from_iter([("@message".to_owned(), json!(1))]);
    let line = line::format(&Record {
        level: "info",
        module: "m",
        message: "text",
        timestamp: &now(),
        fields,
    });
    let line: Map<String, Value> = serde_json::from_slice(&line).unwrap();
    assert_eq!(line["@message"], "text");
    assert_eq!(line["message"], 1);
}

/// Goal: a host that is stopped does not stop the plugin. Method: nobody reads, far more is written than pipe and
/// queue hold; then somebody reads.
#[test]
fn a_host_that_does_not_read_loses_lines_and_never_blocks_the_plugin() {
    let (sink, mut reader) = sink_and_reader();
    let message = "x".repeat(8000);
    let record = || Record {
        level: "info",
        module: "m",
        message: &message,
        timestamp: "t",
        fields: Map::new(),
    };
    for _ in 0..4000 {
        sink.write(line::format(&record()));
    }
    let lost = loop {
        // A line that comes after the loss makes the writer tell of it.
        let line = next_line(&mut reader);
        if let Some(lost) = line.get("lost") {
            break lost.as_u64().unwrap();
        }
    };
    assert!((1000..4000).contains(&lost), "{lost}");
}

#[test]
fn a_broken_pipe_sends_lines_to_syslog() {
    let folder = tempfile::tempdir().unwrap();
    let syslog = UnixDatagram::bind(folder.path().join("log")).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let sink = Sink::start("demo", File::from(OwnedFd::from(writer)), folder.path().join("log")).unwrap();
    drop(reader);
    let record = Record {
        level: "info",
        module: "m",
        message: "after",
        timestamp: "t",
        fields: Map::new(),
    };
    sink.write(line::format(&record));
    syslog
        .set_read_timeout(Some(std::time::Duration::from_secs(10)))
        .unwrap();
    let mut buffer = [0; 1000];
    let length = syslog.recv(&mut buffer).unwrap();
    let datagram = str::from_utf8(&buffer[..length]).unwrap();
    assert!(
        datagram.starts_with("<30>demo: {") && datagram.contains("after"),
        "{datagram}"
    );
}

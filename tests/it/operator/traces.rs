//! Traces, as a collector receives them: a double that decodes what is sent, and one that is not there.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Kind;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::json;

use crate::live;
use crate::support::PATIENCE;
use crate::support::server::{Server, until, vecmemo};

/// A batch, with the headers it came with.
struct Batch {
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Collector {
    address: SocketAddr,
    batches: Receiver<Batch>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, batches) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let sender = sender.clone();
                std::thread::spawn(move || serve(stream, &sender));
            }
        });
        Self { address, batches }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Receives until there are so many spans.
    fn spans(&self, count: usize) -> Vec<Span> {
        let mut spans = Vec::new();
        while spans.len() < count {
            let batch = self.batches.recv_timeout(PATIENCE).expect("a batch comes");
            spans.extend(spans_of(&batch));
        }
        spans
    }
}

fn spans_of(batch: &Batch) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(batch.body.as_slice()).unwrap();
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).collect()
}

/// Takes batches from one connection until the client closes it, or the test has ended.
fn serve(stream: TcpStream, batches: &Sender<Batch>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let path = line.split(' ').nth(1)?.to_owned();
        let mut headers = BTreeMap::new();
        loop {
            line.clear();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
        reader.read_exact(&mut body).ok()?;
        batches.send(Batch { path, headers, body }).ok()?;
        writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
    }
}

fn value(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Kind::StringValue(text)) => text.clone(),
        Some(Kind::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

/// The program, with spans sent at once.
fn quick(folder: &Path) -> Command {
    let mut command = vecmemo(folder);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command.env("OTEL_BSP_SCHEDULE_DELAY", "20");
    command
}

const SETTINGS: [&str; 4] = ["--data-dir", "data", "--capacity-entries", "4096"];
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_request_is_a_span_in_its_clients_trace_with_its_stages_below() {
    let (folder, collector) = (tempfile::tempdir().unwrap(), Collector::start());
    let url = collector.url();
    let server = Server::with(quick(folder.path()), &[&SETTINGS[..], &["--otlp-endpoint", &url]].concat());
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let body = json!({ "inputs": ["a secret text", "another"] }).to_string();
    let headers = [("content-type", "application/json"), ("traceparent", &parent), ("x-request-id", "job-7")];
    assert_eq!(server.client().send("/embed", &headers, &body).unwrap().0, 200);

    let batch = collector.batches.recv_timeout(PATIENCE).unwrap();
    assert_eq!((batch.path.as_str(), batch.headers["content-type"].as_str()), ("/v1/traces", "application/x-protobuf"));
    assert!(!batch.body.windows(6).any(|bytes| bytes == b"secret"), "a text is in the trace");
    let request = ExportTraceServiceRequest::decode(batch.body.as_slice()).unwrap();
    let resource = request.resource_spans[0].resource.clone().unwrap().attributes;
    assert_eq!(value(&resource, "service.name"), "vecmemo");
    assert_eq!(value(&resource, "service.version"), env!("CARGO_PKG_VERSION"));

    let mut spans = spans_of(&batch);
    while !spans.iter().any(|span| span.name == "POST /embed") {
        spans.extend(collector.spans(1));
    }
    let (stages, whole): (Vec<Span>, Vec<Span>) = spans.into_iter().partition(|span| span.kind == 1);
    let [whole] = whole.as_slice() else { panic!("{whole:?}") };
    assert_eq!((hex(&whole.trace_id), hex(&whole.parent_span_id), whole.kind), (TRACE.into(), PARENT.into(), 2));
    for (name, expected) in [
        ("http.request.method", "POST"),
        ("http.route", "/embed"),
        ("http.response.status_code", "200"),
        ("vecmemo.request_id", "job-7"),
        ("gen_ai.operation.name", "embeddings"),
        ("gen_ai.request.model", "tiny-mean"),
        ("vecmemo.items", "2"),
        ("vecmemo.computed", "2"),
        ("vecmemo.hits", "0"),
    ] {
        assert_eq!(value(&whole.attributes, name), expected, "{name}");
    }
    assert!(value(&whole.attributes, "gen_ai.usage.input_tokens").parse::<u32>().unwrap() > 4);
    assert!(value(&whole.attributes, "gen_ai.embeddings.dimension.count").parse::<u32>().unwrap() > 1);
    let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
    for name in ["key", "store", "tokenize", "queue", "inference", "write"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    for stage in &stages {
        assert_eq!((&stage.trace_id, &stage.parent_span_id), (&whole.trace_id, &whole.span_id));
        assert!(whole.start_time_unix_nano <= stage.start_time_unix_nano);
        assert!(
            stage.start_time_unix_nano <= stage.end_time_unix_nano
                && stage.end_time_unix_nano <= whole.end_time_unix_nano
        );
    }

    // A hit, in a trace of its own; probes are none.
    server.get("/ready");
    server.post("/v1/embeddings", &json!({ "input": "another", "model": "tiny-mean" }));
    let hit = collector.spans(3);
    let whole = hit.iter().find(|span| span.kind == 2).unwrap();
    assert!(whole.parent_span_id.is_empty() && hex(&whole.trace_id) != TRACE);
    assert_eq!((whole.name.as_str(), value(&whole.attributes, "vecmemo.hits").as_str()), ("POST /v1/embeddings", "1"));
}

#[test]
fn time_spent_on_other_machines_is_a_stage() {
    if !live::available() {
        return;
    }
    let (folder, collector, redis) = (tempfile::tempdir().unwrap(), Collector::start(), live::Server::start(&[]));
    let (endpoint, tier) = (collector.url(), redis.url());
    let settings = ["--otlp-endpoint", &endpoint, "--remote-url", &tier, "--remote-deadline-ms", "500"];
    let server = Server::with(quick(folder.path()), &[&SETTINGS[..], &settings].concat());
    until("the tier", || server.metric("vecmemo_remote_ready") == 1.0);
    server.post("/embed", &json!({ "inputs": "a text" }));
    let spans = collector.spans(8);
    assert!(spans.iter().any(|span| span.name == "remote" && span.kind == 1), "{spans:?}");
}

#[test]
fn a_refusal_is_marked_by_its_status_and_is_the_clients() {
    let (folder, collector) = (tempfile::tempdir().unwrap(), Collector::start());
    let server = Server::with(quick(folder.path()), &[&SETTINGS[..], &["--otlp-endpoint", &collector.url()]].concat());
    assert_eq!(server.post("/embed", &json!({ "inputs": [] })).0, 400);
    let [span]: [Span; 1] = collector.spans(1).try_into().unwrap();
    assert_eq!(value(&span.attributes, "error.type"), "400");
    assert_eq!(span.status.unwrap_or_default().code, 0);
}

#[test]
fn of_what_is_not_sampled_only_that_is_traced_which_the_client_wants_traced() {
    let (folder, collector) = (tempfile::tempdir().unwrap(), Collector::start());
    let settings = ["--otlp-endpoint", &collector.url(), "--otlp-sampling-ratio", "0"];
    let mut server = Server::with(quick(folder.path()), &[&SETTINGS[..], &settings].concat());
    for _ in 0..20 {
        server.post("/embed", &json!({ "inputs": "a" }));
    }
    let sampled = format!("00-{TRACE}-{PARENT}-01");
    let headers = [("content-type", "application/json"), ("traceparent", sampled.as_str())];
    server.client().send("/embed", &headers, r#"{"inputs": "a"}"#).unwrap();
    assert!(server.stop().success());
    let mut spans = Vec::new();
    while let Ok(batch) = collector.batches.try_recv() {
        spans.extend(spans_of(&batch));
    }
    let wholes: Vec<&Span> = spans.iter().filter(|span| span.kind == 2).collect();
    assert!(matches!(wholes.as_slice(), [one] if hex(&one.trace_id) == TRACE), "{} spans", wholes.len());
}

#[test]
fn opentelemetrys_own_variables_are_enough() {
    let (folder, collector) = (tempfile::tempdir().unwrap(), Collector::start());
    let mut command = quick(folder.path());
    command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=seven")
        .env("OTEL_SERVICE_NAME", "embeddings-eu");
    let server = Server::with(command, &SETTINGS);
    server.post("/embed", &json!({ "inputs": "a" }));
    let batch = collector.batches.recv_timeout(PATIENCE).unwrap();
    assert_eq!((batch.path.as_str(), batch.headers["x-tenant"].as_str()), ("/v1/traces", "seven"));
    let request = ExportTraceServiceRequest::decode(batch.body.as_slice()).unwrap();
    let resource = request.resource_spans[0].resource.clone().unwrap().attributes;
    assert_eq!(value(&resource, "service.name"), "embeddings-eu");
}

#[test]
fn nothing_is_sent_unless_it_is_asked_for() {
    let (folder, collector) = (tempfile::tempdir().unwrap(), Collector::start());
    let mut command = quick(folder.path());
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()).env("OTEL_SDK_DISABLED", "true");
    let mut server = Server::with(command, &SETTINGS);
    server.post("/embed", &json!({ "inputs": "a" }));
    assert!(server.stop().success());
    assert!(matches!(collector.batches.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout)));
}

#[test]
fn a_collector_that_is_away_or_silent_costs_no_request_anything() {
    let folder = tempfile::tempdir().unwrap();
    // Connections are taken by the system and never answered.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (address, says) in [(gone, true), (silent.local_addr().unwrap(), false)] {
        let mut command = quick(folder.path());
        command.env("OTEL_BSP_MAX_QUEUE_SIZE", "16").env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4");
        let endpoint = format!("http://{address}");
        let mut server = Server::with(command, &[&SETTINGS[..], &["--otlp-endpoint", &endpoint]].concat());
        for _ in 0..200 {
            assert_eq!(server.post("/embed", &json!({ "inputs": "a text" })).0, 200);
        }
        if says {
            until("it is said", || server.log().contains("the collector does not take traces"));
        }
        let stopping = Instant::now();
        assert!(server.stop().success());
        // The collector has ten seconds for each batch: nobody waits for those.
        assert!(stopping.elapsed() < Duration::from_secs(9), "{:?}", stopping.elapsed());
        assert!(server.log().matches("the collector does not take traces").count() <= 1, "{}", server.log());
    }
}

//! How close is a hit over HTTP to a bare handler that parses the same body and answers a ready vector by the same
//! encoder, and to one that answers nothing?
//!
//! Client and servers share the machine and speak over loopback with kept connections. `one` is a single connection
//! (latency), `many` is 16 of them (throughput of both sides together: compare within a run only).

#![allow(missing_docs)]

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use half::f16;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use vecmemo::batch::{self, Embedder};
use vecmemo::cache::Cache;
use vecmemo::engine::fake;
use vecmemo::http::{self, encode};
use vecmemo::store::{self, Store};

const DIMS: usize = 384;
const CONNECTIONS: usize = 16;

#[derive(Deserialize)]
struct Inputs<'a> {
    #[serde(borrow)]
    inputs: Vec<Text<'a>>,
}

#[derive(Deserialize)]
struct OpenAiInputs<'a> {
    #[serde(borrow)]
    input: Vec<Text<'a>>,
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// One ready vector, handed out for every text.
type Ready = Arc<Vec<f16>>;

fn response(content_type: &'static str, body: Vec<u8>) -> Response {
    Response::builder().header("content-type", content_type).body(Body::from(body)).expect("it is well-formed")
}

async fn bare_json(State(ready): State<Ready>, body: Bytes) -> Response {
    let asked: Inputs<'_> = serde_json::from_slice(&body).expect("the bench sends what it reads");
    response("application/json", encode::json(asked.inputs.iter().map(|_| &ready[..]), DIMS))
}

async fn bare_raw(State(ready): State<Ready>, body: Bytes) -> Response {
    let asked: Inputs<'_> = serde_json::from_slice(&body).expect("the bench sends what it reads");
    let mut out = Vec::with_capacity(asked.inputs.len() * DIMS * 2);
    asked.inputs.iter().for_each(|_| out.extend_from_slice(bytemuck::cast_slice(&ready)));
    response("application/octet-stream", out)
}

async fn bare_base64(State(ready): State<Ready>, body: Bytes) -> Response {
    let asked: OpenAiInputs<'_> = serde_json::from_slice(&body).expect("the bench sends what it reads");
    let mut out = Vec::with_capacity(asked.input.len() * (DIMS * 6 + 64) + 256);
    out.extend_from_slice(b"{\"object\":\"list\",\"data\":[");
    for (index, text) in asked.input.iter().enumerate() {
        std::hint::black_box(&text.0);
        out.extend_from_slice(if index > 0 { b",{\"embedding\":\"" } else { b"{\"embedding\":\"" });
        encode::append_base64(&mut out, &ready);
        out.extend_from_slice(b"\"}");
    }
    out.extend_from_slice(b"]}");
    response("application/json", out)
}

async fn empty(body: Bytes) -> Response {
    std::hint::black_box(body.len());
    response("text/plain", Vec::new())
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

async fn start_bare() -> SocketAddr {
    use axum::serve::ListenerExt;
    let ready: Ready = Arc::new((0..DIMS).map(|index| f16::from_f32((index as f32).sin() / 14.0)).collect());
    let router = Router::new()
        .route("/json", post(bare_json))
        .route("/raw", post(bare_raw))
        .route("/base64", post(bare_base64))
        .route("/empty", post(empty))
        .with_state(ready);
    let (listener, address) = listen().await;
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("TCP has the option"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn start_ours(folder: &std::path::Path) -> SocketAddr {
    let model = fake::model(DIMS);
    let store =
        Store::open(folder, &model.card.version, DIMS, &store::Config { capacity_entries: 8192, ..Default::default() });
    let cache = Cache::new(store.expect("an empty folder opens"), Embedder::start(model, batch::Config::default()));
    let (listener, address) = listen().await;
    tokio::spawn(http::serve(listener, cache, http::Config::default(), std::future::pending()));
    address
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the server listens");
        stream.set_nodelay(true).expect("TCP has the option");
        Self { stream, buffer: Vec::with_capacity(1 << 20) }
    }

    /// Sends a request and reads the whole answer.
    async fn ask(&mut self, request: &[u8]) {
        self.stream.write_all(request).await.expect("the server reads");
        self.buffer.clear();
        let mut whole = None;
        loop {
            assert_ne!(self.stream.read_buf(&mut self.buffer).await.expect("the server answers"), 0);
            if whole.is_none() {
                whole = length(&self.buffer);
            }
            if whole.is_some_and(|bytes| self.buffer.len() >= bytes) {
                return;
            }
        }
    }
}

/// Bytes of the answer that starts here, once its headers are all there.
fn length(buffer: &[u8]) -> Option<usize> {
    let head = buffer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&buffer[..head]).expect("headers are ASCII");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let length = text.split("content-length: ").nth(1)?.split("\r\n").next()?;
    Some(head + 4 + length.parse::<usize>().expect("a length is a number"))
}

fn request(path: &str, field: &str, texts: usize, extra: &str, accept: &str) -> Vec<u8> {
    let list: Vec<String> =
        (0..texts).map(|index| format!("a line of text, as long as a summary mostly is, number {index}")).collect();
    let list = serde_json::to_string(&list).expect("strings are always written");
    let body = format!("{{\"{field}\":{list}{extra}}}");
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\naccept: {accept}\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    runtime: &Runtime,
    name: &str,
    address: SocketAddr,
    connections: usize,
    request: &[u8],
) {
    let mut clients: Vec<Client> = (0..connections).map(|_| runtime.block_on(Client::connect(address))).collect();
    runtime.block_on(clients[0].ask(request));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|rounds| {
            runtime.block_on(async {
                let started = std::time::Instant::now();
                let share = rounds.div_ceil(connections as u64);
                let asking = clients.iter_mut().map(|client| async move {
                    for _ in 0..share {
                        client.ask(request).await;
                    }
                });
                futures_util::future::join_all(asking).await;
                started.elapsed().mul_f64(rounds as f64 / (share * connections as u64) as f64)
            })
        });
    });
}

fn hits(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("there is a temporary folder");
    // The servers have a thread of their own, so that they are what is measured.
    let servers =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let bare = servers.block_on(start_bare());
    let ours = servers.block_on(start_ours(folder.path()));
    let base64 = ",\"encoding_format\":\"base64\"";
    for (connections, load) in [(1, "one"), (CONNECTIONS, "many")] {
        for texts in [1, 32] {
            let mut group = criterion.benchmark_group(format!("http {load}, {texts} texts"));
            group.throughput(Throughput::Elements(1)).measurement_time(Duration::from_secs(3)).sample_size(20);
            let json = |path| request(path, "inputs", texts, "", "application/json");
            let raw = |path| request(path, "inputs", texts, "", "application/octet-stream");
            let openai = |path| request(path, "input", texts, base64, "application/json");
            for (name, address, request) in [
                ("empty", bare, json("/empty")),
                ("JSON bare", bare, json("/json")),
                ("JSON hit", ours, json("/embed")),
                ("raw f16 bare", bare, raw("/raw")),
                ("raw f16 hit", ours, raw("/embed")),
                ("base64 bare", bare, openai("/base64")),
                ("base64 hit", ours, openai("/v1/embeddings")),
            ] {
                measure(&mut group, &client, name, address, connections, &request);
            }
            group.finish();
        }
    }
}

criterion_group!(benches, hits);
criterion_main!(benches);

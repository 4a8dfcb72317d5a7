//! What only shows over a real socket: limits of connections and time, and the end.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use vecmemo::batch;
use vecmemo::cache::Cache;
use vecmemo::engine::{Engine, EngineError, Model};
use vecmemo::http::{self, Config};

use super::{DIMS, cache_of, model};

pub(super) struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<std::io::Result<()>>,
    pub(super) cache: Cache,
    _folder: TempDir,
}

impl Server {
    pub(super) async fn start(model: Model, config: Config) -> Self {
        let (cache, folder) = cache_of(model, batch::Config::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(http::serve(listener, cache.clone(), config, async move {
            let _ = stopped.await;
        }));
        Self { address, stop, served, cache, _folder: folder }
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub(super) async fn send(&self, request: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    pub(super) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.served.await.unwrap().unwrap();
    }
}

pub(super) fn post(body: &str, headers: &str) -> String {
    format!("POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

async fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// One answer on a connection that stays open.
pub(super) async fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        if let Some(head) = text.find("\r\n\r\n") {
            let length = text[..head].split("content-length: ").nth(1).unwrap();
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            if bytes.len() >= head + 4 + length {
                return String::from_utf8(bytes).unwrap();
            }
        }
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "closed after {text}");
    }
}

#[tokio::test]
async fn headers_that_do_not_come_end_the_connection() {
    let config = Config { header_timeout: Duration::from_millis(50), ..Config::default() };
    let server = Server::start(model(), config).await;
    let slow = server.send("POST /embed HTTP/1.1\r\nhost: x\r\nx-half").await;
    let text = rest(slow).await;
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 408"), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_at_all_is_closed() {
    let server = Server::start(model(), Config { idle_timeout: Duration::from_millis(50), ..Config::default() }).await;
    assert_eq!(rest(server.connect().await).await, "");
    server.stop().await;
}

#[tokio::test]
async fn too_many_headers_and_too_large_ones_are_refused() {
    let config = Config { headers_max: 10, header_bytes_max: 8 << 10, ..Config::default() };
    let server = Server::start(model(), config).await;
    let many: String = (0..20).map(|index| format!("x-{index}: y\r\n")).collect();
    let text = rest(server.send(&post("{}", &many)).await).await;
    assert!(text.starts_with("HTTP/1.1 431"), "{text}");
    let large = format!("x-large: {}\r\n", "y".repeat(16 << 10));
    let text = rest(server.send(&post("{}", &large)).await).await;
    assert!(text.starts_with("HTTP/1.1 431"), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn a_chunked_body_over_the_limit_is_413_and_the_client_reads_it() {
    let server = Server::start(model(), Config { body_bytes_max: 1000, ..Config::default() }).await;
    let chunk = format!("1f4\r\n{}\r\n", "x".repeat(500));
    let request =
        format!("POST /embed HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(3));
    let text = rest(server.send(&request).await).await;
    assert!(text.starts_with("HTTP/1.1 413") && text.contains("connection: close"), "{text}");
    let text = rest(server.send(&post(&"x".repeat(1500), "")).await).await;
    assert!(text.starts_with("HTTP/1.1 413") && text.contains("1000 bytes"), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn a_connection_over_the_limit_waits_until_one_closes() {
    let server = Server::start(model(), Config { connections_max: 1, ..Config::default() }).await;
    let request = post(r#"{"inputs": "a"}"#, "");
    let mut first = server.send(&request).await;
    assert!(answer(&mut first).await.starts_with("HTTP/1.1 200"));
    let mut second = server.send(&request).await;
    let early = tokio::time::timeout(Duration::from_millis(100), second.readable()).await;
    assert!(early.is_err(), "the second connection was served beside the first");
    drop(first);
    assert!(answer(&mut second).await.starts_with("HTTP/1.1 200"));
    drop(second);
    server.stop().await;
}

#[tokio::test]
async fn a_kept_connection_serves_request_after_request() {
    let server = Server::start(model(), Config::default()).await;
    let mut stream = server.connect().await;
    for text in ["a", "b", "a"] {
        stream.write_all(post(&format!(r#"{{"inputs": "{text}"}}"#), "").as_bytes()).await.unwrap();
        let answer = answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("cache-status: vecmemo; "), "{answer}");
    }
    drop(stream);
    server.stop().await;
}

/// Computes one batch for each permission.
pub(super) struct Waits(pub(super) mpsc::Receiver<()>);

impl Engine for Waits {
    fn embed(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let _ = self.0.recv();
        Ok(vec![vec![1.0; DIMS]; batch.len()])
    }
}

#[tokio::test]
async fn draining_finishes_what_was_accepted_and_refuses_what_comes_after() {
    let (open, gate) = mpsc::channel();
    let server = Server::start(Model { engine: Box::new(Waits(gate)), ..model() }, Config::default()).await;
    let idle = server.connect().await;
    let accepted = server.send(&post(r#"{"inputs": "accepted"}"#, "")).await;
    while server.cache.stats().in_flight == 0 {
        tokio::task::yield_now().await;
    }
    server.stop.send(()).unwrap();
    assert_eq!(rest(idle).await, "");
    let mut late = TcpStream::connect(server.address).await.unwrap();
    late.write_all(post(r#"{"inputs": "late"}"#, "").as_bytes()).await.unwrap();
    let late = rest(late).await;
    assert!(late.starts_with("HTTP/1.1 503") && late.contains("connection: close"), "{late}");
    assert!(!server.served.is_finished());

    open.send(()).unwrap();
    let text = rest(accepted).await;
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("connection: close"), "{text}");
    server.served.await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
    assert_eq!(server.cache.stats().store.entries, 1);
}

/// A new connection used to be closed as idle at the end, with its first request on the way: its client could not tell whether
/// that had been lost. What the system had accepted and we had not was reset likewise.
#[tokio::test]
async fn at_the_end_the_first_request_of_a_new_connection_is_told_so() {
    let server = Server::start(model(), Config::default()).await;
    let accepted: Vec<TcpStream> = futures_util::future::join_all((0..20).map(|_| server.connect())).await;
    // Some are accepted by now, and some wait in the system.
    let Server { address, stop, served, .. } = server;
    stop.send(()).unwrap();
    let later: Vec<TcpStream> =
        futures_util::future::join_all((0..20).map(|_| async { TcpStream::connect(address).await.unwrap() })).await;
    for mut stream in accepted.into_iter().chain(later) {
        tokio::task::yield_now().await;
        stream.write_all(post(r#"{"inputs": "a"}"#, "").as_bytes()).await.unwrap();
        let text = rest(stream).await;
        assert!(text.starts_with("HTTP/1.1 503") && text.contains("connection: close"), "{text}");
    }
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_drain_ends_in_time_whatever_hangs() {
    let (open, gate) = mpsc::channel();
    let config = Config { drain_timeout: Duration::from_millis(50), ..Config::default() };
    let server = Server::start(Model { engine: Box::new(Waits(gate)), ..model() }, config).await;
    let hanging = server.send("POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").await;
    drop(open);
    let mut probe = server.send("GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer(&mut probe).await.starts_with("HTTP/1.1 200"));
    let stopping = tokio::time::timeout(Duration::from_secs(10), server.stop());
    stopping.await.expect("the drain is bounded");
    drop(hanging);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_at_once_are_all_answered_within_small_memory() {
    // Room for a few dozen bodies and answers only: the others wait their turn.
    let config = Config { request_memory_bytes_max: 64 << 10, answer_memory_bytes_max: 64 << 10, ..Config::default() };
    let server = Server::start(model(), config).await;
    let address = server.address;
    let clients: Vec<_> = (0..300)
        .map(|index| {
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                for round in 0..3 {
                    let text = format!("text {}", (index + round) % 50);
                    stream.write_all(post(&format!(r#"{{"inputs": "{text}"}}"#), "").as_bytes()).await.unwrap();
                    let answer = answer(&mut stream).await;
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    server.stop().await;
}

/// A connection is a client's pool's: what is refused before its body was asked for must not spoil it for the next request.
#[tokio::test]
async fn a_request_refused_at_the_door_leaves_its_connection_usable() {
    let (all, tokens) = super::keys::keys(&[("k", "", &[vecmemo::access::Scope::Embed])], &[], None);
    let server =
        Server::start(model(), Config { access: vecmemo::access::Access::new(all), ..Config::default() }).await;
    let body = r#"{"inputs": "a"}"#;
    let key = format!("authorization: Bearer {}\r\n", tokens[0].1);
    let mut stream = server.connect().await;
    for (path, headers, status) in
        [("/embed", "", 401), ("/search", key.as_str(), 403), ("/nowhere", &key, 404), ("/embed", &key, 200)]
    {
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        // The body comes later than the refusal could be made.
        tokio::task::yield_now().await;
        stream.write_all(body.as_bytes()).await.unwrap();
        let answer = answer(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    // Of a long one little is read, and the connection goes.
    let long = format!("POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{}", "x".repeat(100_000));
    stream.write_all(long.as_bytes()).await.unwrap();
    let text = answer(&mut stream).await;
    assert!(text.starts_with("HTTP/1.1 401") && text.contains("connection: close"), "{text}");
    drop(stream);
    server.stop().await;
}

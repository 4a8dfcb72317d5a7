//! Hits are answered whatever others wait for: the model, a body that does not come, an answer that nobody takes.

use std::sync::mpsc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use vecmemo::engine::Model;
use vecmemo::http::Config;

use super::connections::{Server, Waits, answer, post};
use super::model;

/// Longer than any hit takes, and shorter than anything here waits.
const PATIENCE: Duration = Duration::from_secs(20);

fn texts(kind: &str, count: usize) -> String {
    let texts: Vec<String> = (0..count).map(|number| format!("\"{kind} {number}\"")).collect();
    post(&format!("{{\"inputs\": [{}]}}", texts.join(",")), "")
}

async fn ask(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::time::timeout(PATIENCE, answer(stream)).await.expect("there is an answer")
}

/// Requests that waited for the model used to keep the room for their bodies and answers from everybody else: enough of them, and
/// no hit was answered before the model had got through them.
#[tokio::test]
async fn misses_that_wait_for_the_model_keep_no_hit_waiting_and_are_refused_past_their_memory() {
    const MISSES: usize = 20;
    let (open, gate) = mpsc::channel();
    let config = Config {
        request_memory_bytes_max: 64 << 10,
        answer_memory_bytes_max: 64 << 10,
        waiting_memory_bytes_max: 64 << 10,
        ..Config::default()
    };
    let server = Server::start(Model { engine: Box::new(Waits(gate)), ..model() }, config).await;
    let mut hits = server.connect().await;
    open.send(()).unwrap();
    assert!(ask(&mut hits, &texts("known", 30)).await.starts_with("HTTP/1.1 200"));

    let mut waiting = Vec::new();
    let mut refused = 0;
    for number in 0..MISSES {
        let mut miss = server.send(&texts(&format!("new {number}"), 30)).await;
        while server.cache.stats().in_flight < 30 * (waiting.len() + 1) {
            let early = tokio::time::timeout(Duration::from_millis(1), miss.readable()).await;
            if early.is_ok() {
                break;
            }
        }
        if tokio::time::timeout(Duration::from_millis(20), miss.readable()).await.is_ok() {
            let said = answer(&mut miss).await;
            assert!(said.starts_with("HTTP/1.1 429") && said.contains("\r\nretry-after: "), "{said}");
            refused += 1;
        } else {
            waiting.push(miss);
        }
        let hit = ask(&mut hits, &texts("known", 30)).await;
        assert!(hit.contains("cache-status: vecmemo; hit"), "{hit}");
    }
    assert!(refused > 0 && waiting.len() > 2, "{refused} refused, {} wait", waiting.len());

    drop(open);
    for mut miss in waiting {
        let said = tokio::time::timeout(PATIENCE, answer(&mut miss)).await.expect("it is answered in the end");
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    }
    assert!(ask(&mut hits, &texts("after", 3)).await.starts_with("HTTP/1.1 200"), "there is room again");
    drop(hits);
    server.stop().await;
}

#[tokio::test]
async fn large_bodies_that_do_not_come_keep_no_small_one_waiting() {
    let config = Config { request_memory_bytes_max: 1 << 20, body_bytes_max: 700 << 10, ..Config::default() };
    let server = Server::start(model(), config).await;
    let mut slow = Vec::new();
    for _ in 0..3 {
        let large = format!("POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{{", 600 << 10);
        slow.push(server.send(&large).await);
        slow.push(server.send("POST /embed HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await);
    }
    let mut stats = server.connect().await;
    let request = "GET /stats HTTP/1.1\r\nhost: x\r\n\r\n";
    while !ask(&mut stats, request).await.contains("\"requests_in_flight\":7") {
        tokio::task::yield_now().await;
    }
    let mut small = server.connect().await;
    assert!(ask(&mut small, &texts("small", 3)).await.starts_with("HTTP/1.1 200"));
    drop((slow, stats, small));
    server.stop().await;
}

/// The beginning of a frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = &(payload.len() as u32).to_be_bytes()[1..];
    [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A client that says "send me nothing yet", answers every ping, and so seems alive, used to keep its answers in our memory for
/// as long as it liked.
#[tokio::test]
async fn an_answer_that_is_never_asked_for_over_http_2_ends_its_connection() {
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const ACK: u8 = 1;
    let config = Config { write_timeout: Duration::from_millis(200), ..Config::default() };
    let server = Server::start(model(), config).await;
    let mut stream = server.connect().await;
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    // GET http://x/openapi.json: two headers of the static table, two said in full; all of the request.
    let headers = [&[0x82, 0x86, 0x04, 13][..], b"/openapi.json", &[0x01, 1], b"x"].concat();
    let request = frame(1, 0x5, 1, &headers);
    stream.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &*no_window, &*request].concat()).await.unwrap();

    let told = async {
        let (mut was_answered, mut pings) = (false, 0);
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return (was_answered, pings);
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if stream.read_exact(&mut payload).await.is_err() {
                return (was_answered, pings);
            }
            was_answered |= head[3] == 1;
            assert_ne!(head[3], 0, "nothing of the answer's body was asked for");
            if head[3] == PING && head[4] & ACK == 0 {
                pings += 1;
                let pong = frame(PING, ACK, 0, &payload);
                if stream.write_all(&pong).await.is_err() {
                    return (was_answered, pings);
                }
            }
        }
    };
    let (was_answered, _) = tokio::time::timeout(PATIENCE, told).await.expect("the connection is closed");
    assert!(was_answered);
    server.stop().await;
}

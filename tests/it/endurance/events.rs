//! Very many events, one after the other: how long handling takes, and that each does what it says.

use std::time::{Duration, Instant};

use serde_json::json;

use super::long;
use crate::support::server::Server;

/// What 99 of 100 events may take in the long form, on a machine of its own.
const AT_MOST: Duration = Duration::from_millis(1);

/// Texts that are stored by one request.
const BATCH: usize = 500;

fn quantile(times: &[Duration], of: usize) -> Duration {
    times[(times.len() * of / 100).min(times.len() - 1)]
}

#[test]
fn an_event_costs_less_than_a_millisecond() {
    let events = if long() { 10_000 } else { 500 };
    let folder = tempfile::tempdir().unwrap();
    let rules = "[[event]]\non = \"document.*\"\ntags = [\"doc:{subject}\"]\n";
    std::fs::write(folder.path().join("vecmemo.toml"), rules).unwrap();
    let server = Server::start(folder.path());
    for first in (0..events).step_by(BATCH) {
        let numbers: Vec<usize> = (first..events.min(first + BATCH)).collect();
        let texts: Vec<String> = numbers.iter().map(|number| format!("document {number}")).collect();
        for (number, text) in numbers.iter().zip(&texts).step_by(10) {
            let (status, answer) = server.post("/embed", &json!({ "inputs": text, "tags": [format!("doc:{number}")] }));
            assert_eq!(status, 200, "{answer}");
        }
        // The others are there to be left alone.
        let (status, answer) = server.post("/embed", &json!({ "inputs": texts }));
        assert_eq!(status, 200, "{answer}");
    }
    let client = server.client();
    let (mut handled, mut answered) = (Vec::new(), Vec::new());
    for number in 0..events {
        let asked = Instant::now();
        let (status, answer) =
            client.post("/events", &json!({ "type": "document.updated", "subject": number.to_string() })).unwrap();
        answered.push(asked.elapsed());
        assert_eq!((status, &answer["removed"]), (200, &json!(usize::from(number % 10 == 0))), "{answer}");
        handled.push(Duration::from_secs_f64(answer["took_ms"].as_f64().unwrap() / 1e3));
    }
    handled.sort_unstable();
    answered.sort_unstable();
    let [half, most] = [50, 99].map(|of| quantile(&handled, of));
    let [answer_half, answer_most] = [50, 99].map(|of| quantile(&answered, of));
    println!(
        "{events} events, one in ten of which removes an entry: handled in {half:.2?} (p50), {most:.2?} (p99); \
         with the request {answer_half:.2?}, {answer_most:.2?}"
    );
    assert!(!long() || most < AT_MOST, "{most:?}");
}

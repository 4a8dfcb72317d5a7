//! Each row of the contract's table of errors, in each dialect's own shape.

use std::sync::mpsc;
use std::time::Duration;

use axum::body::Body;
use hyper::{Request, StatusCode};
use serde_json::{Value, json};
use vecmemo::batch;
use vecmemo::engine::{Engine, EngineError};
use vecmemo::http::{Config, TokenInputs};

use super::{Bench, DIMS, Got, model};

/// A model that answers what it is told to, or waits until it is let.
enum Troubled {
    Vector(f32),
    Panics,
    Waits(mpsc::Receiver<()>),
}

impl Engine for Troubled {
    fn embed(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        match self {
            Self::Vector(value) => Ok(vec![vec![*value; DIMS]; batch.len()]),
            Self::Panics => panic!("the model is made to panic"),
            Self::Waits(gate) => {
                // Ends when the test has dropped its side, too.
                let _ = gate.recv();
                Ok(vec![vec![1.0; DIMS]; batch.len()])
            }
        }
    }
}

fn troubled(engine: Troubled) -> vecmemo::engine::Model {
    vecmemo::engine::Model { engine: Box::new(engine), ..model() }
}

#[track_caller]
pub(super) fn tei(got: &Got, status: u16, words: &[&str]) {
    let body = got.json();
    assert_eq!(got.status.as_u16(), status, "{body}");
    assert_eq!(got.header("content-type"), "application/json");
    assert!(body["error_type"].is_string() && got.headers.contains_key("x-request-id"), "{body}");
    let message = body["error"].as_str().unwrap();
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
}

#[track_caller]
pub(super) fn openai(got: &Got, status: u16, words: &[&str]) {
    let body = got.json();
    assert_eq!(got.status.as_u16(), status, "{body}");
    let error = body["error"].as_object().unwrap();
    assert!(["type", "param", "code"].iter().all(|field| error.contains_key(*field)));
    let message = error["message"].as_str().unwrap();
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
}

#[track_caller]
pub(super) fn problem(got: &Got, status: u16, words: &[&str]) {
    let body = got.json();
    assert_eq!(got.status.as_u16(), status, "{body}");
    assert_eq!(got.header("content-type"), "application/problem+json");
    assert_eq!((&body["status"], &body["request_id"]), (&json!(status), &json!(got.header("x-request-id"))));
    assert!(body["type"].is_string() && body["title"].is_string());
    let message = body["detail"].as_str().unwrap();
    assert_eq!(body["error"]["message"], message);
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
}

#[tokio::test]
async fn malformed_json_is_400_with_the_position() {
    let bench = Bench::new();
    for body in ["", "{", r#"{"inputs": "a",}"#, "\u{1}", r#"{"inputs": "\ud800"}"#] {
        tei(&bench.post("/embed", body).await, 400, &["not valid JSON", "line 1 column"]);
    }
    openai(&bench.post("/v1/embeddings", "{").await, 400, &["line 1 column 1"]);
    problem(&bench.post("/lookup", "{").await, 400, &["line 1 column 1"]);
    let invalid_utf8 = Request::post("/embed").body(Body::from(&b"{\"inputs\": \"\xff\"}"[..])).unwrap();
    tei(&bench.send(invalid_utf8).await, 400, &["not valid JSON"]);
}

#[tokio::test]
async fn a_wrong_type_is_named_with_its_field_and_position() {
    let bench = Bench::new();
    tei(&bench.post("/embed", r#"{"inputs": ["a", 5]}"#).await, 422, &["inputs[1]", "a string", "line 1 column 18"]);
    tei(&bench.post("/embed", r#"{"inputs": 5}"#).await, 422, &["inputs", "a string, a list of strings"]);
    tei(&bench.post("/embed", r#"{"inputs": "a", "normalize": 1}"#).await, 422, &["normalize", "boolean"]);
    tei(&bench.post("/embed", "{}").await, 422, &["missing field `inputs`"]);
    tei(&bench.post("/embed", r#"["a"]"#).await, 422, &["body", "object"]);
    tei(&bench.post("/embed", r#"{"inputs": "a", "reuse": [0.9]}"#).await, 422, &["reuse", "an object"]);
    tei(&bench.post("/embed", r#"{"inputs": {"source_sentence": "a", "sentences": ["b"]}}"#).await, 422, &["inputs"]);
    openai(&bench.post("/v1/embeddings", r#"{"input": {"a": 1}}"#).await, 400, &["input", "a list of strings"]);
    openai(&bench.post("/v1/embeddings", r#"{"input": "a", "encoding_format": "int8"}"#).await, 400, &["base64"]);
    problem(&bench.post("/lookup", r#"{"keys": ["zz"]}"#).await, 422, &["keys[0]", "64 hexadecimal"]);
    problem(&bench.post("/lookup", r#"{"keys": ["zz"], "inputs": "a"}"#).await, 422, &["not both"]);
    problem(&bench.post("/lookup", "{}").await, 422, &["inputs or keys"]);
}

#[tokio::test]
async fn an_unknown_field_is_refused_by_name_in_our_dialect_and_ignored_in_openais() {
    let bench = Bench::new();
    tei(
        &bench.post("/embed", r#"{"inputs": "a", "normalise": true}"#).await,
        422,
        &["normalise", "unknown field", "line 1"],
    );
    tei(&bench.post("/embed", r#"{"inputs": "a", "parameters": {"x": 1}}"#).await, 422, &["parameters.x"]);
    tei(&bench.post("/tokenize", r#"{"inputs": "a", "x": true}"#).await, 422, &["unknown field `x`"]);
    problem(&bench.post("/lookup", r#"{"inputs": "a", "x": true}"#).await, 422, &["unknown field `x`"]);
    assert_eq!(bench.post("/v1/embeddings", r#"{"input": "a", "x": true}"#).await.status, StatusCode::OK);
}

#[tokio::test]
async fn values_that_cannot_be_meant_are_refused_by_name() {
    let bench = Bench::new();
    for (field, words) in [
        (r#""namespace": "a b""#, "namespace"),
        (r#""ttl": 0"#, "ttl"),
        (r#""tags": [""]"#, "tags[0]"),
        (r#""reuse": {"min_similarity": 1.5}"#, "reuse.min_similarity"),
        (r#""reuse": {"similarity": 0.5}"#, "reuse.similarity"),
        (r#""prompt_name": "passage""#, "query"),
        (r#""truncation_direction": "up""#, "truncation_direction"),
        (r#""cache": "maybe""#, "cache"),
    ] {
        let body = format!(r#"{{"inputs": "a", {field}}}"#);
        tei(&bench.post("/embed", &body).await, 422, &[words]);
    }
    tei(&bench.post("/embed", r#"{"inputs": "a", "model": "other"}"#).await, 404, &["other", "fake"]);
    openai(&bench.post("/v1/embeddings", r#"{"input": "a", "model": "other"}"#).await, 404, &["other", "fake"]);
    tei(&bench.post("/embed?details=perhaps", r#"{"inputs": "a"}"#).await, 400, &["details"]);
    tei(&bench.post("/tokenize", r#"{"inputs": "a", "prompt_name": "passage"}"#).await, 422, &["passage", "query"]);
}

#[tokio::test]
async fn an_empty_list_is_400_and_an_empty_string_is_embedded() {
    let bench = Bench::new();
    tei(&bench.post("/embed", r#"{"inputs": []}"#).await, 400, &["inputs is empty"]);
    tei(&bench.post("/", r#"{"inputs": {"source_sentence": "a", "sentences": []}}"#).await, 400, &["sentences"]);
    openai(&bench.post("/v1/embeddings", r#"{"input": []}"#).await, 400, &["input is empty"]);
    problem(&bench.post("/lookup", r#"{"keys": []}"#).await, 400, &["keys is empty"]);
    assert_eq!(bench.post("/embed", r#"{"inputs": ""}"#).await.status, StatusCode::OK);
    assert_eq!(bench.post("/v1/embeddings", r#"{"input": ""}"#).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_text_too_long_is_422_with_index_and_token_count_when_truncation_is_forbidden() {
    let bench = Bench::new();
    let long = "word ".repeat(100);
    let body = json!({ "inputs": ["short", long], "truncate": false }).to_string();
    tei(&bench.post("/embed", &body).await, 422, &["input 1", "32"]);
    assert_eq!(bench.computed().await, 0);
    let cut = json!({ "inputs": [long] }).to_string();
    assert_eq!(bench.post("/embed", &cut).await.status, StatusCode::OK);
    tei(&bench.post("/embed", &body).await, 422, &["input 1"]);
    let config = Config { auto_truncate: false, ..Config::default() };
    tei(&Bench::with(model(), config).post("/embed", &cut).await, 422, &["input 0"]);
}

#[tokio::test]
async fn a_batch_over_the_limit_is_422_naming_the_limit() {
    let bench = Bench::with(model(), Config { batch_texts_max: 3, ..Config::default() });
    let four = r#"["a", "b", "c", "d"]"#;
    let words = &["4 items", "max_client_batch_size is 3"];
    tei(&bench.post("/embed", &format!(r#"{{"inputs": {four}}}"#)).await, 422, words);
    openai(&bench.post("/v1/embeddings", &format!(r#"{{"input": {four}}}"#)).await, 422, words);
    problem(&bench.post("/lookup", &format!(r#"{{"inputs": {four}}}"#)).await, 422, words);
    tei(&bench.post("/tokenize", &format!(r#"{{"inputs": {four}}}"#)).await, 422, words);
    let keys = Request::post("/lookup").header("content-type", "application/octet-stream");
    problem(&bench.send(keys.body(Body::from(vec![0; 128])).unwrap()).await, 422, words);
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_with_or_without_a_length() {
    let bench = Bench::with(model(), Config { body_bytes_max: 100, ..Config::default() });
    let body = format!(r#"{{"inputs": "{}"}}"#, "a".repeat(100));
    let got = bench.post("/embed", &body).await;
    tei(&got, 413, &["100 bytes"]);
    assert_eq!(got.header("connection"), "close");
    openai(&bench.post("/v1/embeddings", &body).await, 413, &["100 bytes"]);
    let pieces =
        futures_util::stream::iter([&body[..60], &body[60..]].map(|piece| Ok::<_, std::io::Error>(piece.to_owned())));
    tei(&bench.send(Request::post("/embed").body(Body::from_stream(pieces)).unwrap()).await, 413, &["100 bytes"]);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_400_and_one_that_stalls_408() {
    let bench = Bench::with(model(), Config { body_timeout: Duration::from_millis(20), ..Config::default() });
    let broken = futures_util::stream::iter([Ok("{"), Err(std::io::Error::other("gone"))]);
    tei(
        &bench.send(Request::post("/embed").body(Body::from_stream(broken)).unwrap()).await,
        400,
        &["could not be read"],
    );
    let stalled = futures_util::stream::pending::<Result<&str, std::io::Error>>();
    tei(&bench.send(Request::post("/embed").body(Body::from_stream(stalled)).unwrap()).await, 408, &["0.02 s"]);
}

#[tokio::test]
async fn a_wrong_content_type_is_415_and_a_missing_one_is_taken_for_json() {
    let bench = Bench::new();
    let typed = |content_type: &str| Request::post("/embed").header("content-type", content_type);
    let body = || Body::from(r#"{"inputs": "a"}"#);
    tei(&bench.send(typed("text/plain").body(body()).unwrap()).await, 415, &["application/json", "text/plain"]);
    assert_eq!(bench.send(typed("application/json; charset=utf-8").body(body()).unwrap()).await.status, StatusCode::OK);
    assert_eq!(bench.send(Request::post("/embed").body(body()).unwrap()).await.status, StatusCode::OK);
    let raw = Request::post("/lookup").header("content-type", "application/octet-stream").body(Body::from("short"));
    problem(&bench.send(raw.unwrap()).await, 400, &["32 bytes"]);
    let text = Request::post("/lookup").header("content-type", "text/plain").body(body());
    problem(&bench.send(text.unwrap()).await, 415, &["application/octet-stream"]);
}

#[tokio::test]
async fn an_accept_that_nothing_meets_is_406() {
    let bench = Bench::new();
    tei(&bench.post_for("/embed", r#"{"inputs": "a"}"#, "text/html").await, 406, &["application/x-npy"]);
    tei(&bench.post_for("/embed?details=true", r#"{"inputs": "a"}"#, "application/x-npy").await, 406, &["json"]);
    openai(&bench.post_for("/v1/embeddings", r#"{"input": "a"}"#, "image/png").await, 406, &["application/json"]);
    problem(&bench.post_for("/lookup", r#"{"inputs": "a"}"#, "image/png").await, 406, &["octet-stream"]);
}

#[tokio::test]
async fn dimensions_the_model_was_not_trained_for_are_400_naming_the_allowed() {
    let bench = Bench::new();
    tei(&bench.post("/embed", r#"{"inputs": "a", "dimensions": 5}"#).await, 400, &["16 or 4", "5"]);
    openai(&bench.post("/v1/embeddings", r#"{"input": "a", "dimensions": 5}"#).await, 400, &["16 or 4"]);
    assert_eq!(bench.computed().await, 0);
}

#[tokio::test]
async fn foreign_token_ids_are_400_naming_the_clients_switch() {
    let bench = Bench::with(model(), Config { token_inputs: TokenInputs::Reject, ..Config::default() });
    for input in ["[1, 2]", "[[1], [2]]"] {
        let got = bench.post("/v1/embeddings", &format!(r#"{{"input": {input}}}"#)).await;
        openai(&got, 400, &["check_embedding_ctx_length=False"]);
    }
}

#[tokio::test]
async fn a_cached_only_miss_is_404_with_the_missing_indexes() {
    let bench = Bench::new();
    bench.post("/embed", r#"{"inputs": "b"}"#).await;
    let got = bench.post("/embed", r#"{"inputs": ["a", "b", "c"], "cache": "only"}"#).await;
    tei(&got, 404, &["not cached"]);
    assert_eq!(got.json()["missing"], json!([0, 2]));
}

#[tokio::test]
async fn what_is_not_there_is_404_and_what_cannot_be_done_405_with_allow() {
    let bench = Bench::new();
    problem(&bench.get("/nowhere").await, 404, &["/nowhere"]);
    openai(&bench.get("/v1/nowhere").await, 404, &["/v1/nowhere"]);
    problem(&bench.get(&format!("/entries/{}", "0".repeat(64))).await, 404, &["000"]);
    problem(&bench.get("/entries/short").await, 400, &["64 hexadecimal"]);
    let got = bench.get("/embed").await;
    assert_eq!((got.status, got.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "POST"));
    let got = bench.post("/stats", "").await;
    problem(&got, 405, &["/stats", "POST"]);
    assert!(got.header("allow").contains("GET"));
}

#[tokio::test]
async fn a_failed_model_is_424_to_tei_and_500_to_openai_with_the_request_id_and_nothing_is_cached() {
    for engine in [Troubled::Panics, Troubled::Vector(f32::NAN), Troubled::Vector(f32::INFINITY), Troubled::Vector(0.0)]
    {
        let bench = Bench::with(troubled(engine), Config::default());
        let id = [("x-request-id", "find-me")];
        tei(&bench.post_with("/embed", r#"{"inputs": "a"}"#, &id).await, 424, &["input 0", "find-me"]);
        openai(&bench.post_with("/v1/embeddings", r#"{"input": "a"}"#, &id).await, 500, &["input 0", "find-me"]);
        let lookup = bench.post("/lookup", r#"{"inputs": "a"}"#).await.json();
        assert_eq!(lookup["items"][0]["cached"], Value::Bool(false));
    }
}

#[tokio::test]
async fn a_full_queue_is_429_with_retry_after_and_its_length_while_hits_are_served() {
    let (open, gate) = mpsc::channel();
    let queue = batch::Config { queue_texts_max: 2, batch_texts_max: 1, ..batch::Config::default() };
    let bench = Bench::queueing(troubled(Troubled::Waits(gate)), Config::default(), queue);
    open.send(()).unwrap();
    assert_eq!(bench.post("/embed", r#"{"inputs": "known"}"#).await.status, StatusCode::OK);

    let got = bench.post("/embed", r#"{"inputs": ["1", "2", "3", "4", "5"]}"#).await;
    tei(&got, 429, &["queue is full"]);
    assert!(got.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert!(got.header("retry-after-ms").parse::<u64>().unwrap() >= 1);
    openai(&bench.post("/v1/embeddings", r#"{"input": ["6", "7", "8"]}"#).await, 429, &["texts wait"]);
    assert_eq!(bench.post("/embed", r#"{"inputs": "known"}"#).await.status, StatusCode::OK);
    drop(open);
}

#[tokio::test]
async fn a_lane_is_refused_by_its_name_and_the_header_or_the_number_of_inputs_chooses_it() {
    let queue = batch::Config { queue_texts_max: 8, ..batch::Config::default() };
    let bench = Bench::queueing(model(), Config::default(), queue);
    for (lane, refused) in [("warm-up", true), ("ingest", true), ("query", false)] {
        // Other texts each time: who asks for a text that is just being refused joins the refusal.
        let six = serde_json::json!({ "inputs": (1..=6).map(|n| format!("{lane} {n}")).collect::<Vec<_>>() });
        let got = bench.post_with("/embed", &six.to_string(), &[("x-priority", lane)]).await;
        assert_eq!(got.status == StatusCode::TOO_MANY_REQUESTS, refused, "{lane}");
        if refused {
            tei(&got, 429, &["queue is full", &format!("in lane {lane}")]);
        }
    }
    let others = r#"{"inputs": ["a", "b", "c", "d", "e", "f"]}"#;
    tei(&bench.post("/embed", others).await, 429, &["in lane ingest"]);
    assert_eq!(bench.post("/embed", r#"{"inputs": ["a"]}"#).await.status, StatusCode::OK);
    let metrics = String::from_utf8(bench.get("/metrics").await.body).unwrap();
    for line in [
        r#"vecmemo_queue_seconds_count{lane="query"} 7"#,
        r#"vecmemo_queue_seconds_count{lane="ingest"} 0"#,
        r#"vecmemo_queue_refused_texts_total{lane="ingest"} 12"#,
        r#"vecmemo_queue_refused_texts_total{lane="warm-up"} 6"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    for nonsense in ["urgent", "", "Query"] {
        let got = bench.post_with("/embed", r#"{"inputs": "a"}"#, &[("x-priority", nonsense)]).await;
        tei(&got, 400, &["x-priority", "query, ingest or warm-up"]);
    }
}

#[tokio::test]
async fn a_passed_deadline_is_504_and_the_work_goes_on() {
    let (open, gate) = mpsc::channel();
    let bench = Bench::with(troubled(Troubled::Waits(gate)), Config::default());
    let patient = bench.post("/embed", r#"{"inputs": "a"}"#);
    let hasty = async {
        let got = bench.post_with("/embed", r#"{"inputs": "a"}"#, &[("x-request-timeout", "0.05")]).await;
        tei(&got, 504, &["0.05 s"]);
        open.send(()).unwrap();
    };
    let (patient, ()) = tokio::join!(patient, hasty);
    assert_eq!(patient.status, StatusCode::OK);
    drop(open);
    for nonsense in ["soon", "0", "-1", "NaN", "inf"] {
        let got = bench.post_with("/embed", r#"{"inputs": "a"}"#, &[("x-request-timeout", nonsense)]).await;
        tei(&got, 400, &["x-request-timeout"]);
    }
    let config = Config { request_timeout: Duration::from_millis(20), ..Config::default() };
    let (open, gate) = mpsc::channel();
    let bench = Bench::with(troubled(Troubled::Waits(gate)), config);
    openai(&bench.post("/v1/embeddings", r#"{"input": "a"}"#).await, 504, &["0.02 s"]);
    drop(open);
}

#[tokio::test]
async fn while_shutting_down_work_is_503_and_the_connection_closes() {
    let bench = Bench::new();
    bench.service.start_draining();
    for (path, body) in [("/embed", r#"{"inputs": "a"}"#), ("/tokenize", r#"{"inputs": "a"}"#)] {
        let got = bench.post(path, body).await;
        tei(&got, 503, &["shutting down"]);
        assert_eq!(got.header("connection"), "close");
    }
    openai(&bench.post("/v1/embeddings", r#"{"input": "a"}"#).await, 503, &["shutting down"]);
    let ready = bench.get("/ready").await;
    problem(&ready, 503, &["shutting down"]);
    assert_eq!(ready.header("connection"), "close");
    assert_eq!(bench.get("/health").await.status, StatusCode::OK);
}

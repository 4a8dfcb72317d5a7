//! What the service is held against: a bare axum handler that parses the same body and answers a ready vector by the same
//! encoder. `cargo run --release --example bare` serves `/json`, `/raw`, `/base64` and `/empty` on 127.0.0.1:18080;
//! point `wrk` with one POST script at it and at `/embed` in turn.

use std::borrow::Cow;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::Response;
use axum::routing::post;
use axum::serve::ListenerExt;
use half::f16;
use serde::Deserialize;
use vecmemo::http::encode;

const DIMS: usize = 384;

#[derive(Deserialize)]
struct Inputs<'a> {
    #[serde(borrow, alias = "input")]
    inputs: Vec<Text<'a>>,
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// How many texts a body holds, all of them parsed.
fn count(body: &[u8]) -> usize {
    let asked: Inputs<'_> = serde_json::from_slice(body).expect("the load sends what is read here");
    asked.inputs.iter().filter(|text| !std::hint::black_box(&text.0).is_empty()).count()
}

fn ready() -> Vec<f16> {
    (0..DIMS).map(|index| f16::from_f32((index as f32).sin() / 14.0)).collect()
}

fn answer(content_type: &'static str, body: Vec<u8>) -> Response {
    Response::builder().header("content-type", content_type).body(Body::from(body)).expect("it is well-formed")
}

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let (json, raw, base64) = (ready(), ready(), ready());
    let json = move |body: Bytes| async move {
        answer("application/json", encode::json((0..count(&body)).map(|_| &json[..]), DIMS))
    };
    let raw = move |body: Bytes| async move {
        let rows: &[u8] = bytemuck::cast_slice(&raw);
        answer("application/octet-stream", rows.repeat(count(&body)))
    };
    let base64 = move |body: Bytes| async move {
        let mut out = b"{\"object\":\"list\",\"data\":[".to_vec();
        for index in 0..count(&body) {
            out.extend_from_slice(if index > 0 { b",{\"embedding\":\"" } else { b"{\"embedding\":\"" });
            encode::append_base64(&mut out, &base64);
            out.extend_from_slice(b"\"}");
        }
        out.extend_from_slice(b"]}");
        answer("application/json", out)
    };
    let router = Router::new()
        .route("/json", post(json))
        .route("/raw", post(raw))
        .route("/base64", post(base64))
        .route("/empty", post(|_: Bytes| async { answer("text/plain", Vec::new()) }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:18080").await?;
    // As the service does: answers are written whole.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    Ok(axum::serve(listener, router).await?)
}

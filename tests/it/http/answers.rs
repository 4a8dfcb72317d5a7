//! What is answered when all is well.

use axum::body::Body;
use half::f16;
use hyper::{Request, StatusCode};
use serde_json::json;
use vecmemo::domain::ContentHash;

use super::{Bench, DIMS, Got, model};

fn rows(got: &Got) -> Vec<Vec<f32>> {
    assert_eq!(got.status, StatusCode::OK, "{}", String::from_utf8_lossy(&got.body));
    serde_json::from_slice(&got.body).unwrap()
}

fn f16s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|two| f16::from_le_bytes(two.try_into().unwrap()).to_f32()).collect()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

fn norm(row: &[f32]) -> f32 {
    row.iter().map(|value| value * value).sum::<f32>().sqrt()
}

#[tokio::test]
async fn a_cached_answer_and_a_computed_one_are_the_same_bytes() {
    let bench = Bench::new();
    for (path, body) in [
        ("/embed", r#"{"inputs": ["one", "two", "one", ""]}"#),
        ("/embed", r#"{"inputs": "three", "normalize": false}"#),
        ("/embed", r#"{"inputs": "four", "dimensions": 4}"#),
        ("/v1/embeddings", r#"{"input": ["five", "six"], "model": "fake", "encoding_format": "base64"}"#),
    ] {
        let (first, second) = (bench.post(path, body).await, bench.post(path, body).await);
        assert_eq!(first.status, StatusCode::OK, "{}", String::from_utf8_lossy(&first.body));
        assert!(first.header("cache-status").starts_with("vecmemo; fwd=miss; items="), "{body}");
        assert!(second.header("cache-status").starts_with("vecmemo; hit; items="), "{body}");
        if path == "/embed" {
            assert_eq!(first.body, second.body);
        } else {
            assert_eq!(first.json()["data"], second.json()["data"]);
        }
    }
}

#[tokio::test]
async fn one_string_answers_a_list_of_one_vector_and_order_is_kept() {
    let bench = Bench::new();
    let one = rows(&bench.post("/embed", r#"{"inputs": "b"}"#).await);
    let three = rows(&bench.post("/embed", r#"{"inputs": ["a", "b", "c"]}"#).await);
    assert_eq!((one.len(), three.len(), three[0].len()), (1, 3, DIMS));
    assert_eq!(one[0], three[1]);
    assert!(three.iter().all(|row| (norm(row) - 1.0).abs() < 1e-2));
}

#[tokio::test]
async fn headers_say_what_was_cached_and_where_the_time_went() {
    let bench = Bench::new();
    bench.post("/embed", r#"{"inputs": "known text"}"#).await;
    let got = bench.post("/embed", r#"{"inputs": ["known text", "new", "new"]}"#).await;
    assert_eq!(
        got.header("cache-status"),
        "vecmemo; fwd=miss; items=3; hits=1; reused=0; joined=1; computed=1; truncated=0"
    );
    assert_eq!(got.header("x-compute-type"), "mixed");
    assert_eq!(got.header("x-compute-characters"), "16");
    let stages: Vec<&str> =
        got.header("server-timing").split(", ").filter_map(|stage| stage.split(';').next()).collect();
    assert_eq!(stages, ["key", "store", "queue", "tokenize", "inference", "write", "total"]);
    for name in [
        "x-compute-time",
        "x-compute-tokens",
        "x-total-time",
        "x-tokenization-time",
        "x-queue-time",
        "x-inference-time",
    ] {
        assert!(got.header(name).parse::<u64>().is_ok(), "{name}");
    }
    assert_eq!(got.header("x-request-id").len(), 32);
    let hit = bench.post_with("/embed", r#"{"inputs": "new"}"#, &[("x-request-id", "mine-1")]).await;
    assert_eq!((hit.header("x-compute-type"), hit.header("x-request-id")), ("cache", "mine-1"));
}

#[tokio::test]
async fn all_formats_decode_to_the_same_bits() {
    let bench = Bench::new();
    for options in ["", r#", "normalize": false"#, r#", "dimensions": 4"#, r#", "dimensions": 4, "normalize": false"#] {
        let body = format!(r#"{{"inputs": ["a", "b", "c"]{options}}}"#);
        let json: Vec<f32> = rows(&bench.post("/embed", &body).await).concat();
        let dims = json.len() / 3;

        let raw = bench.post_for("/embed", &body, "application/octet-stream").await;
        assert_eq!(raw.header("content-type"), "application/octet-stream");
        assert_eq!((raw.header("x-embedding-dims"), raw.header("x-embedding-dtype")), (&*dims.to_string(), "f16"));
        assert_eq!(f16s(&raw.body), json);
        let raw = bench.post_for("/embed", &body, "application/octet-stream;dtype=f32").await;
        assert_eq!((f32s(&raw.body), raw.header("x-embedding-dtype")), (json.clone(), "f32"));

        let npy = bench.post_for("/embed", &body, "application/x-npy").await;
        assert_eq!(npy.header("content-type"), "application/x-npy");
        assert!(npy.body.starts_with(b"\x93NUMPY\x01\x00"));
        assert_eq!(f16s(&npy.body[npy.body.len() - json.len() * 2..]), json);
        let npy = bench.post_for("/embed", &body, "application/x-npy;dtype=f32").await;
        assert_eq!(f32s(&npy.body[npy.body.len() - json.len() * 4..]), json);
    }
    let body = r#"{"input": ["a", "b", "c"], "encoding_format": "base64"}"#;
    let base64 = bench.post("/v1/embeddings", body).await.json();
    let floats = rows(&bench.post("/embed", r#"{"inputs": ["a", "b", "c"]}"#).await);
    for (index, row) in floats.iter().enumerate() {
        let text = base64["data"][index]["embedding"].as_str().unwrap();
        assert_eq!(&f32s(&base64_simd::STANDARD.decode_to_vec(text).unwrap()), row);
    }
}

#[tokio::test]
async fn dimensions_answer_the_prefix_at_length_one() {
    let bench = Bench::new();
    let whole = rows(&bench.post("/embed", r#"{"inputs": "a"}"#).await);
    let short = rows(&bench.post("/embed", r#"{"inputs": "a", "dimensions": 4}"#).await);
    assert_eq!(short[0].len(), 4);
    assert!((norm(&short[0]) - 1.0).abs() < 1e-3);
    let scale = norm(&whole[0][..4]);
    for (short, whole) in short[0].iter().zip(&whole[0]) {
        assert!((short - whole / scale).abs() < 2e-3);
    }
}

#[tokio::test]
async fn details_say_where_each_vector_came_from() {
    let bench = Bench::new();
    bench.post("/embed", r#"{"inputs": "a"}"#).await;
    let got = bench.post("/embed?details=true", r#"{"inputs": ["a", "b"]}"#).await.json();
    assert_eq!((&got["model"], &got["dims"]), (&json!("fake"), &json!(DIMS)));
    assert_eq!(got["fingerprint"], bench.cache.card().version.to_string());
    assert_eq!((&got["items"][0]["status"], &got["items"][1]["status"]), (&json!("hit"), &json!("computed")));
    let key = bench.cache.default_scope().key(ContentHash::of("a")).to_string();
    let item = got["items"][0].as_object().unwrap();
    assert_eq!((&item["key"], &item["truncated"]), (&json!(key), &json!(false)));
    assert!(item["similarity"].is_null() && item["source_key"].is_null());
    let plain = rows(&bench.post("/embed?details=false", r#"{"inputs": "a"}"#).await);
    assert_eq!(serde_json::from_value::<Vec<f32>>(item["embedding"].clone()).unwrap(), plain[0]);
}

#[tokio::test]
async fn a_truncated_text_is_answered_and_counted() {
    let bench = Bench::new();
    let long = "word ".repeat(100);
    for _ in 0..2 {
        let got = bench.post("/embed?details=true", &json!({ "inputs": ["short", long] }).to_string()).await;
        assert_eq!(got.status, StatusCode::OK);
        assert!(got.header("cache-status").ends_with("truncated=1"));
        let items = &got.json()["items"];
        assert_eq!((&items[0]["truncated"], &items[1]["truncated"]), (&json!(false), &json!(true)));
    }
    let metrics = String::from_utf8(bench.get("/metrics").await.body).unwrap();
    assert!(metrics.contains("vecmemo_truncated_items_total 2"), "{metrics}");
}

#[tokio::test]
async fn options_of_the_inference_api_are_read_under_parameters() {
    let bench = Bench::new();
    let below = bench.post("/", r#"{"inputs": "a", "parameters": {"dimensions": 4, "prompt_name": "query"}}"#).await;
    let above = bench.post("/embed", r#"{"inputs": "a", "dimensions": 4, "prompt_name": "query"}"#).await;
    assert_eq!(rows(&below), rows(&above));
    assert!(above.header("cache-status").starts_with("vecmemo; hit"));
}

#[tokio::test]
async fn the_root_compares_a_sentence_with_others() {
    let bench = Bench::new();
    let body = r#"{"inputs": {"source_sentence": "a", "sentences": ["a", "b"]}, "parameters": {}}"#;
    let got = bench.post("/", body).await;
    let similarities: Vec<f32> = serde_json::from_slice(&got.body).unwrap();
    assert_eq!(similarities.len(), 2);
    assert!((similarities[0] - 1.0).abs() < 1e-6 && similarities[1] < 0.999);
    let v1 = bench.post("/v1", r#"{"inputs": ["a"]}"#).await;
    assert_eq!(rows(&v1).len(), 1);
}

#[tokio::test]
async fn namespaces_and_prompts_have_entries_of_their_own() {
    let bench = Bench::new();
    let plain = rows(&bench.post("/embed", r#"{"inputs": "a"}"#).await);
    let tenant = bench.post("/embed", r#"{"inputs": "a", "namespace": "tenant"}"#).await;
    assert!(tenant.header("cache-status").contains("fwd=miss"));
    assert_eq!(rows(&tenant), plain);
    let prompted = bench.post("/embed", r#"{"inputs": "a", "prompt_name": "query"}"#).await;
    assert!(prompted.header("cache-status").contains("fwd=miss"));
    assert_ne!(rows(&prompted), plain);
}

#[tokio::test]
async fn the_cache_can_be_bypassed_refreshed_or_all_there_is() {
    let bench = Bench::new();
    assert_eq!(bench.post("/embed", r#"{"inputs": "a", "cache": "bypass"}"#).await.status, StatusCode::OK);
    let missing = bench.post("/embed", r#"{"inputs": "a", "cache": "only"}"#).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    bench.post("/embed", r#"{"inputs": "a", "cache": "refresh"}"#).await;
    assert_eq!(bench.post("/embed", r#"{"inputs": "a", "cache": "only"}"#).await.status, StatusCode::OK);
    let again = bench.post("/embed", r#"{"inputs": "a", "cache": "refresh"}"#).await;
    assert!(again.header("cache-status").contains("computed=1"));
}

#[tokio::test]
async fn asking_for_reuse_is_answered_by_computing_and_says_so() {
    let bench = Bench::new();
    let got = bench.post("/embed", r#"{"inputs": "a", "reuse": {"min_similarity": 0.98}}"#).await;
    assert!(got.header("cache-status").ends_with("computed=1; truncated=0; reuse=short"));
    let mut reads_more = model();
    reads_more.card.max_tokens = 256;
    let bench = Bench::with(reads_more, vecmemo::http::Config::default());
    let long = "word ".repeat(80);
    let body = json!({"inputs": long, "reuse": {"min_similarity": 0.98, "max_violation": 0.01}}).to_string();
    let got = bench.post("/embed?details=true", &body).await;
    assert!(got.header("cache-status").ends_with("computed=1; truncated=0; reuse=uncertified"));
    assert!(got.header("server-timing").contains("reuse;dur="));
    assert_eq!(got.json()["items"][0]["certificate"], json!(null));
    for wrong in [r#"{"min_similarity": 1.5}"#, r#"{"min_similarity": 0.9, "max_violation": -1}"#, "{}"] {
        let got = bench.post("/embed", &format!(r#"{{"inputs": "a", "reuse": {wrong}}}"#)).await;
        assert_eq!(got.status, StatusCode::UNPROCESSABLE_ENTITY, "{wrong}");
    }
}

#[tokio::test]
async fn openai_answers_carry_index_and_usage_and_tolerate_nulls_and_extras() {
    let bench = Bench::new();
    let body = r#"{"input": ["one two", "three"], "model": "fake", "encoding_format": null, "dimensions": null,
        "user": null, "output_dtype": null, "whatever": {"deep": [1]}}"#;
    let first = bench.post("/v1/embeddings", body).await.json();
    assert_eq!((&first["object"], &first["model"]), (&json!("list"), &json!("fake")));
    assert_eq!((&first["data"][1]["index"], &first["data"][1]["object"]), (&json!(1), &json!("embedding")));
    assert_eq!(first["data"][0]["embedding"].as_array().unwrap().len(), DIMS);
    let tokens = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens >= 3);
    assert_eq!((&first["usage"]["total_tokens"], &first["usage"]["cached_tokens"]), (&json!(tokens), &json!(0)));
    let second = bench.post("/embeddings", body).await.json();
    assert_eq!(second["usage"], json!({ "prompt_tokens": tokens, "total_tokens": tokens, "cached_tokens": tokens }));
    assert_eq!(second["data"], first["data"]);
}

#[tokio::test]
async fn own_token_ids_are_embedded_where_the_setting_allows_them() {
    let config = vecmemo::http::Config { token_inputs: vecmemo::http::TokenInputs::Own, ..Default::default() };
    let bench = Bench::with(model(), config);
    let got = bench.post("/v1/embeddings", r#"{"input": [[1, 2], [3]]}"#).await;
    assert_eq!(got.json()["data"].as_array().unwrap().len(), 2);
    assert_eq!(got.json()["usage"]["prompt_tokens"], 3);
    let one = bench.post("/v1/embeddings", r#"{"input": [1, 2]}"#).await;
    assert!(one.header("cache-status").starts_with("vecmemo; hit"));
    let unknown = bench.post("/v1/embeddings", r#"{"input": [4000000000]}"#).await;
    assert_eq!(unknown.status, StatusCode::BAD_REQUEST);
    assert!(unknown.json()["error"]["message"].as_str().unwrap().contains("4000000000"));
}

#[tokio::test]
async fn tokenize_answers_ids_texts_and_offsets() {
    let bench = Bench::new();
    let got = bench.post("/tokenize", r#"{"inputs": ["one two", "three"], "add_special_tokens": false}"#).await.json();
    assert_eq!(got.as_array().unwrap().len(), 2);
    let token = got[0][0].as_object().unwrap();
    assert!(token["id"].is_u64() && token["text"].is_string() && token["special"].is_boolean());
    assert!(token.contains_key("start") && token.contains_key("stop"));
    assert_eq!(bench.post("/tokenize", r#"{"inputs": "one"}"#).await.json().as_array().unwrap().len(), 1);
    assert_eq!(bench.computed().await, 0);
}

#[tokio::test]
async fn lookup_says_what_is_cached_and_computes_nothing() {
    let bench = Bench::new();
    bench.post("/embed", r#"{"inputs": ["a", "b"], "ttl": 100}"#).await;
    let got = bench.post("/lookup", r#"{"inputs": ["a", "never", "b"]}"#).await.json();
    let items = got["items"].as_array().unwrap();
    let cached: Vec<bool> = items.iter().map(|item| item["cached"].as_bool().unwrap()).collect();
    assert_eq!(cached, [true, false, true]);
    assert_eq!(items[0]["tier"], "local");
    assert!(items[0]["age"].as_u64().unwrap() < 60 && (1..=100).contains(&items[0]["ttl"].as_u64().unwrap()));
    assert!(items[1].get("age").is_none());
    let keys = json!({ "keys": [items[1]["key"], items[2]["key"]] });
    let by_key = bench.post("/lookup", &keys.to_string()).await.json();
    assert_eq!((&by_key["items"][0]["cached"], &by_key["items"][1]["cached"]), (&json!(false), &json!(true)));
    assert_eq!(bench.computed().await, 2);
}

#[tokio::test]
async fn lookup_answers_rows_by_raw_keys_and_nan_where_there_is_none() {
    let bench = Bench::new();
    let raw = bench.post_for("/embed", r#"{"inputs": ["a", "b"]}"#, "application/octet-stream").await;
    let scope = bench.cache.default_scope();
    let keys: Vec<u8> =
        ["a", "never", "b"].iter().flat_map(|text| *scope.key(ContentHash::of(text)).as_bytes()).collect();
    let request = Request::post("/lookup")
        .header("content-type", "application/octet-stream")
        .header("accept", "application/octet-stream")
        .body(Body::from(keys))
        .unwrap();
    let got = bench.send(request).await;
    assert_eq!((got.status, got.header("x-missing")), (StatusCode::OK, "1"));
    assert_eq!((got.header("x-embedding-dims"), got.header("x-embedding-dtype")), ("16", "f16"));
    let row = DIMS * 2;
    assert_eq!(&got.body[..row], &raw.body[..row]);
    assert_eq!(&got.body[2 * row..], &raw.body[row..]);
    assert!(f16s(&got.body[row..2 * row]).iter().all(|value| value.is_nan()));
    let npy = bench.post_for("/lookup", r#"{"inputs": ["a", "b"]}"#, "application/x-npy").await;
    assert_eq!(npy.header("x-missing"), "");
    assert!(npy.body.ends_with(&raw.body));
}

#[tokio::test]
async fn an_entry_tells_its_facts_and_not_its_text() {
    let bench = Bench::new();
    bench.post("/embed", r#"{"inputs": "a secret", "tags": ["doc:1"], "ttl": 100}"#).await;
    let key = bench.cache.default_scope().key(ContentHash::of("a secret"));
    let got = bench.get(&format!("/entries/{key}")).await;
    assert!(!String::from_utf8_lossy(&got.body).contains("secret"));
    let facts = got.json();
    assert_eq!((&facts["key"], &facts["dims"]), (&json!(key.to_string()), &json!(DIMS)));
    assert_eq!((&facts["tags"], &facts["provenance"]), (&json!(["doc:1"]), &json!("computed")));
    assert!(facts["age"].as_u64().unwrap() < 60 && facts["ttl"].as_u64().unwrap() <= 100);
}

//! Entries' facts and ends, policies' effects and the switch, as clients see them.

use hyper::StatusCode;
use serde_json::{Value, json};
use vecmemo::domain::ContentHash;

use super::Bench;
use super::refusals::{openai, problem, tei};

fn key(bench: &Bench, text: &str) -> String {
    bench.cache.default_scope().key(ContentHash::of(text)).to_string()
}

async fn invalidate(bench: &Bench, body: Value) -> (u64, u64) {
    let got = bench.post("/invalidate", &body.to_string()).await;
    let answer = got.json();
    assert_eq!(got.status, StatusCode::OK, "{answer}");
    assert!(answer["took_ms"].as_f64().unwrap() >= 0.0);
    (answer["matched"].as_u64().unwrap(), answer["removed"].as_u64().unwrap())
}

#[tokio::test]
async fn an_entry_tells_its_ttl_pin_namespace_and_payload_and_can_be_removed_once() {
    let bench = Bench::new();
    let body = json!({ "inputs": ["a", "b"], "namespace": "tenant", "tags": ["t"], "ttl": 100, "pinned": true,
        "payload": [{ "page": 3 }, null] });
    let told = bench.post("/embed?details=true", &body.to_string()).await.json();
    let keys = [0, 1].map(|index| told["items"][index]["key"].as_str().unwrap().to_owned());
    let facts = bench.get(&format!("/entries/{}", keys[0])).await.json();
    assert_eq!(
        (&facts["pinned"], &facts["stale"], &facts["namespace"]),
        (&json!(true), &json!(false), &json!("tenant"))
    );
    assert_eq!((&facts["payload"], &facts["tags"]), (&json!({ "page": 3 }), &json!(["t"])));
    assert!((1..=100).contains(&facts["ttl"].as_u64().unwrap()));
    let other = bench.get(&format!("/entries/{}", keys[1])).await.json();
    assert_eq!((&other["payload"], &other["pinned"]), (&json!(null), &json!(true)));

    let removed = bench.delete(&format!("/entries/{}", keys[0])).await;
    assert_eq!((removed.status, removed.json()), (StatusCode::OK, json!({ "removed": true })));
    problem(&bench.delete(&format!("/entries/{}", keys[0])).await, 404, &["nothing is cached", &keys[0]]);
    problem(&bench.get(&format!("/entries/{}", keys[0])).await, 404, &["nothing is cached"]);
    problem(&bench.delete("/entries/short").await, 400, &["64 hexadecimal digits"]);
    assert_eq!(bench.get(&format!("/entries/{}", keys[1])).await.status, StatusCode::OK);
}

#[tokio::test]
async fn openai_clients_can_keep_payloads_and_pin_too() {
    let bench = Bench::new();
    bench.post("/v1/embeddings", r#"{"input": "a", "payload": "a string", "pinned": true, "tags": null}"#).await;
    let facts = bench.get(&format!("/entries/{}", key(&bench, "a"))).await.json();
    assert_eq!(
        (&facts["payload"], &facts["pinned"], &facts["namespace"]),
        (&json!("a string"), &json!(true), &json!(""))
    );
    bench.post("/v1/embeddings", r#"{"input": "b", "payload": null, "pinned": null}"#).await;
    let facts = bench.get(&format!("/entries/{}", key(&bench, "b"))).await.json();
    assert_eq!((&facts["payload"], &facts["pinned"]), (&json!(null), &json!(false)));
}

#[tokio::test]
async fn a_payload_or_pin_that_makes_no_sense_is_refused_by_name() {
    let bench = Bench::new();
    let long = format!(r#"{{"inputs": "a", "payload": "{}"}}"#, "x".repeat(4095));
    tei(&bench.post("/embed", &long).await, 422, &["payload: ", "at most 4096 bytes", "4097"]);
    let three = r#"{"inputs": ["a", "b"], "payload": [1, 2, 3]}"#;
    tei(&bench.post("/embed", three).await, 422, &["payload: ", "one for each input: 2, not 3"]);
    tei(&bench.post("/embed", r#"{"inputs": "a", "pinned": "yes"}"#).await, 422, &["pinned: ", "a boolean"]);
    openai(&bench.post("/v1/embeddings", r#"{"input": "a", "pinned": 1}"#).await, 400, &["pinned: "]);
    openai(&bench.post("/v1/embeddings", r#"{"input": "a", "payload": [1, 2]}"#).await, 400, &["payload: "]);
    tei(&bench.post("/embed", r#"{"inputs": "a", "payload": {"a": 1}, "nonsense": 1}"#).await, 422, &["nonsense"]);
    tei(&bench.post("/embed", r#"{"inputs": "a", "payload": {"a": 1,}}"#).await, 400, &["not valid JSON"]);
    assert_eq!(bench.computed().await, 0);
}

#[tokio::test]
async fn an_invalidation_counts_removes_or_marks_by_every_selector() {
    let bench = Bench::new();
    bench.post("/embed", r#"{"inputs": ["a", "b"], "tags": ["doc:1"]}"#).await;
    bench.post("/embed", r#"{"inputs": ["c"], "tags": ["doc:2"], "namespace": "n"}"#).await;
    bench.post("/embed", r#"{"inputs": ["d"], "prompt_name": "query"}"#).await;
    let fingerprint = bench.cache.card().version.to_string();
    for (selector, expected) in [
        (json!({ "keys": [key(&bench, "a"), key(&bench, "absent")] }), 1),
        (json!({ "inputs": ["a", "d", "absent"] }), 2),
        (json!({ "inputs": "c", "namespace": "n" }), 1),
        (json!({ "inputs": "c" }), 0),
        (json!({ "tags": ["doc:1", "doc:2"] }), 3),
        (json!({ "tag_glob": "doc:*", "namespace": "" }), 2),
        (json!({ "namespace": "n" }), 1),
        (json!({ "model": "fake" }), 4),
        (json!({ "model": fingerprint, "tags": ["doc:2"] }), 1),
        (json!({ "older_than": 1000 }), 0),
    ] {
        let mut counting = selector.clone();
        counting["dry_run"] = json!(true);
        assert_eq!(invalidate(&bench, counting).await, (expected, 0), "{selector}");
    }
    assert_eq!(invalidate(&bench, json!({ "tags": ["doc:1"], "mode": "soft" })).await, (2, 0));
    let facts = bench.get(&format!("/entries/{}", key(&bench, "a"))).await.json();
    assert_eq!(facts["stale"], json!(true));
    let hit = bench.post("/embed", r#"{"inputs": ["a", "b"], "cache": "only"}"#).await;
    assert!(
        hit.header("cache-status").starts_with("vecmemo; hit") && hit.header("cache-status").ends_with("; stale=2")
    );
    assert_eq!(invalidate(&bench, json!({ "tags": ["doc:1"], "mode": "hard", "inputs": ["a"] })).await, (1, 1));
    assert_eq!(bench.post("/embed", r#"{"inputs": "a", "cache": "only"}"#).await.status, StatusCode::NOT_FOUND);
    assert_eq!(invalidate(&bench, json!({ "model": "fake" })).await, (3, 3));
    assert_eq!(bench.get("/stats").await.json()["store"]["entries"], 0);
}

#[tokio::test]
async fn an_invalidation_that_makes_no_sense_is_refused_by_name_and_removes_nothing() {
    let bench = Bench::new();
    bench.post("/embed", r#"{"inputs": ["a"], "tags": ["t"]}"#).await;
    for (body, status, words) in [
        (json!({}), 422, ["nothing says which entries", "tag_glob"]),
        (json!({ "dry_run": true, "mode": "soft", "tags": null }), 422, ["nothing says which entries", "older_than"]),
        (json!({ "tag": ["t"] }), 422, ["tag: ", "unknown field `tag`"]),
        (json!({ "tags": [] }), 422, ["tags: ", "at least one"]),
        (json!({ "tags": [""] }), 422, ["tags[0]: ", "256"]),
        (json!({ "keys": [] }), 400, ["keys", "empty"]),
        (json!({ "keys": ["zz"] }), 422, ["keys[0]: ", "64 hexadecimal digits"]),
        (json!({ "inputs": [] }), 400, ["inputs", "empty"]),
        (json!({ "tag_glob": "" }), 422, ["tag_glob: ", "256"]),
        (json!({ "namespace": "a b" }), 422, ["namespace: ", "letters"]),
        (json!({ "model": "another" }), 404, ["another", "fake"]),
        (json!({ "older_than": -1 }), 422, ["older_than: ", "-1"]),
        (json!({ "older_than": 1_576_800_001_u64 }), 422, ["older_than: ", "1576800000"]),
        (json!({ "tags": ["t"], "mode": "medium" }), 422, ["mode: ", "medium"]),
        (json!({ "tags": ["t"], "dry_run": "no" }), 422, ["dry_run: ", "boolean"]),
        (json!({ "tags": ["t"], "reason": "x".repeat(201) }), 422, ["reason: ", "200"]),
    ] {
        problem(&bench.post("/invalidate", &body.to_string()).await, status, &words);
    }
    assert_eq!(bench.get("/invalidate").await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(bench.get("/stats").await.json()["store"]["entries"], 1);
}

#[tokio::test]
async fn cache_status_tells_the_ttl_of_the_hits() {
    let bench = Bench::new();
    bench.post("/embed", r#"{"inputs": "a", "ttl": 5000}"#).await;
    bench.post("/embed", r#"{"inputs": "b", "ttl": 100}"#).await;
    bench.post("/embed", r#"{"inputs": "c"}"#).await;
    let got = bench.post("/embed", r#"{"inputs": ["a", "b", "c"]}"#).await;
    let status = got.header("cache-status");
    let ttl: u64 = status.split("; ttl=").nth(1).unwrap().parse().unwrap();
    assert!(status.starts_with("vecmemo; hit; items=3;") && (90..=100).contains(&ttl), "{status}");
    assert!(!bench.post("/embed", r#"{"inputs": "c"}"#).await.header("cache-status").contains("ttl"));
    let bypassed = bench.post("/embed", r#"{"inputs": "a", "cache": "bypass"}"#).await;
    assert!(bypassed.header("cache-status").starts_with("vecmemo; fwd=bypass; items=1; hits=0;"));
}

#[tokio::test]
async fn the_cache_is_switched_off_and_on_again() {
    let bench = Bench::new();
    bench.post("/embed", r#"{"inputs": "a"}"#).await;
    assert_eq!(bench.get("/admin/cache").await.json(), json!({ "enabled": true }));
    let off = bench.put("/admin/cache", r#"{"enabled": false}"#).await;
    assert_eq!((off.status, off.json()), (StatusCode::OK, json!({ "enabled": false })));
    let computed = bench.post("/embed", r#"{"inputs": "a"}"#).await;
    assert!(computed.header("cache-status").starts_with("vecmemo; fwd=bypass; items=1; hits=0;"));
    let ready = bench.get("/ready").await;
    assert_eq!(
        (ready.status, &ready.json()["cache"], &ready.json()["store"]),
        (StatusCode::OK, &json!("off"), &json!("ok"))
    );
    assert_eq!(bench.get("/stats").await.json()["cache_enabled"], json!(false));
    let metrics = String::from_utf8(bench.get("/metrics").await.body).unwrap();
    assert!(metrics.contains("vecmemo_cache_enabled 0"), "{metrics}");
    bench.put("/admin/cache", r#"{"enabled": true}"#).await;
    let hit = bench.post("/embed", r#"{"inputs": "a"}"#).await;
    assert!(hit.header("cache-status").starts_with("vecmemo; hit"));

    problem(&bench.put("/admin/cache", "{}").await, 422, &["enabled"]);
    problem(&bench.put("/admin/cache", r#"{"enabled": 0}"#).await, 422, &["enabled: "]);
    problem(&bench.put("/admin/cache", r#"{"enabled": true, "until": 1}"#).await, 422, &["until"]);
}

#[tokio::test]
async fn stats_count_ages_when_they_are_asked_to() {
    let bench = Bench::new();
    bench.post("/embed", r#"{"inputs": ["a", "b"]}"#).await;
    assert!(bench.get("/stats").await.json().get("ages").is_none());
    let stats = bench.get("/stats?ages=true").await.json();
    assert_eq!((&stats["ages"]["minute"], &stats["ages"]["older"]), (&json!(2), &json!(0)));
    assert_eq!(
        (&stats["windows"]["15m"]["items"]["computed"], &stats["windows"]["15m"]["seconds"]),
        (&json!(2), &json!(900))
    );
    assert_eq!((&stats["tiers"]["local"]["hits"], &stats["evictions"]["capacity"]), (&json!(0), &json!(0)));
    assert!(stats["memory"]["accounted_bytes"].is_u64() && stats["store"]["live_bytes"].is_u64());
    problem(&bench.get("/stats?ages=some").await, 400, &["ages", "true or false"]);
}

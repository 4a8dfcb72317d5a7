//! What a tenant may have, and what it is told when it has had that.

use std::time::Instant;

use hyper::StatusCode;
use serde_json::json;
use vecmemo::access::{Limits, Rules, Scope};

use super::Got;
use super::keys::{Keyed, Wanted, keys};
use super::refusals::{openai, problem, tei};

const WORK: &[Scope] = &[Scope::Embed, Scope::Search, Scope::Invalidate];
const KEYS: [Wanted<'_>; 4] = [("a", "a", WORK), ("b", "b", WORK), ("plain", "", WORK), ("operator", "", &Scope::ALL)];

/// Tenant `a` has limits, the others have none.
fn limited(limits: Limits) -> Keyed {
    let mut keyed = Keyed::new(&KEYS, &["shared"]);
    let (keys, tokens) = keys(&KEYS, &["shared"], None);
    keyed.access.replace(Rules { keys, limits: [("a".to_owned(), limits)].into() });
    keyed.tokens = tokens;
    keyed
}

async fn embed(keyed: &Keyed, id: &str, text: &str) -> Got {
    keyed.post(id, "/embed", &json!({ "inputs": text }).to_string()).await
}

#[tokio::test]
async fn requests_come_at_the_rate_and_a_seconds_worth_at_once() {
    const RATE: u64 = 20;
    let keyed = limited(Limits { requests_per_second: Some(RATE), ..Limits::default() });
    let began = Instant::now();
    let (mut answered, mut refused) = (0, None);
    while refused.is_none() {
        let got = embed(&keyed, "a", "a").await;
        if got.status == StatusCode::OK {
            assert_eq!(got.header("ratelimit-policy"), "\"requests\";q=20;w=1");
            assert!(got.header("ratelimit").starts_with("\"requests\";r="), "{}", got.header("ratelimit"));
            answered += 1;
        } else {
            refused = Some(got);
        }
        assert!(began.elapsed().as_secs() < 60, "nothing is ever refused");
    }
    let most = RATE as f64 * (1.0 + began.elapsed().as_secs_f64()) + 1.0;
    assert!(answered >= RATE && f64::from(answered as u32) <= most, "{answered} in {:?}", began.elapsed());
    let refused = refused.unwrap();
    tei(&refused, 429, &["20 requests a second"]);
    assert!(refused.header("ratelimit").starts_with("\"requests\";r=0;t="), "{}", refused.header("ratelimit"));
    assert_eq!(refused.header("retry-after"), "1");
    assert!((1..=1000).contains(&refused.header("retry-after-ms").parse::<u64>().unwrap()));
    // The others have their own.
    for id in ["b", "plain", "operator"] {
        for _ in 0..2 * RATE {
            let got = embed(&keyed, id, "a").await;
            assert!(got.status == StatusCode::OK && !got.headers.contains_key("ratelimit"), "{id}");
        }
    }
}

#[tokio::test]
async fn tokens_are_paid_for_when_they_were_computed_and_hits_are_free() {
    let keyed = limited(Limits { tokens_per_second: Some(10), ..Limits::default() });
    let inputs: Vec<String> = (0..100).map(|number| format!("a text, the number {number}")).collect();
    let all = json!({ "inputs": inputs }).to_string();
    assert_eq!(keyed.post("a", "/embed", &all).await.status, StatusCode::OK);
    // Now it owes a minute's worth.
    let refused = embed(&keyed, "a", "another").await;
    tei(&refused, 429, &["10 tokens a second"]);
    assert!(refused.header("ratelimit").starts_with("\"tokens\";r=0;t="));
    assert!(refused.header("retry-after").parse::<u64>().unwrap() > 10, "{}", refused.header("retry-after"));
    let body = json!({ "input": "another" }).to_string();
    openai(&keyed.post("a", "/v1/embeddings", &body).await, 429, &["tokens a second"]);
    problem(&keyed.post("a", "/search", r#"{"inputs": "another"}"#).await, 429, &["tokens a second"]);
    for body in [json!({ "inputs": "x", "cache": "bypass" }), json!({ "inputs": inputs[0], "cache": "refresh" })] {
        tei(&keyed.post("a", "/embed", &body.to_string()).await, 429, &["tokens a second"]);
    }
    // What is refused before anything is computed costs nothing.
    let fresh = limited(Limits { tokens_per_second: Some(10), ..Limits::default() });
    let body = json!({ "inputs": inputs, "prompt_name": "none such" }).to_string();
    problem(&fresh.post("a", "/search", &body).await, 422, &["none such"]);
    assert_eq!(embed(&fresh, "a", "another").await.status, StatusCode::OK);
    // What it has it may go on using.
    assert_eq!(keyed.post("a", "/embed", &all).await.status, StatusCode::OK);
    assert_eq!(embed(&keyed, "b", "another").await.status, StatusCode::OK);
    let used = keyed.get("a", "/stats").await.json();
    assert_eq!((&used["used"]["items"], &used["used"]["hits"]), (&json!(200), &json!(100)));
    assert_eq!(used["used"]["tokens"], json!(2 * used["used"]["tokens_computed"].as_u64().unwrap()));
    assert_eq!((&used["used"]["refused"], &used["limits"]["tokens_per_second"]), (&json!(5), &json!(10)));
    let metrics = String::from_utf8(keyed.get("operator", "/metrics").await.body).unwrap();
    assert!(metrics.contains("vecmemo_tenant_refused_total{tenant=\"a\"} 5"), "{metrics}");
}

#[tokio::test]
async fn entries_are_bounded_by_tenant_and_what_is_kept_is_answered() {
    let keyed = limited(Limits { entries_max: Some(5), ..Limits::default() });
    let body = |from: usize, to: usize| {
        json!({ "inputs": (from..to).map(|number| format!("text {number}")).collect::<Vec<_>>() }).to_string()
    };
    assert_eq!(keyed.post("a", "/embed", &body(0, 4)).await.status, StatusCode::OK);
    let got = keyed.post("a", "/embed", &body(4, 6)).await;
    tei(&got, 429, &["5 entries"]);
    assert!(!got.headers.contains_key("retry-after"), "time does not help");
    let got = keyed.post("a", "/v1/embeddings", r#"{"input": ["x", "y"]}"#).await;
    openai(&got, 429, &["5 entries"]);
    assert_eq!(got.json()["error"]["type"], "insufficient_quota");
    assert_eq!(keyed.post("a", "/embed", &body(4, 5)).await.status, StatusCode::OK);
    assert_eq!(keyed.post("a", "/embed", &body(5, 6)).await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(keyed.post("a", "/embed", &body(0, 5)).await.status, StatusCode::OK, "all of it is cached");
    let bypass = json!({ "inputs": "x", "cache": "bypass" }).to_string();
    assert_eq!(keyed.post("a", "/embed", &bypass).await.status, StatusCode::OK, "nothing is kept of it");
    // The public namespace is nobody's, and the others' entries are not counted.
    let public = json!({ "inputs": ["x", "y"], "namespace": "shared" }).to_string();
    assert_eq!(keyed.post("a", "/embed", &public).await.status, StatusCode::OK);
    assert_eq!(keyed.post("b", "/embed", &body(0, 20)).await.status, StatusCode::OK);
    assert_eq!(keyed.post("a", "/invalidate", r#"{"inputs": ["text 0", "text 1"]}"#).await.json()["removed"], 2);
    assert_eq!(keyed.post("a", "/embed", &body(5, 7)).await.status, StatusCode::OK);
    let held = keyed.get("a", "/stats").await.json();
    assert_eq!((&held["entries"], &held["limits"]["entries_max"]), (&json!(5), &json!(5)));
}

#[tokio::test]
async fn bytes_are_bounded_too() {
    let entry_bytes = Keyed::new(&KEYS, &[]).bench.cache.entry_bytes();
    let keyed = limited(Limits { bytes_max: Some(2 * entry_bytes), ..Limits::default() });
    assert_eq!(embed(&keyed, "a", "one").await.status, StatusCode::OK);
    assert_eq!(embed(&keyed, "a", "two").await.status, StatusCode::OK);
    tei(&embed(&keyed, "a", "three").await, 429, &["bytes"]);
    assert_eq!(keyed.get("a", "/stats").await.json()["bytes"], json!(2 * entry_bytes));
}

/// Many at once cannot keep more together than one after another could.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_at_once_do_not_exceed_a_bound_together() {
    let keyed = std::sync::Arc::new(limited(Limits { entries_max: Some(10), ..Limits::default() }));
    let asking: Vec<_> = (0..40)
        .map(|number| {
            let keyed = std::sync::Arc::clone(&keyed);
            tokio::spawn(async move { embed(&keyed, "a", &format!("text {number}")).await.status })
        })
        .collect();
    let mut answered = 0;
    for asked in asking {
        answered += usize::from(asked.await.unwrap() == StatusCode::OK);
    }
    assert!((1..=10).contains(&answered), "{answered}");
    assert_eq!(keyed.get("a", "/stats").await.json()["entries"].as_u64(), Some(answered as u64));
}

#[tokio::test]
async fn namespaces_are_bounded_because_each_is_kept_for_ever() {
    let keyed = limited(Limits { namespaces_max: Some(2), ..Limits::default() });
    let ask = |id: &'static str, namespace: &str| {
        let body = json!({ "inputs": "a", "namespace": namespace }).to_string();
        let keyed = &keyed;
        async move { keyed.post(id, "/embed", &body).await }
    };
    for namespace in ["", "x", "x"] {
        assert_eq!(ask("a", namespace).await.status, StatusCode::OK);
    }
    tei(&ask("a", "y").await, 429, &["2 namespaces"]);
    assert_eq!((ask("a", "shared").await.status, ask("b", "y").await.status), (StatusCode::OK, StatusCode::OK));
    assert_eq!(ask("a", "x").await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_a_tenant_asks_to_be_pinned_is_in_its_own_namespaces_only() {
    let keyed = limited(Limits { entries_max: Some(10), ..Limits::default() });
    for (id, namespace, pinned) in [("a", "shared", false), ("a", "x", true), ("operator", "shared", true)] {
        let body = json!({ "inputs": id, "namespace": namespace, "pinned": true }).to_string();
        let got = keyed.post(id, "/embed?details=true", &body).await;
        let key = got.json()["items"][0]["key"].as_str().unwrap().to_owned();
        let facts = keyed.get("operator", &format!("/entries/{key}")).await.json();
        assert_eq!(facts["pinned"], json!(pinned), "{id}, {namespace}: {facts}");
    }
}

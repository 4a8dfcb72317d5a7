//! `POST /search` and `GET /similar`: what is nearest, of what is meant, page by page.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::refusals::problem;
use super::{Bench, DIMS};

/// Embeds texts with what is to be kept beside them; answers their keys and vectors.
async fn embed(bench: &Bench, texts: &[String], others: Value) -> Vec<(String, Vec<f64>)> {
    let mut body = others;
    body["inputs"] = json!(texts);
    let answer = bench.post("/embed?details=true", &body.to_string()).await.json();
    let items = answer["items"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let vector =
        |item: &Value| item["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    items.iter().map(|item| (item["key"].as_str().unwrap().to_owned(), vector(item))).collect()
}

fn texts(names: std::ops::Range<usize>) -> Vec<String> {
    names.map(|number| format!("text number {number}")).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

async fn search(bench: &Bench, body: Value) -> Value {
    let got = bench.post("/search", &body.to_string()).await;
    assert_eq!(got.status.as_u16(), 200, "{}", got.json());
    got.json()
}

fn keys(found: &Value) -> Vec<&str> {
    found.as_array().unwrap().iter().map(|entry| entry["key"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_nearest_come_first_with_their_similarity_and_what_they_were_stored_with() {
    let bench = Bench::new();
    let stored = embed(&bench, &texts(0..200), json!({ "tags": ["a", "b"], "payload": { "id": 7 } })).await;
    let query: Vec<f64> = (0..DIMS).map(|dim| (dim as f64 * 1.7).sin()).collect();
    let mut expected: Vec<(f64, &str)> =
        stored.iter().map(|(key, vector)| (cosine(&query, vector), key.as_str())).collect();
    expected.sort_by(|a, b| b.0.total_cmp(&a.0));

    let answer = search(&bench, json!({ "vectors": [query], "k": 20 })).await;
    assert_eq!((&answer["path"], &answer["device"]), (&json!("exact"), &json!("cpu")));
    let found = &answer["results"][0];
    assert_eq!(keys(found), expected[..20].iter().map(|(_, key)| *key).collect::<Vec<_>>());
    for (entry, (cosine, _)) in found.as_array().unwrap().iter().zip(&expected) {
        // The vectors are of f16, whose length is one to a few ten-thousandths.
        assert!((entry["similarity"].as_f64().unwrap() - cosine).abs() < 5e-4, "{entry} {cosine}");
        assert_eq!((&entry["tags"], &entry["payload"]), (&json!(["a", "b"]), &json!({ "id": 7 })));
    }
    // By default ten; as many lists as queries, in order.
    let answer = search(&bench, json!({ "keys": [stored[3].0, stored[9].0] })).await;
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.iter().map(|found| keys(found)[0]).collect::<Vec<_>>(), [&stored[3].0, &stored[9].0]);
    assert!(results.iter().all(|found| keys(found).len() == 10));
    assert!(answer.get("cursor").is_none());
    assert_eq!(bench.get("/stats").await.json()["index"]["entries"], json!(200));
}

#[tokio::test]
async fn a_query_finds_the_entry_of_its_own_text_and_is_not_kept_itself() {
    let bench = Bench::new();
    let stored = embed(&bench, &texts(0..30), json!({})).await;
    let answer = search(&bench, json!({ "inputs": ["text number 7", "never seen"], "k": 3 })).await;
    assert_eq!(keys(&answer["results"][0])[0], stored[7].0);
    assert!(answer["results"][0][0]["similarity"].as_f64().unwrap() > 0.999);
    assert_eq!(keys(&answer["results"][1]).len(), 3);
    let looked = bench.post("/lookup", r#"{"inputs": ["never seen"]}"#).await.json();
    assert_eq!(looked["items"][0]["cached"], json!(false));
    assert_eq!(bench.get("/stats").await.json()["store"]["entries"], json!(30));
}

#[tokio::test]
async fn what_was_answered_before_is_found_and_what_was_removed_is_not() {
    let bench = Bench::new();
    assert_eq!(search(&bench, json!({ "inputs": "text number 0" })).await["results"], json!([[]]));
    for number in 0..50 {
        let stored = embed(&bench, &texts(number..number + 1), json!({})).await;
        let answer = search(&bench, json!({ "inputs": format!("text number {number}"), "k": 1 })).await;
        assert_eq!(keys(&answer["results"][0]), [&stored[0].0]);
    }
    let answer = search(&bench, json!({ "inputs": "text number 4", "k": 2 })).await;
    let nearest = keys(&answer["results"][0])[0].to_owned();
    bench.delete(&format!("/entries/{nearest}")).await;
    let answer = search(&bench, json!({ "inputs": "text number 4", "k": 1000 })).await;
    assert!(keys(&answer["results"][0]).len() == 49 && !keys(&answer["results"][0]).contains(&&*nearest));
    bench.post("/invalidate", r#"{"namespace": ""}"#).await;
    assert_eq!(search(&bench, json!({ "inputs": "text number 4" })).await["results"], json!([[]]));
}

#[tokio::test]
async fn only_entries_that_meet_everything_that_is_given_are_found() {
    let bench = Bench::new();
    let plain = embed(&bench, &texts(0..20), json!({})).await;
    let red = embed(&bench, &texts(20..40), json!({ "tags": ["red"] })).await;
    let other = embed(&bench, &texts(40..60), json!({ "tags": ["red", "blue"], "namespace": "other" })).await;
    let query = [1.0, -1.0].repeat(DIMS / 2);
    let found = async |given: Value| {
        let mut body = given;
        body["vectors"] = json!([query]);
        body["k"] = json!(1000);
        let answer = search(&bench, body).await;
        keys(&answer["results"][0]).into_iter().map(str::to_owned).collect::<BTreeSet<String>>()
    };
    let of =
        |groups: &[&[(String, Vec<f64>)]]| groups.concat().into_iter().map(|(key, _)| key).collect::<BTreeSet<_>>();
    assert_eq!(found(json!({})).await, of(&[&plain, &red, &other]));
    assert_eq!(found(json!({ "exact": true, "newer_than": 3600 })).await, of(&[&plain, &red, &other]));
    assert_eq!(found(json!({ "older_than": 3600 })).await, of(&[]));
    assert_eq!(found(json!({ "older_than": 10, "newer_than": 5 })).await, of(&[]));
    assert_eq!(found(json!({ "namespace": "" })).await, of(&[&plain, &red]));
    assert_eq!(found(json!({ "namespace": "other" })).await, of(&[&other]));
    assert_eq!(found(json!({ "namespace": "nobody" })).await, of(&[]));
    assert_eq!(found(json!({ "tags": ["red"] })).await, of(&[&red, &other]));
    assert_eq!(found(json!({ "tags": ["blue", "nothing"] })).await, of(&[&other]));
    assert_eq!(found(json!({ "tags": ["red"], "namespace": "" })).await, of(&[&red]));
    assert_eq!(found(json!({ "tags": ["nothing"] })).await, of(&[]));
    let near = found(json!({ "min_similarity": 0.1 })).await;
    for (key, vector) in [plain, red, other].concat() {
        let cosine = cosine(&query, &vector);
        assert!((cosine - 0.1).abs() < 5e-4 || near.contains(&key) == (cosine > 0.1), "{cosine}");
    }
}

#[tokio::test]
async fn pages_show_each_entry_once_and_none_that_came_after_the_first() {
    let bench = Bench::new();
    let stored = embed(&bench, &texts(0..100), json!({})).await;
    let all = search(&bench, json!({ "inputs": "a query", "k": 1000 })).await;
    let mut seen: Vec<String> = Vec::new();
    let mut cursor = Value::Null;
    for page in 0.. {
        let mut body = json!({ "inputs": "a query", "k": 7 });
        if !cursor.is_null() {
            body["cursor"] = cursor;
        }
        let mut answer = search(&bench, body).await;
        seen.extend(keys(&answer["results"][0]).into_iter().map(str::to_owned));
        cursor = answer["cursor"].take();
        if cursor.is_null() {
            assert_eq!(page, 100 / 7);
            break;
        }
        embed(&bench, &texts(1000 + page..1001 + page), json!({})).await;
    }
    assert_eq!(seen, keys(&all["results"][0]));
    assert_eq!(seen.len(), stored.len());
}

#[tokio::test]
async fn what_is_similar_to_an_entry_is_not_the_entry_itself() {
    let bench = Bench::new();
    let stored = embed(&bench, &texts(0..30), json!({})).await;
    let key = &stored[5].0;
    let near = search(&bench, json!({ "keys": key, "k": 4 })).await;
    let got = bench.get(&format!("/similar?key={key}&k=3&model=fake")).await.json();
    assert_eq!(keys(&got["results"][0]), keys(&near["results"][0])[1..]);
    assert_eq!(keys(&near["results"][0])[0], key);
    assert_eq!(keys(&bench.get(&format!("/similar?key={key}&k=1000")).await.json()["results"][0]).len(), 29);
    let least = near["results"][0][2]["similarity"].as_f64().unwrap() - 1e-6;
    let got = bench.get(&format!("/similar?key={key}&min_similarity={least}")).await.json();
    assert_eq!(keys(&got["results"][0]).len(), 2);
    problem(&bench.get(&format!("/similar?key={}", "0".repeat(64))).await, 404, &["not cached"]);
    problem(&bench.get("/similar?k=3").await, 400, &["key"]);
    problem(&bench.get(&format!("/similar?key={key}&k=0")).await, 400, &["k", "between 1 and 1000"]);
}

#[tokio::test]
async fn a_search_that_cannot_be_is_refused_and_says_what_to_change() {
    let bench = Bench::new();
    let stored = embed(&bench, &texts(0..3), json!({})).await;
    let (key, vector, two) = (&stored[0].0, vec![1.0; DIMS], vec![vec![1.0; DIMS]; 2]);
    let refusals = [
        (json!({}), 422, "inputs, vectors or keys is needed"),
        (json!({ "inputs": "a", "keys": [key] }), 422, "one of them only"),
        (json!({ "inputs": [] }), 400, "inputs is empty"),
        (json!({ "vectors": [] }), 400, "vectors is empty"),
        (json!({ "inputs": "a", "k": 0 }), 422, "0 is not between 1 and 1000"),
        (json!({ "inputs": "a", "k": 1001 }), 422, "between 1 and 1000"),
        (json!({ "vectors": vec![&vector; 100], "k": 200 }), 422, "between 1 and 163"),
        (json!({ "inputs": "a", "min_similarity": 1.5 }), 422, "not between -1 and 1"),
        (json!({ "inputs": "a", "tags": [] }), 422, "at least one tag"),
        (json!({ "inputs": "a", "older_than": u64::MAX }), 422, "an age has at most"),
        (json!({ "inputs": "a", "cursor": "what" }), 422, "no cursor that an answer gave"),
        (json!({ "inputs": "a", "cursor": "é".repeat(44) }), 422, "no cursor that an answer gave"),
        (json!({ "vectors": two, "cursor": "0".repeat(88) }), 422, "only a single query has pages"),
        (json!({ "vectors": [[1.0, 2.0]] }), 422, "has 16 values, this one has 2"),
        (json!({ "vectors": [vec![0.0; DIMS]] }), 422, "cannot be used"),
        (json!({ "vectors": [["a"]] }), 422, "vectors"),
        (json!({ "keys": ["abc"] }), 422, "keys[0]"),
        (json!({ "keys": [key, "0".repeat(64)] }), 404, "not cached"),
        (json!({ "inputs": "a", "prompt_name": "none" }), 422, "no prompt named"),
        (json!({ "inputs": "a", "model": "none" }), 404, "is not served here"),
        (json!({ "inputs": "a", "nearest": 3 }), 422, "nearest"),
    ];
    for (body, status, words) in refusals {
        problem(&bench.post("/search", &body.to_string()).await, status, &[words]);
    }
    bench.cache.set_enabled(false);
    assert_eq!(search(&bench, json!({ "vectors": [vector] })).await["results"], json!([[]]));
}

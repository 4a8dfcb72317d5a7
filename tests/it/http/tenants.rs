//! What one tenant can see of another, route by route: nothing.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use statrs::distribution::{ContinuousCDF, Normal};
use vecmemo::access::{Access, Scope};
use vecmemo::batch;
use vecmemo::cache::{Catalogue, EventRule, EventRules};
use vecmemo::engine::{Engine, EngineError, Model};
use vecmemo::http::{Config, Service};

use super::keys::{Keyed, Wanted, keys};
use super::refusals::problem;
use super::{Bench, DIMS, Got, cache_of, model};

const WORK: &[Scope] = &[Scope::Embed, Scope::Search, Scope::Invalidate];

/// Two tenants, a key that is no tenant's, and the operator's.
const KEYS: [Wanted<'_>; 4] = [("a", "a", WORK), ("b", "b", WORK), ("plain", "", WORK), ("operator", "", &Scope::ALL)];

/// What the owner of a key keeps, and under which keys.
async fn keep(keyed: &Keyed, id: &str, body: Value) -> Vec<String> {
    let got = keyed.post(id, "/embed?details=true", &body.to_string()).await;
    let answer = got.json();
    assert_eq!(got.status, StatusCode::OK, "{answer}");
    let items = answer["items"].as_array().unwrap();
    items.iter().map(|item| item["key"].as_str().unwrap().to_owned()).collect()
}

async fn ask(keyed: &Keyed, id: &str, path: &str, body: Value) -> Value {
    let got = keyed.post(id, path, &body.to_string()).await;
    assert_eq!(got.status, StatusCode::OK, "{path} {body}: {}", got.json());
    got.json()
}

async fn is_cached(keyed: &Keyed, id: &str, text: &str, namespace: &str) -> bool {
    let answer = ask(keyed, id, "/lookup", json!({ "inputs": [text], "namespace": namespace })).await;
    answer["items"][0]["cached"].as_bool().unwrap()
}

async fn matched(keyed: &Keyed, id: &str, body: Value) -> u64 {
    ask(keyed, id, "/invalidate", body).await["matched"].as_u64().unwrap()
}

#[tokio::test]
async fn one_text_is_an_entry_of_its_own_for_each_tenant_and_for_those_without() {
    let keyed = Keyed::new(&KEYS, &[]);
    for namespace in ["", "x"] {
        let mut found = Vec::new();
        for id in ["a", "b", "plain"] {
            for path in ["/embed", "/"] {
                let only = json!({ "inputs": "a secret", "namespace": namespace, "cache": "only" });
                let got = keyed.post(id, path, &only.to_string()).await;
                assert_eq!(got.status, StatusCode::NOT_FOUND, "{id} at {path}");
            }
            assert!(!is_cached(&keyed, id, "a secret", namespace).await);
            let body = json!({ "inputs": ["a secret"], "namespace": namespace }).to_string();
            let first = keyed.post(id, "/embed?details=true", &body).await.json();
            assert_eq!(first["items"][0]["status"], "computed", "{id} {first}");
            let again = keyed.post(id, "/embed?details=true", &body).await.json();
            assert_eq!(
                (&again["items"][0]["status"], is_cached(&keyed, id, "a secret", namespace).await),
                (&json!("hit"), true)
            );
            found.push(first["items"][0]["key"].clone());
        }
        found.dedup();
        assert_eq!(found.len(), 3, "{found:?}");
    }
    // The operator and those without a tenant share what there was before there were tenants.
    assert!(
        is_cached(&keyed, "operator", "a secret", "x").await && is_cached(&keyed, "operator", "a secret", "a/x").await
    );
    for id in ["a", "b", "plain"] {
        let got = keyed.post(id, "/lookup", r#"{"inputs": ["a secret"], "namespace": "b/x"}"#).await;
        assert_eq!(got.status, StatusCode::UNPROCESSABLE_ENTITY, "{id}");
    }
    let openai = json!({ "input": "a secret", "namespace": "x" }).to_string();
    let got = keyed.post("b", "/v1/embeddings", &openai).await;
    assert_eq!(got.json()["usage"]["cached_tokens"], got.json()["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn another_spelling_of_another_tenants_text_is_computed() {
    let keyed = Keyed::new(&KEYS, &[]);
    keep(&keyed, "a", json!({ "inputs": ["one  two"] })).await;
    let statuses = |got: Got| got.json()["items"][0]["status"].as_str().unwrap().to_owned();
    let body = r#"{"inputs": ["one two"]}"#;
    assert_eq!(statuses(keyed.post("b", "/embed?details=true", body).await), "computed");
    assert_eq!(statuses(keyed.post("a", "/embed?details=true", body).await), "token_hit");
}

#[tokio::test]
async fn a_key_of_another_tenant_leads_to_nothing() {
    let keyed = Keyed::new(&KEYS, &[]);
    let body = json!({ "inputs": ["a secret"], "tags": ["t"], "payload": "theirs", "namespace": "x" });
    let key = keep(&keyed, "a", body).await.remove(0);
    keep(&keyed, "b", json!({ "inputs": ["something else"] })).await;
    let never = "0".repeat(64);
    for id in ["b", "plain"] {
        for asked in [&key, &never] {
            let answer = ask(&keyed, id, "/lookup", json!({ "keys": [asked] })).await;
            assert_eq!(answer, json!({ "items": [{ "key": asked, "cached": false }] }));
            let body = json!({ "keys": [asked] }).to_string();
            let got = keyed.ask_for(id, Method::POST, "/lookup", &body, "application/octet-stream").await;
            assert_eq!(got.header("x-missing"), "0");
            assert!(got.body.chunks(2).all(|bytes| half::f16::from_le_bytes([bytes[0], bytes[1]]).is_nan()));
            for got in [
                keyed.get(id, &format!("/entries/{asked}")).await,
                keyed.ask(id, Method::DELETE, &format!("/entries/{asked}"), "").await,
            ] {
                let (status, message) = (got.status, got.json()["detail"].clone());
                assert_eq!(
                    (status, message),
                    (StatusCode::NOT_FOUND, json!(format!("nothing is cached under the key {asked}")))
                );
            }
            let similar = keyed.get(id, &format!("/similar?key={asked}")).await;
            let search = keyed.post(id, "/search", &json!({ "keys": [asked] }).to_string()).await;
            assert_eq!((similar.status, search.status), (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND));
            assert_eq!(matched(&keyed, id, json!({ "keys": [asked] })).await, 0);
        }
    }
    let facts = keyed.get("a", &format!("/entries/{key}")).await.json();
    assert_eq!(
        (&facts["tags"], &facts["payload"], &facts["namespace"]),
        (&json!(["t"]), &json!("theirs"), &json!("x"))
    );
    assert_eq!(keyed.get("operator", &format!("/entries/{key}")).await.status, StatusCode::OK);
    // Nor through the shared tier, whose records do not say whose they are.
    for id in ["a", "b"] {
        let got = keyed.post(id, "/lookup", &json!({ "keys": [key], "remote": true }).to_string()).await;
        problem(&got, 422, &["remote", "inputs"]);
    }
    // In one request with keys of one's own, too: each row in its place.
    let own = keep(&keyed, "b", json!({ "inputs": ["mine"] })).await.remove(0);
    let body = json!({ "keys": [key, own, never, own] }).to_string();
    let got = keyed.ask_for("b", Method::POST, "/lookup", &body, "application/octet-stream").await;
    assert_eq!(got.header("x-missing"), "0,2");
    let rows: Vec<&[u8]> = got.body.chunks(2 * DIMS).collect();
    assert!(rows[1] == rows[3] && rows[1] != rows[0] && rows[0] == rows[2]);
    assert_eq!(keyed.ask("a", Method::DELETE, &format!("/entries/{key}"), "").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_search_finds_what_is_in_reach_and_nothing_else() {
    let keyed = Keyed::new(&KEYS, &["shared"]);
    let mut expected: Vec<(&str, Vec<String>)> = Vec::new();
    for id in ["a", "b", "plain"] {
        let mut own = Vec::new();
        for namespace in ["", "x", "y"] {
            let text = format!("{id} {namespace}");
            own.extend(keep(&keyed, id, json!({ "inputs": [text], "namespace": namespace, "tags": ["t"] })).await);
        }
        expected.push((id, own));
    }
    let shared = keep(&keyed, "a", json!({ "inputs": ["for all"], "namespace": "shared", "tags": ["t"] })).await;
    let vector: Vec<f32> = vec![1.0; DIMS];
    let found = |answer: Value| {
        let found = answer["results"][0].as_array().unwrap().clone();
        let mut keys: Vec<String> = found.iter().map(|found| found["key"].as_str().unwrap().to_owned()).collect();
        keys.sort_unstable();
        keys
    };
    for (id, own) in &expected {
        let mut all: Vec<String> = own.iter().chain(&shared).cloned().collect();
        all.sort_unstable();
        for query in [json!({ "vectors": [vector] }), json!({ "inputs": "anything" }), json!({ "keys": [own[0]] })] {
            for narrowed in
                [json!({}), json!({ "tags": ["t"] }), json!({ "exact": true }), json!({ "newer_than": 1000 })]
            {
                let mut query = query.clone();
                query.as_object_mut().unwrap().extend(narrowed.as_object().unwrap().clone());
                query["k"] = json!(100);
                assert_eq!(found(ask(&keyed, id, "/search", query.clone()).await), all, "{id} {query}");
            }
        }
        let of_one = json!({ "vectors": [vector], "namespace": "x", "k": 100 });
        assert_eq!(found(ask(&keyed, id, "/search", of_one).await), [own[1].clone()]);
        let near = keyed.get(id, &format!("/similar?key={}&k=100", own[0])).await.json();
        assert_eq!(found(near).len(), all.len() - 1);
        // Page by page as well.
        let (mut paged, mut cursor) = (Vec::new(), Value::Null);
        loop {
            let answer = ask(&keyed, id, "/search", json!({ "vectors": [vector], "k": 1, "cursor": cursor })).await;
            cursor = answer["cursor"].clone();
            paged.extend(found(answer));
            if cursor.is_null() {
                break;
            }
        }
        paged.sort_unstable();
        assert_eq!(paged, all, "{id}");
    }
    let everything = ask(&keyed, "operator", "/search", json!({ "vectors": [vector], "k": 100 })).await;
    assert_eq!(found(everything).len(), 10);
    let of_a = ask(&keyed, "operator", "/search", json!({ "vectors": [vector], "k": 100, "namespace": "a/x" })).await;
    assert_eq!(found(of_a), [expected[0].1[1].clone()]);
}

#[tokio::test]
async fn an_invalidation_ends_what_is_the_tenants_own_by_every_selector() {
    let keyed = Keyed::new(&KEYS, &["shared"]);
    let body = json!({ "inputs": ["one", "two"], "tags": ["doc:1"], "namespace": "x" });
    let mut theirs = Vec::new();
    for id in ["a", "b", "plain"] {
        theirs.push(keep(&keyed, id, body.clone()).await.remove(0));
    }
    keep(&keyed, "a", json!({ "inputs": ["for all"], "tags": ["doc:1"], "namespace": "shared" })).await;
    let selectors = |own: &str, all: u64| {
        vec![
            (json!({ "tags": ["doc:1"] }), all),
            (json!({ "tag_glob": "doc:*" }), all),
            (json!({ "namespace": "x" }), 2),
            (json!({ "keys": theirs }), 1),
            (json!({ "keys": [own], "namespace": "x" }), 1),
            (json!({ "inputs": ["one"], "namespace": "x" }), 1),
            (json!({ "inputs": ["one"] }), 0),
            (json!({ "model": "fake" }), all),
            (json!({ "model": "fake", "tags": ["doc:1"] }), all),
            (json!({ "namespace": "" }), 0),
        ]
    };
    for (id, own) in ["a", "b", "plain"].into_iter().zip(&theirs) {
        // What is public is at home among what is no tenant's.
        let all = if id == "plain" { 3 } else { 2 };
        for (mut selector, expected) in selectors(own, all) {
            selector["dry_run"] = json!(true);
            assert_eq!(matched(&keyed, id, selector.clone()).await, expected, "{id} {selector}");
        }
        let got = keyed.post(id, "/invalidate", r#"{"dry_run": true}"#).await;
        assert_eq!(got.status, StatusCode::UNPROCESSABLE_ENTITY, "a tenant alone is no selector");
        let got = keyed.post(id, "/invalidate", r#"{"namespace": "a/x"}"#).await;
        assert_eq!(got.status, StatusCode::UNPROCESSABLE_ENTITY, "{id}");
    }
    for selector in [json!({ "tag_glob": "*" }), json!({ "model": "fake" }), json!({ "older_than": 0 })] {
        matched(&keyed, "b", selector).await;
    }
    assert!(!is_cached(&keyed, "b", "one", "x").await);
    assert!(is_cached(&keyed, "a", "one", "x").await && is_cached(&keyed, "plain", "two", "x").await);
    // What is public goes when it is named, and by whoever names it.
    assert!(is_cached(&keyed, "b", "for all", "shared").await);
    assert_eq!(matched(&keyed, "b", json!({ "namespace": "shared" })).await, 1);
    assert!(!is_cached(&keyed, "a", "for all", "shared").await);
    assert_eq!(matched(&keyed, "operator", json!({ "namespace": "a/x" })).await, 2);
    assert!(!is_cached(&keyed, "a", "one", "x").await && is_cached(&keyed, "plain", "one", "x").await);
}

/// A service with rules for events.
fn with_rules(rules: &[EventRule]) -> Keyed {
    let (cache, folder) = cache_of(model(), batch::Config::default());
    let catalogue = Catalogue::from(cache.clone());
    catalogue.set_event_rules(EventRules::new(rules).unwrap());
    let (all, tokens) = keys(&KEYS, &[], None);
    let access = Access::new(all);
    let service = Service::new(catalogue, Config { access: access.clone(), ..Config::default() });
    Keyed { bench: Bench::around(service, cache, folder), access, tokens }
}

#[tokio::test]
async fn an_event_of_a_tenant_ends_what_is_its_own() {
    let rule = |rule: EventRule| EventRule { on: "changed".to_owned(), ..rule };
    let by_tag = rule(EventRule { tags: vec!["doc:{subject}".to_owned()], ..EventRule::default() });
    let by_name = rule(EventRule { namespace: Some("{data.name}".to_owned()), ..EventRule::default() });
    let keyed = with_rules(&[by_tag, by_name]);
    for id in ["a", "b"] {
        keep(&keyed, id, json!({ "inputs": ["tagged"], "tags": ["doc:7"] })).await;
        keep(&keyed, id, json!({ "inputs": ["named"], "namespace": "x" })).await;
    }
    let event = |name: &str| json!({ "type": "changed", "subject": "7", "data": { "name": name } });
    // It may name another's namespace, to no effect.
    for id in ["b", "plain"] {
        ask(&keyed, id, "/events", event("a/x")).await;
    }
    assert!(!is_cached(&keyed, "b", "tagged", "").await && is_cached(&keyed, "b", "named", "x").await);
    assert!(is_cached(&keyed, "a", "tagged", "").await && is_cached(&keyed, "a", "named", "x").await);
    assert_eq!(ask(&keyed, "b", "/events", event("x")).await["matched"], 1);
    assert!(is_cached(&keyed, "a", "named", "x").await);
    assert_eq!(ask(&keyed, "operator", "/events", event("a/x")).await["matched"], 2);
    assert!(!is_cached(&keyed, "a", "tagged", "").await && !is_cached(&keyed, "a", "named", "x").await);
}

#[tokio::test]
async fn a_tenant_is_told_its_own_figures_only() {
    let keyed = Keyed::new(&KEYS, &[]);
    keep(&keyed, "a", json!({ "inputs": ["one", "two"] })).await;
    keep(&keyed, "a", json!({ "inputs": ["three"], "namespace": "x" })).await;
    keep(&keyed, "b", json!({ "inputs": ["one"] })).await;
    let stats = |id: &'static str| {
        let keyed = &keyed;
        async move { keyed.get(id, "/stats").await.json() }
    };
    let of_b = stats("b").await;
    assert_eq!((&of_b["tenant"], &of_b["entries"]), (&json!("b"), &json!(1)));
    for field in ["items", "store", "queue", "models", "reuse", "http", "windows"] {
        assert!(of_b.get(field).is_none(), "{field} of all is told to a tenant: {of_b}");
    }
    assert_eq!((&stats("a").await["entries"], &stats("plain").await["entries"]), (&json!(3), &json!(0)));
    assert_eq!(stats("operator").await["store"]["entries"], 4);
    // Counted on, as they come and go.
    keep(&keyed, "b", json!({ "inputs": ["four", "five"] })).await;
    assert_eq!(stats("b").await["entries"], 3);
    ask(&keyed, "b", "/invalidate", json!({ "inputs": ["four"] })).await;
    keep(&keyed, "b", json!({ "inputs": ["five"], "cache": "refresh" })).await;
    let of_b = stats("b").await;
    assert_eq!((&of_b["entries"], stats("a").await["entries"].as_u64()), (&json!(2), Some(3)));
    assert_eq!(of_b["bytes"].as_u64().unwrap() % 2, 0);
}

/// Computes one batch for each permission.
struct Waits(mpsc::Receiver<()>);

impl Engine for Waits {
    fn embed(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let _ = self.0.recv();
        Ok(vec![vec![1.0; DIMS]; batch.len()])
    }
}

#[tokio::test]
async fn tenants_wait_for_no_text_that_another_asked_for() {
    let (open, gate) = mpsc::channel();
    let config = Config::default();
    let keyed = Keyed::around_model(&KEYS, &[], Model { engine: Box::new(Waits(gate)), ..model() }, config);
    let body = r#"{"inputs": ["the same"]}"#;
    let asking = |id: &'static str| keyed.post(id, "/embed?details=true", body);
    let opening = async {
        while keyed.bench.cache.stats().in_flight < 2 {
            tokio::task::yield_now().await;
        }
        for _ in 0..4 {
            // The engine may take them all at once.
            let _ = open.send(());
        }
    };
    let (a, again, b, ()) = tokio::join!(asking("a"), asking("a"), asking("b"), opening);
    let status = |got: &Got| got.json()["items"][0]["status"].as_str().unwrap().to_owned();
    assert_eq!((status(&a), status(&b)), ("computed".to_owned(), "computed".to_owned()));
    assert!(["joined", "hit"].contains(&status(&again).as_str()));
}

/// How far apart two lots of times are, as a Mann-Whitney test sees it: in standard deviations, above 0 if the second ones are larger.
fn apart(one: &[Duration], other: &[Duration]) -> f64 {
    let mut all: Vec<(Duration, bool)> = one.iter().map(|time| (*time, false)).collect();
    all.extend(other.iter().map(|time| (*time, true)));
    all.sort_unstable();
    let (n, m) = (one.len() as f64, other.len() as f64);
    let ranks: f64 = (1..).zip(&all).filter(|(_, (_, is_other))| *is_other).map(|(rank, _)| f64::from(rank)).sum();
    let u = ranks - m * (m + 1.0) / 2.0;
    (u - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt()
}

/// Whether a text is cached shows in how long an answer takes. What another tenant has cached must take as long as what nobody has: the
/// two are asked for in turn, in random order, so that whatever else the machine does falls on both alike, and a rank test must not tell
/// them apart. It does tell apart what is cached for the one who asks, or it would be no test.
#[tokio::test]
async fn what_another_tenant_has_takes_as_long_as_what_nobody_has() {
    const TEXTS: usize = 1500;
    const ROUNDS_MAX: usize = 8;
    let keyed = Keyed::new(&[("a", "a", WORK), ("b", "b", WORK)], &[]);
    // All of one length: what a text is read by goes by sixteen bytes, which a rank test sees.
    let text = |kind: &str, number: usize| format!("a text of some length, {kind}, the number {number:05}");
    for (id, kind) in [("a", "others"), ("b", "myself")] {
        for first in (0..TEXTS).step_by(500) {
            let inputs: Vec<String> = (first..first + 500).map(|number| text(kind, number)).collect();
            keep(&keyed, id, json!({ "inputs": inputs })).await;
        }
    }
    let mut random = 88_172_645_463_325_252_u64;
    for path in ["/embed", "/lookup"] {
        let mut times = [const { Vec::new() }; 3];
        // As many as it takes to see what can be seen: on a busy machine more.
        for round in 1..=ROUNDS_MAX {
            for number in 0..TEXTS {
                let mut kinds = [0, 1, 2];
                for last in [2, 1] {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    kinds.swap(last, (random % (last as u64 + 1)) as usize);
                }
                for kind in kinds {
                    let inputs = [text(["others", "nobody", "myself"][kind], number)];
                    let body = match path {
                        "/embed" => json!({ "inputs": inputs, "cache": "only" }),
                        _ => json!({ "inputs": inputs }),
                    };
                    let body = body.to_string();
                    let began = Instant::now();
                    let got = keyed.post("b", path, &body).await;
                    times[kind].push(began.elapsed());
                    let hit = if path == "/embed" {
                        got.status == StatusCode::OK
                    } else {
                        got.json()["items"][0]["cached"] == true
                    };
                    assert_eq!(hit, kind == 2, "{path}");
                }
            }
            let [foreign, nobody, own] = &times;
            let (of_foreign, of_own) = (apart(nobody, foreign), apart(nobody, own));
            let unlikely = 2.0 * (1.0 - Normal::standard().cdf(of_foreign.abs()));
            println!(
                "{path}, {} of each: foreign against nobody's {of_foreign:.1} (p = {unlikely:.2}), own against nobody's {of_own:.1}",
                nobody.len()
            );
            // One false alarm in two million looks.
            assert!(of_foreign.abs() < 5.0, "{path} tells what another tenant has: {of_foreign} standard deviations");
            if of_own.abs() > 6.0 {
                break;
            }
            assert!(round < ROUNDS_MAX, "{path}: the test sees nothing: {of_own} standard deviations");
        }
    }
}

#[tokio::test]
async fn erasing_for_good_is_the_operators_alone() {
    let keyed = Keyed::new(&[("a", "a", &Scope::ALL), ("plain", "", WORK), ("operator", "", &Scope::ALL)], &[]);
    let key = keep(&keyed, "a", json!({ "inputs": ["a secret"], "tags": ["t"] })).await.remove(0);
    for id in ["a", "plain"] {
        for body in [json!({ "tags": ["t"] }), json!({ "keys": [key] }), json!({ "inputs": ["a secret"] })] {
            assert_eq!(keyed.post(id, "/erase", &body.to_string()).await.status, StatusCode::FORBIDDEN, "{id} {body}");
        }
    }
    assert!(is_cached(&keyed, "a", "a secret", "").await);
    let refused = keyed.post("a", "/erase", "{}").await;
    assert!(refused.json()["detail"].as_str().unwrap().contains("no tenant"), "{}", refused.json());
    assert_ne!(keyed.post("operator", "/erase", "{}").await.status, StatusCode::FORBIDDEN);
}

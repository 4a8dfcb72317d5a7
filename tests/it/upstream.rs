//! Models behind an endpoint: our own service as the endpoint, in both dialects, and one that misbehaves in every way.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use vecmemo::domain::{Tokens, Truncation, TruncationDirection};
use vecmemo::engine::{self, EngineError, Model, Options, Sources};
use vecmemo::{batch, http};

use crate::http::{Bench, DIMS, cache_of, model};
use crate::support::golden::cosine;
use crate::support::server::vecmemo;
use crate::support::upstream::{Fake, Received, Reply};

/// Where a model's manifest is, and what it keeps.
struct Home {
    folder: TempDir,
}

impl Home {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    fn write(&self, dialect: &str, base_url: &str, more: &str) {
        let manifest = format!(
            "name = \"remote\"\nsource = \"somebody/remote\"\ndims = {DIMS}\n[upstream]\ndialect = \"{dialect}\"\n\
             base_url = \"{base_url}\"\nmodel = \"fake\"\nversion = \"1\"\nmax_characters = 200\nbackoff_seconds = 0.001\n{more}\n"
        );
        std::fs::write(self.folder.path().join("remote.toml"), manifest).unwrap();
    }

    fn open(&self) -> Result<Model, EngineError> {
        let sources = Sources { models_dir: self.folder.path().to_owned(), revision: None };
        let options = Options { state_dir: Some(self.folder.path().join("state")), ..Options::default() };
        engine::open("remote", &sources, &options)
    }

    /// The model, behind `address` in OpenAI's dialect.
    fn behind(&self, address: SocketAddr, more: &str) -> Result<Model, EngineError> {
        self.write("openai", &format!("http://{address}/v1"), more);
        self.open()
    }
}

fn tokens(model: &Model, texts: &[&str]) -> Vec<Tokens> {
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: model.card.max_tokens };
    model.tokenizer.tokenize(texts, "", truncation).unwrap()
}

fn embed(model: &mut Model, texts: &[&str]) -> Vec<Result<Vec<f32>, EngineError>> {
    let tokens = tokens(model, texts);
    model.engine.embed_each(&tokens.iter().map(|tokens| &*tokens.ids).collect::<Vec<_>>())
}

/// What came of one text against an endpoint that behaves so, and how often it was asked.
fn outcome(
    more: &str,
    behaviour: impl FnMut(&Received) -> Reply + Send + 'static,
) -> (Result<Vec<f32>, EngineError>, usize) {
    let (home, fake) = (Home::new(), Fake::start(behaviour));
    let mut model = home.behind(fake.address, more).unwrap();
    let outcome = embed(&mut model, &["a text that nobody may repeat"]).remove(0);
    (outcome, fake.received().len())
}

fn vector(text: &str) -> Vec<f32> {
    (0..DIMS).map(|dim| ((text.len() * 7 + dim * 3) % 11) as f32 - 5.0).collect()
}

/// Behaves badly a few times, then well.
fn then_well(times: usize, mut badly: impl FnMut(&Received) -> Reply + Send) -> impl FnMut(&Received) -> Reply + Send {
    let mut seen = 0;
    move |received| {
        seen += 1;
        if seen <= times { badly(received) } else { Reply::vectors(received, vector) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_through_an_upstream_are_its_own_and_are_asked_for_once() {
    let (upstream, _folder) = cache_of(model(), batch::Config::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = http::serve(listener, upstream.clone(), http::Config::default(), async {
        let _ = stopped.await;
    });
    let serving = tokio::spawn(serving);
    let direct = Bench::new();
    for (dialect, base_url, more) in [
        ("openai", format!("http://{address}/v1"), ""),
        ("openai", format!("http://{address}/v1"), "encoding = \"float\"\nbatch_texts_max = 2"),
        ("tei", format!("http://{address}"), "batch_texts_max = 1\nrequests_parallel = 3"),
    ] {
        let home = Home::new();
        home.write(dialect, &base_url, more);
        let bench = Bench::with(home.open().unwrap(), http::Config::default());
        for (route, field) in [("/embed", "inputs"), ("/v1/embeddings", "input")] {
            let body = json!({field: ["one", "zwei größere Wörter", "日本語 🦀", "one more", "1"]}).to_string();
            let (got, expected) = (bench.post(route, &body).await, direct.post(route, &body).await);
            let read = |body: Value| -> Vec<Vec<f32>> {
                match body.get("data") {
                    Some(data) => data
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|item| serde_json::from_value(item["embedding"].clone()).unwrap())
                        .collect(),
                    None => serde_json::from_value(body).unwrap(),
                }
            };
            assert_eq!(got.status, 200, "{dialect} {more}: {}", got.json());
            let (got, expected) = (read(got.json()), read(expected.json()));
            assert_eq!(got.len(), 5);
            for (got, expected) in got.iter().zip(&expected) {
                assert!(cosine(got, expected) >= 0.999_999, "{dialect} {more}");
                // Both are f16; the way over the wire may cost the last bit.
                assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 0.001), "{got:?} {expected:?}");
            }
        }
        let asked = serde_json::to_value(upstream.stats()).unwrap()["items"].clone();
        let again = bench.post("/embed", r#"{"inputs": ["日本語 🦀", "1"]}"#).await;
        assert!(again.header("cache-status").contains("hit"), "{}", again.header("cache-status"));
        assert_eq!(serde_json::to_value(upstream.stats()).unwrap()["items"], asked);
        assert_eq!(bench.computed().await, 5);
        let metrics = String::from_utf8(bench.get("/metrics").await.body).unwrap();
        assert!(
            metrics.contains("upstream_requests_total") && metrics.contains("upstream_canary_changed 0"),
            "{metrics}"
        );
    }
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
}

#[test]
fn what_passes_is_asked_for_again_after_the_wait_that_was_named() {
    let started = Instant::now();
    let wait = vec![("retry-after-ms", "80".to_owned())];
    let (outcome_429, asked) = outcome("", then_well(1, move |_| Reply::Whole(429, wait.clone(), "{}".to_owned())));
    assert_eq!((outcome_429.unwrap(), asked), (vector("a text that nobody may repeat"), 2));
    assert!(started.elapsed() >= Duration::from_millis(80));
    for status in [408, 409, 500, 503] {
        let (outcome, asked) = outcome("", then_well(2, move |_| Reply::status(status, "")));
        assert!(outcome.is_ok() && asked == 3, "{status}: {outcome:?} after {asked}");
    }
    let (outcome_half, asked) =
        outcome("", then_well(1, |_| Reply::Half(r#"{"data": [{"index": 0, "embedding": [1, 2"#.to_owned())));
    assert!(outcome_half.is_ok() && asked == 2, "{outcome_half:?}");
}

#[test]
fn a_wait_past_the_deadline_is_told_to_the_client() {
    let wait = vec![("retry-after", "77".to_owned())];
    let (outcome, asked) = outcome("", move |_| Reply::Whole(429, wait.clone(), "{}".to_owned()));
    let Err(EngineError::Busy { retry_after, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!((retry_after, asked), (Duration::from_secs(77), 1));
}

#[test]
fn answers_that_cannot_be_right_are_refused_once_and_say_how() {
    let item = |index: usize, embedding: &str| format!(r#"{{"index": {index}, "embedding": {embedding}}}"#);
    let numbers = |number: &str, count: usize| format!("[{}]", vec![number; count].join(","));
    let right = numbers("0.5", DIMS);
    for (data, words) in [
        (String::new(), "0 vectors came for 1"),
        (format!("{},{}", item(0, &right), item(1, &right)), "2 vectors came for 1"),
        (item(0, &numbers("0.5", DIMS + 1)), "dims = 16"),
        (item(0, &numbers("null", DIMS)), "another shape"),
        (item(0, &numbers("NaN", DIMS)), "not JSON"),
        (item(0, &numbers("1e39", DIMS)), "not finite"),
        (item(0, &numbers("Infinity", DIMS)), "not JSON"),
        (item(7, &right), "text 7 of 1"),
    ] {
        let body = format!(r#"{{"data": [{data}]}}"#);
        let (outcome, asked) = outcome("", move |_| Reply::status(200, &body));
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(words) && asked == 1, "{words}: {error} after {asked}");
    }
    let (junk, _) = outcome("", |received| Reply::status(200, format!("<html>{}", received.texts()[0])));
    let error = junk.unwrap_err().to_string();
    assert!(error.contains("not JSON") && !error.contains("nobody may repeat"), "{error}");
}

#[test]
fn vectors_in_another_order_go_to_their_own_texts() {
    let (home, fake) = (
        Home::new(),
        Fake::start(|received| {
            let mut items: Vec<Value> = received
                .texts()
                .iter()
                .enumerate()
                .map(|(index, text)| json!({"index": index, "embedding": vector(text)}))
                .collect();
            items.reverse();
            Reply::status(200, json!({"data": items}))
        }),
    );
    let mut model = home.behind(fake.address, "").unwrap();
    let texts = ["a", "bb", "ccc"];
    let vectors: Vec<Vec<f32>> = embed(&mut model, &texts).into_iter().map(Result::unwrap).collect();
    assert_eq!(vectors, texts.map(vector));
}

#[test]
fn an_endpoint_that_does_not_end_is_left() {
    let once = "retries = 0\ntimeout_seconds = 0.2";
    let (half, _) = outcome(once, |_| Reply::Half("{\"data\"".to_owned()));
    assert!(half.as_ref().unwrap_err().to_string().contains("broke off"), "{half:?}");
    let started = Instant::now();
    let (silent, asked) = outcome("retries = 1\ntimeout_seconds = 0.2", |_| Reply::Silence);
    assert!(silent.as_ref().unwrap_err().to_string().contains("no answer in time"), "{silent:?}");
    assert!(asked == 2 && started.elapsed() < Duration::from_secs(20));
    let (endless, asked) = outcome("", |_| Reply::Endless);
    assert!(endless.as_ref().unwrap_err().to_string().contains("longer than"), "{endless:?}");
    assert_eq!(asked, 1);
    // A port that nobody listens on.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = embed(&mut Home::new().behind(address, once).unwrap(), &["a"]).remove(0).unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
}

#[test]
fn a_redirect_is_not_followed_and_takes_the_key_nowhere() {
    let elsewhere = Fake::start(|received| Reply::vectors(received, vector));
    for status in [301, 307, 308] {
        let location = vec![("location", format!("http://{}/v1/embeddings", elsewhere.address))];
        let (outcome, _) =
            outcome("key_variable = \"PATH\"", move |_| Reply::Whole(status, location.clone(), String::new()));
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("redirect") && error.contains("base_url"), "{error}");
    }
    assert!(elsewhere.received().is_empty());
}

#[test]
fn a_key_is_sent_and_never_shown() {
    let key = std::env::var("PATH").unwrap();
    let said = json!({"error": {"message": format!("Incorrect API key provided: {key}")}}).to_string();
    let (home, fake) = (Home::new(), Fake::start(move |_| Reply::status(401, &said)));
    let mut model = home.behind(fake.address, "key_variable = \"PATH\"").unwrap();
    let error = embed(&mut model, &["a"]).remove(0).unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("environment variable PATH") && !error.contains(&key), "{error}");
    assert_eq!(fake.received()[0].path, "/v1/embeddings");
    assert_eq!(fake.received()[0].header("authorization"), Some(format!("Bearer {key}").as_str()));

    let mut model = home.behind(fake.address, "key_variable = \"PATH\"\nkey_header = \"api-key\"").unwrap();
    assert!(embed(&mut model, &["a"])[0].is_err());
    let last = fake.received().pop().unwrap();
    assert_eq!((last.header("api-key"), last.header("authorization")), (Some(key.as_str()), None));

    let error = home.behind(fake.address, "key_variable = \"VECMEMO_TEST_NO_SUCH_KEY\"").err().unwrap().to_string();
    assert!(error.contains("VECMEMO_TEST_NO_SUCH_KEY is not set"), "{error}");
    let (nameless, _) = outcome("", |_| Reply::status(401, "{}"));
    assert!(nameless.unwrap_err().to_string().contains("key_variable"));
}

#[test]
fn an_endpoint_that_repeats_a_text_is_not_quoted() {
    let echo = |status: u16| {
        move |received: &Received| {
            Reply::status(status, json!({"error": {"message": format!("bad input {:?}", received.texts())}}))
        }
    };
    for status in [400, 401, 404, 422, 500] {
        let error = outcome("retries = 0", echo(status)).0.unwrap_err().to_string();
        assert!(error.contains("withheld") && !error.contains("nobody may repeat"), "{error}");
    }
}

/// Refuses texts with "bad" in them.
fn picky(received: &Received) -> Reply {
    if received.texts().iter().any(|text| text.contains("bad")) {
        return Reply::status(400, json!({"error": {"message": "maximum context length is 8192 tokens"}}));
    }
    Reply::vectors(received, vector)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_is_refused_fails_alone_and_what_was_paid_for_is_kept() {
    let (home, fake) = (Home::new(), Fake::start(picky));
    let bench = Bench::with(home.behind(fake.address, "").unwrap(), http::Config::default());
    let got = bench.post("/embed", r#"{"inputs": ["good", "better", "a bad one", "best"]}"#).await;
    assert_eq!(got.status, 422, "{}", got.json());
    let error = got.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("input 2") && error.contains("8192 tokens"), "{error}");
    let asked = fake.received().len();
    let kept = bench.post("/v1/embeddings", r#"{"input": ["best", "good", "better"]}"#).await;
    assert_eq!((kept.status.as_u16(), fake.received().len()), (200, asked));
    assert_eq!(bench.post("/v1/embeddings", r#"{"input": "bad"}"#).await.status, 400);
    let tokens = bench.post("/tokenize", r#"{"inputs": "good"}"#).await;
    assert_eq!(tokens.status, 422);
    assert!(tokens.json().to_string().contains("not known here"), "{}", tokens.json());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_budget_is_429_and_hits_are_still_answered() {
    let (home, fake) = (Home::new(), Fake::start(|received| Reply::vectors(received, vector)));
    let bench = Bench::with(home.behind(fake.address, "budget_tokens_per_day = 6").unwrap(), http::Config::default());
    assert_eq!(bench.post("/embed", r#"{"inputs": "first"}"#).await.status, 200);
    let spent = bench.post("/v1/embeddings", r#"{"input": "a second text"}"#).await;
    assert_eq!(spent.status, 429);
    assert!(spent.json()["error"]["message"].as_str().unwrap().contains("budget_tokens_per_day"), "{}", spent.json());
    assert!(spent.header("retry-after").parse::<u64>().unwrap() <= 86_400);
    assert_eq!((bench.post("/embed", r#"{"inputs": "first"}"#).await.status.as_u16(), fake.received().len()), (200, 1));
    assert!(bench.get("/ready").await.json()["model"].as_str().unwrap().contains("budget"));
    let metrics = String::from_utf8(bench.get("/metrics").await.body).unwrap();
    assert!(
        metrics.contains("upstream_over_budget_total 1") && metrics.contains("upstream_tokens_total 5"),
        "{metrics}"
    );
}

/// An endpoint whose model can be changed.
fn changeable() -> (Fake, Arc<AtomicBool>) {
    let changed = Arc::new(AtomicBool::new(false));
    let other = Arc::clone(&changed);
    let fake = Fake::start(move |received| {
        let other = other.load(Ordering::SeqCst);
        Reply::vectors(received, |text| vector(if other { "quite another model" } else { text }))
    });
    (fake, changed)
}

const CANARY: &str = "canary = \"The quick brown fox.\"\n";

#[test]
fn a_change_is_seen_at_the_start_and_does_what_the_manifest_says() {
    for (on_change, computes) in [("alert", true), ("refuse", false)] {
        let (home, (fake, changed)) = (Home::new(), changeable());
        let more = format!("{CANARY}on_canary_change = \"{on_change}\"");
        let before = home.behind(fake.address, &more).unwrap();
        assert_eq!(before.engine.monitor().unwrap().trouble(), None);
        changed.store(true, Ordering::SeqCst);
        let mut after = home.open().unwrap();
        assert_eq!(after.card.version, before.card.version);
        let trouble = after.engine.monitor().unwrap().trouble().unwrap();
        assert!(trouble.contains("changed") && trouble.contains("raise version"), "{trouble}");
        let outcome = embed(&mut after, &["a"]).remove(0);
        assert_eq!(outcome.is_ok(), computes, "{outcome:?}");
        assert!(computes || outcome.unwrap_err().to_string().contains("raise version"));

        home.write("openai", &format!("http://{}/v1", fake.address), &more);
        let path = home.folder.path().join("remote.toml");
        let raised = std::fs::read_to_string(&path).unwrap().replace("version = \"1\"", "version = \"2\"");
        std::fs::write(&path, raised).unwrap();
        let mut raised = home.open().unwrap();
        assert_ne!(raised.card.version, before.card.version);
        assert_eq!(raised.engine.monitor().unwrap().trouble(), None);
        assert!(embed(&mut raised, &["a"])[0].is_ok());
    }
}

#[test]
fn a_switch_takes_a_new_fingerprint_at_the_next_start_and_keeps_it() {
    let (home, (fake, changed)) = (Home::new(), changeable());
    // Due before every batch.
    let more = format!("{CANARY}on_canary_change = \"switch\"\ncanary_seconds = 1e-9");
    let mut first = home.behind(fake.address, &more).unwrap();
    assert_eq!(home.open().unwrap().card.version, first.card.version);
    assert!(embed(&mut first, &["a"])[0].is_ok());
    changed.store(true, Ordering::SeqCst);
    let error = embed(&mut first, &["b"]).remove(0).unwrap_err().to_string();
    assert!(error.contains("start again"), "{error}");
    let mut second = home.open().unwrap();
    assert_ne!(second.card.version, first.card.version);
    assert!(embed(&mut second, &["b"])[0].is_ok());
    assert_eq!(home.open().unwrap().card.version, second.card.version);
}

#[test]
fn a_change_while_running_stops_computing_until_it_is_undone() {
    let (home, (fake, changed)) = (Home::new(), changeable());
    let mut model =
        home.behind(fake.address, &format!("{CANARY}on_canary_change = \"refuse\"\ncanary_seconds = 1e-9")).unwrap();
    assert!(embed(&mut model, &["a"])[0].is_ok());
    changed.store(true, Ordering::SeqCst);
    assert!(embed(&mut model, &["b"])[0].is_err());
    assert!(model.engine.monitor().unwrap().trouble().is_some());
    changed.store(false, Ordering::SeqCst);
    assert!(embed(&mut model, &["b"])[0].is_ok());
    assert_eq!(model.engine.monitor().unwrap().trouble(), None);
}

#[test]
fn without_an_answer_at_the_start_hits_can_be_served_but_no_fingerprint_guessed() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let once = "retries = 0\n";
    let model = Home::new().behind(address, &format!("{CANARY}{once}")).unwrap();
    assert!(model.engine.monitor().unwrap().trouble().unwrap().contains("could not be checked"));
    let error =
        Home::new().behind(address, &format!("{CANARY}{once}on_canary_change = \"switch\"")).err().unwrap().to_string();
    assert!(error.contains("start again"), "{error}");
}

#[test]
fn texts_go_in_requests_of_bounded_size_and_come_back_in_order() {
    let (home, fake) = (Home::new(), Fake::start(|received| Reply::vectors(received, vector)));
    let bounds = "batch_texts_max = 3\nbatch_characters_max = 100\nrequests_parallel = 4";
    let mut model = home.behind(fake.address, bounds).unwrap();
    let at_once = model.engine.at_once().unwrap();
    assert_eq!((at_once.texts, at_once.tokens), (12, 400));
    let texts: Vec<String> = (0..20).map(|index| "x".repeat(index + 1)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let vectors: Vec<Vec<f32>> = embed(&mut model, &texts).into_iter().map(Result::unwrap).collect();
    assert_eq!(vectors, texts.iter().map(|text| vector(text)).collect::<Vec<_>>());
    let mut sizes: Vec<usize> = fake.received().iter().map(|received| received.texts().len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [2, 3, 3, 3, 3, 3, 3]);
}

#[test]
fn the_program_shows_an_upstream_model_and_has_nothing_to_fetch_or_verify() {
    let home = Home::new();
    home.write("tei", "http://127.0.0.1:9", "key_variable = \"SOME_KEY\"");
    let said = |command: &str, folder: &Path| {
        let output = vecmemo(folder)
            .args(["models", command, "--models-dir", "."])
            .args((command != "list").then_some("remote"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let folder = home.folder.path();
    assert!(
        said("list", folder).contains("remote\t16 dims\t200 characters\tsomebody/remote\tupstream http://127.0.0.1:9")
    );
    let shown = said("show", folder);
    assert!(
        shown.contains("key_variable = \"SOME_KEY\"") && shown.contains("base_url = \"http://127.0.0.1:9\""),
        "{shown}"
    );
    assert!(said("verify", folder).contains("no files to verify"));
    assert!(said("fetch", folder).contains("no files to fetch"));
}

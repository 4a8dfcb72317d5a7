//! What does a query wait for while a warm-up floods, what do short batches cost, and how much of the engine's speed is left of a
//! cold `POST /embed`?
//!
//! The default model, everything in one process. Rounds are interleaved; every text is new (a number stands before it), so that
//! nothing is a hit. `cargo bench --bench batcher -- [rounds] [seconds a round]`, 5 and 4 if not given.

#![allow(missing_docs)]
#![allow(clippy::print_stdout, reason = "the report")]

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use vecmemo::batch::{self, Embedder, plan};
use vecmemo::cache::{Cache, Error, Inputs, Request};
use vecmemo::domain::{Lane, Truncation, TruncationDirection};
use vecmemo::engine::{self, Model, Sources};
use vecmemo::http;
use vecmemo::store::{self, Store};

/// Requests of the warm-up under way at once, and texts of each: `vecmemo warm`'s defaults.
const WARM_UP_REQUESTS: usize = 4;
const WARM_UP_TEXTS: usize = 256;
/// Requests of the service under way at once, and texts of each.
const CONNECTIONS: usize = 4;
const REQUEST_TEXTS: usize = 32;
/// How long a client thinks between two queries.
const PAUSE: Duration = Duration::from_millis(20);

/// Makes every text new.
struct Texts {
    lines: Vec<String>,
    next: AtomicU64,
}

impl Texts {
    /// Real texts of the fixture, those of ordinary length.
    fn open() -> Self {
        let lines = std::fs::read_to_string(root().join("tests/data/texts.jsonl")).expect("the fixture is there");
        let text = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).expect("the fixture is JSON");
            (value["repeat"].is_null()).then(|| value["text"].as_str().expect("every line has a text").to_owned())
        };
        Self { lines: lines.lines().filter_map(text).collect(), next: AtomicU64::new(0) }
    }

    fn next(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{number} {}", self.lines[number as usize % self.lines.len()])
    }

    fn several(&self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.next()).collect()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn model() -> Model {
    let sources = Sources { models_dir: root().join("models"), revision: None };
    engine::open("all-MiniLM-L6-v2", &sources, &engine::Options::default())
        .expect("scripts/fetch-model has brought the default model")
}

fn cache(folder: &Path) -> Cache {
    let model = model();
    let config = store::Config { capacity_entries: 1 << 18, ..store::Config::default() };
    let store = Store::open(folder, &model.card.version, model.card.dims, &config).expect("an empty folder opens");
    Cache::new(store, Embedder::start(model, batch::Config::default()))
}

async fn ask(cache: &Cache, lane: Lane, texts: &[String]) -> Result<(), Error> {
    let texts: Vec<Cow<'_, str>> = texts.iter().map(|text| text.as_str().into()).collect();
    cache.embed(Request { lane, ..Request::new(Inputs::Texts(&texts)) }).await.map(|_| ())
}

/// One client that asks for one text after another. Answers with how long each took, in milliseconds.
async fn query(cache: &Cache, texts: &Texts, time: Duration) -> Vec<f64> {
    let started = Instant::now();
    let mut latencies = Vec::new();
    while started.elapsed() < time {
        let text = [texts.next()];
        let asked = Instant::now();
        ask(cache, Lane::Query, &text).await.expect("a query is answered");
        latencies.push(asked.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(PAUSE).await;
    }
    latencies
}

/// The same while a warm-up floods; and without queries if `with_queries` is not set. Answers with texts a second of the
/// warm-up, too.
async fn flooded(cache: &Cache, texts: &Arc<Texts>, time: Duration, with_queries: bool) -> (Vec<f64>, f64) {
    let stop = Arc::new(AtomicBool::new(false));
    let floods: Vec<_> = (0..WARM_UP_REQUESTS)
        .map(|_| {
            let (cache, texts, stop) = (cache.clone(), Arc::clone(texts), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    ask(&cache, Lane::WarmUp, &texts.several(WARM_UP_TEXTS)).await.expect("the queue has room for it");
                }
            })
        })
        .collect();
    // Until the engine is busy with it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let stored = |cache: &Cache| cache.stats().store.entries;
    let (before, started) = (stored(cache), Instant::now());
    let latencies = if with_queries {
        query(cache, texts, time).await
    } else {
        tokio::time::sleep(time).await;
        Vec::new()
    };
    let rate = ((stored(cache) - before) as usize - latencies.len()) as f64 / started.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for flood in floods {
        flood.abort();
        // What was queued is dropped, because nobody waits for it.
        let _ = flood.await;
    }
    while cache.stats().in_flight > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (latencies, rate)
}

fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() as f64 * share) as usize).min(values.len() - 1)]
}

fn median(values: &mut [f64]) -> f64 {
    percentile(values, 0.5)
}

fn mixed_load(runtime: &Runtime, texts: &Arc<Texts>, rounds: usize, time: Duration) {
    let folder = tempfile::tempdir().expect("there is a temporary folder");
    let cache = cache(folder.path());
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let (mut rates_beside, mut rates_alone) = (Vec::new(), Vec::new());
    runtime.block_on(async {
        query(&cache, texts, time / 4).await;
        for _ in 0..rounds {
            alone.extend(query(&cache, texts, time).await);
            let (latencies, rate) = flooded(&cache, texts, time, true).await;
            beside.extend(latencies);
            rates_beside.push(rate);
            rates_alone.push(flooded(&cache, texts, time, false).await.1);
        }
    });
    let (alone_count, beside_count) = (alone.len(), beside.len());
    let (p50, p99) = (median(&mut alone), percentile(&mut alone, 0.99));
    let (p50_beside, p99_beside) = (median(&mut beside), percentile(&mut beside, 0.99));
    println!("one text, alone:              p50 {p50:6.1} ms, p99 {p99:6.1} ms ({alone_count} queries)");
    println!("one text, a warm-up floods:   p50 {p50_beside:6.1} ms, p99 {p99_beside:6.1} ms ({beside_count} queries)");
    println!("p99 against p99:              {:6.2} (at most 3)", p99_beside / p99);
    let (beside, alone) = (median(&mut rates_beside), median(&mut rates_alone));
    println!("the warm-up: {beside:.1} texts/s beside the queries, {alone:.1} without any");
}

/// Texts a second of the engine by itself: tokenised, sorted, cut into batches, computed.
fn engine_alone(model: &mut Model, texts: &[String], tokens_max: usize) -> f64 {
    let started = Instant::now();
    let whole: Vec<&str> = texts.iter().map(String::as_str).collect();
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: model.card.max_tokens };
    let tokens = model.tokenizer.tokenize(&whole, "", truncation).expect("real texts have tokens");
    let lengths: Vec<usize> = tokens.iter().map(|tokens| tokens.ids.len()).collect();
    for batch in plan(&lengths, tokens_max, 256) {
        let batch: Vec<&[u32]> = batch.into_iter().map(|index| &*tokens[index].ids).collect();
        model.engine.embed(&batch).expect("the model computes");
    }
    texts.len() as f64 / started.elapsed().as_secs_f64()
}

/// Texts a second of the service: each connection posts its share of the texts, in requests.
fn over_http(address: SocketAddr, texts: &[String]) -> f64 {
    let started = Instant::now();
    let share = texts.len().div_ceil(CONNECTIONS);
    std::thread::scope(|scope| {
        for texts in texts.chunks(share) {
            scope.spawn(move || {
                let agent = ureq::Agent::new_with_defaults();
                for inputs in texts.chunks(REQUEST_TEXTS) {
                    let body = serde_json::json!({ "inputs": inputs });
                    let posted = agent.post(format!("http://{address}/embed")).send_json(&body);
                    let mut answer = posted.expect("the service answers");
                    assert_eq!(answer.headers()["x-compute-type"], "cpu", "every text is new");
                    answer.body_mut().read_to_vec().expect("the answer is whole");
                }
            });
        }
    });
    texts.len() as f64 / started.elapsed().as_secs_f64()
}

fn service(runtime: &Runtime, texts: &Texts, rounds: usize, time: Duration) {
    let folder = tempfile::tempdir().expect("there is a temporary folder");
    let cache = cache(folder.path());
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    runtime.spawn(http::serve(listener, cache, http::Config::default(), std::future::pending()));
    let mut model = model();
    let request = CONNECTIONS * REQUEST_TEXTS;
    let rate = engine_alone(&mut model, &texts.several(request), 4096);
    over_http(address, &texts.several(request));
    let count = ((rate * time.as_secs_f64()) as usize).next_multiple_of(request);

    const SIZES: [usize; 6] = [64, 128, 256, 512, 1024, 4096];
    let mut by_size = SIZES.map(|_| Vec::new());
    let (mut service, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let new = texts.several(count);
        let alone: Vec<f64> = SIZES.iter().map(|&tokens_max| engine_alone(&mut model, &new, tokens_max)).collect();
        let served = over_http(address, &new);
        ratios.push(served / alone.iter().copied().fold(0.0, f64::max));
        service.push(served);
        for (rates, rate) in by_size.iter_mut().zip(alone) {
            rates.push(rate);
        }
    }
    println!("\n{count} texts a round, texts/s, medians of {rounds} rounds");
    for (tokens_max, rates) in SIZES.into_iter().zip(&mut by_size) {
        println!("engine alone, batches of {tokens_max:4} tokens: {:8.1}", median(rates));
    }
    let (rate, ratio) = (median(&mut service), median(&mut ratios));
    println!("cold POST /embed, {REQUEST_TEXTS} texts, {CONNECTIONS} connections: {rate:8.1}");
    println!("against the engine's best:    {ratio:6.2} (at least 0.9)");
}

fn main() {
    // `cargo bench` adds a flag of its own.
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<f64>().ok());
    let rounds = numbers.next().unwrap_or(5.0).max(1.0) as usize;
    let time = Duration::from_secs_f64(numbers.next().unwrap_or(4.0));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let texts = Arc::new(Texts::open());
    mixed_load(&runtime, &texts, rounds, time);
    service(&runtime, &texts, rounds, time);
}

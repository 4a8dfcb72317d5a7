//! How fast is the search beside faiss, usearch and numpy, on the same rows and threads, and what does it find? The exact one here, the
//! graph in `graph.rs`, which also draws `docs/search.svg`.
//!
//! ```text
//! cargo bench --bench search_peers -- PYTHON [rounds] [threads]
//! ```
//!
//! `PYTHON` is an interpreter that has what `peer.py` names (see there); without it the command says so and measures ours
//! alone. Rows are real vectors: of 100,000 windows of 6 to 20 words over the texts of `tests/data`, by the default model
//! (made once, in minutes, kept in `target/search-peers`); queries are of windows of other texts. So rows have near neighbours, as
//! chunks of documents do. A million rows are these ten times over, each time with another 1 % of noise. All take turns,
//! round after round; figures are medians of the rounds, ratios medians of each round's ratio.

#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used, reason = "a bench")]

mod graph;
mod repeated;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde_json::{Value, json};
use vecmemo::domain::{Key, Truncation, TruncationDirection};
use vecmemo::engine::{self, Options, Sources};
use vecmemo::index::{Filter, Index, Query, Row, Rows};

const ROWS: usize = 100_000;
const QUERIES: usize = 1000;
const TILES: usize = 10;
const DIMS: usize = 384;
const K: usize = 10;
/// Batches of queries that are timed.
const BATCHES: [usize; 2] = [1, 32];
/// How often each is timed in a round.
const TIMES: usize = 20;
/// One row in so many is kept by the filter that is timed.
const KEPT_ONE_IN: usize = 100;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn lines(file: &str) -> Vec<String> {
    let unpacked = Command::new("gzip").arg("-dc").arg(root().join("tests/data").join(file)).output().unwrap();
    String::from_utf8(unpacked.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// So many windows of words, of texts in turn.
fn windows(texts: &[String], count: usize) -> Vec<String> {
    let words: Vec<Vec<&str>> = texts.iter().map(|text| text.split_whitespace().collect()).collect();
    let mut windows = BTreeSet::new();
    for turn in 0.. {
        for (number, words) in words.iter().enumerate() {
            let (length, from) = (6 + (number + 7 * turn) % 15, turn / 3);
            if from == 0 || from + length <= words.len() {
                windows.insert(words[from..words.len().min(from + length)].join(" "));
                if windows.len() == count {
                    return windows.into_iter().collect();
                }
            }
        }
        assert!(turn < 1000, "there are not so many windows");
    }
    unreachable!("the loop above ends")
}

/// Rows and queries, by the default model.
fn vectors(folder: &Path) -> (Vec<f16>, Vec<f32>) {
    let path = folder.join("rows.f16");
    let whole = (ROWS + QUERIES) * DIMS * size_of::<f16>();
    if std::fs::metadata(&path).map_or(0, |file| file.len()) != whole as u64 {
        let sources = Sources { models_dir: root().join("models"), revision: None };
        let mut model = engine::open("all-MiniLM-L6-v2", &sources, &Options::default())
            .expect("scripts/fetch-model has brought the default model");
        let texts = [lines("long-1k.txt.gz"), lines("short-10k.txt.gz")].concat();
        let (of_queries, of_rows): (Vec<_>, Vec<_>) = texts.into_iter().enumerate().partition(|(at, _)| at % 10 == 0);
        let plain = |texts: Vec<(usize, String)>| texts.into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        let all = [windows(&plain(of_rows), ROWS), windows(&plain(of_queries), QUERIES)].concat();
        let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: model.card.max_tokens };
        let mut rows: Vec<f16> = Vec::with_capacity(all.len() * DIMS);
        for (at, texts) in all.chunks(256).enumerate() {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let ids = model.tokenizer.tokenize(&texts, "", truncation).unwrap();
            let ids: Vec<&[u32]> = ids.iter().map(|tokens| &*tokens.ids).collect();
            for vector in model.engine.embed(&ids).unwrap() {
                rows.extend(unit(&vector).iter().map(|&value| f16::from_f32(value)));
            }
            eprint!("\r{} of {} vectors", at * 256, all.len());
        }
        eprintln!();
        std::fs::write(&path, bytemuck::cast_slice(&rows)).unwrap();
    }
    let bytes = std::fs::read(&path).unwrap();
    let mut rows: Vec<f16> = bytes.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
    let queries = rows.split_off(ROWS * DIMS);
    let queries = queries.chunks_exact(DIMS).flat_map(|row| unit(&row.to_f32_vec())).collect();
    (rows, queries)
}

fn unit(vector: &[f32]) -> Vec<f32> {
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.iter().map(|value| value / norm).collect()
}

/// The rows, as the store would show them.
struct Held(Vec<f16>);

fn key(place: usize) -> Key {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(place as u64).to_be_bytes());
    Key::from_bytes(bytes)
}

fn place(key: &Key) -> usize {
    u64::from_be_bytes(*key.as_bytes().first_chunk().unwrap()) as usize
}

impl Held {
    fn row(&self, place: usize) -> &[f16] {
        &self.0[place * DIMS..][..DIMS]
    }

    fn index(&self, threads: usize) -> Index {
        let index = Index::new(DIMS).with_threads_max(NonZero::new(threads).unwrap());
        (0..self.0.len() / DIMS).for_each(|at| self.set(&index, at));
        index
    }

    /// Puts a row into an index.
    fn set(&self, index: &Index, at: usize) {
        let (place, key, sequence) = (at as u32, key(at), at as u64);
        index.set(Row { place, key, sequence, namespace: 0, created: 0, expires: None, unit: self.row(at) });
    }
}

impl Rows for Held {
    fn read(&self, keys: &[Key], found: &mut dyn FnMut(usize, u64, &[f16])) -> bool {
        keys.iter().enumerate().for_each(|(at, key)| found(at, place(key) as u64, self.row(place(key))));
        true
    }
}

fn search(index: &Index, held: &Held, queries: &[f32], filter: &Filter<'_>) -> Vec<Vec<usize>> {
    let queries: Vec<Query<'_>> = queries.chunks_exact(DIMS).map(|vector| Query::new(vector, K)).collect();
    let found = index.search(&queries, filter, held).unwrap();
    found.iter().map(|hits| hits.iter().map(|hit| place(&hit.key)).collect()).collect()
}

fn dot(query: &[f32], row: &[f32]) -> f64 {
    query.iter().zip(row).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// For each query how similar the tenth nearest row is, by f64 over all rows.
fn tenths(held: &Held, queries: &[f32]) -> Vec<f64> {
    let wide: Vec<f32> = held.0.to_f32_vec();
    let tenth = |query: &[f32]| {
        let mut all: Vec<f64> = wide.chunks_exact(DIMS).map(|row| dot(query, row)).collect();
        *all.select_nth_unstable_by(K - 1, |a, b| b.total_cmp(a)).1
    };
    queries.chunks_exact(DIMS).map(tenth).collect()
}

/// The share of the true ten nearest that were found; one as near as the tenth counts.
fn recall(held: &Held, queries: &[f32], tenths: &[f64], found: &[Vec<usize>]) -> f64 {
    let is_near = |query: &[f32], tenth: f64, place: usize| {
        // f32's sums and f64's part in the seventh digit.
        dot(query, &held.row(place).to_f32_vec()) >= tenth - 1e-6
    };
    let right: usize = queries
        .chunks_exact(DIMS)
        .zip(tenths)
        .zip(found)
        .map(|((query, &tenth), found)| found.iter().filter(|&&place| is_near(query, tenth, place)).count())
        .sum();
    right as f64 / (found.len() * K) as f64
}

/// What of a peer's answer is not the answer, in sum.
fn differences(ours: &[Vec<usize>], theirs: &Value) -> usize {
    let theirs: Vec<Vec<usize>> = serde_json::from_value(theirs.clone()).unwrap();
    ours.iter().zip(theirs).map(|(ours, theirs)| ours.iter().filter(|place| !theirs.contains(place)).count()).sum()
}

struct Peer {
    process: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &str, folder: &Path, threads: usize) -> Self {
        let mut process = Command::new(python)
            .arg(root().join("benches/search_peers/peer.py"))
            .arg(folder.join("peer-rows.f16"))
            .arg(DIMS.to_string())
            .arg(folder.join("peer-queries.f32"))
            .arg(threads.to_string())
            .env("OPENBLAS_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the interpreter named can be started");
        let (asks, answers) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let mut peer = Self { process, asks, answers };
        println!("peers: {}", peer.answer());
        peer
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).expect("the peer answers in JSON (its own message stands above)")
    }

    fn ask(&mut self, question: &Value) -> (f64, Value) {
        writeln!(self.asks, "{question}").unwrap();
        let mut answer = self.answer();
        (answer["seconds"].as_f64().unwrap(), answer["found"].take())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let started = Instant::now();
    let done = work();
    (started.elapsed().as_secs_f64(), done)
}

/// Bytes a second that threads read of memory that no cache holds.
fn read_bandwidth(threads: usize) -> f64 {
    let memory = vec![1u64; 48 << 20];
    let part = memory.len() / threads;
    let seconds = |_| {
        let (seconds, sum) = timed(|| {
            std::thread::scope(|scope| {
                let sums: Vec<_> = memory
                    .chunks(part)
                    .map(|part| {
                        scope.spawn(move || {
                            let mut sums = [0u64; 16];
                            for values in part.as_chunks::<16>().0 {
                                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = sum.wrapping_add(*value));
                            }
                            sums.iter().sum::<u64>()
                        })
                    })
                    .collect();
                sums.into_iter().map(|sum| sum.join().unwrap()).sum::<u64>()
            })
        });
        assert!(sum > 0);
        seconds
    };
    let best = (0..8).map(seconds).fold(f64::MAX, f64::min);
    (memory.len() * size_of::<u64>()) as f64 / best
}

fn main() {
    let mut given = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let python = given.next();
    let rounds: usize = given.next().map_or(5, |rounds| rounds.parse().expect("rounds is a number"));
    let threads: usize = given.next().map_or(2, |threads| threads.parse().expect("threads is a number"));
    let folder = root().join("target/search-peers");
    std::fs::create_dir_all(&folder).unwrap();
    let (rows, queries) = vectors(&folder);
    let held = Held(rows);
    std::fs::write(folder.join("peer-rows.f16"), bytemuck::cast_slice(&held.0)).unwrap();
    std::fs::write(folder.join("peer-queries.f32"), bytemuck::cast_slice(&queries)).unwrap();

    let (seconds, index) = timed(|| held.index(threads));
    println!(
        "{ROWS} rows of {DIMS}, k = {K}, {threads} threads, {rounds} rounds; index made in {:.0} ms, {:.0} bytes a row",
        seconds * 1e3,
        index.memory_bytes() as f64 / ROWS as f64
    );
    let found: Vec<Vec<usize>> =
        queries.chunks(32 * DIMS).flat_map(|batch| search(&index, &held, batch, &Filter::all(0))).collect();
    let tenths = tenths(&held, &queries);
    println!("recall@{K} of {} queries against f64: {:.6}", found.len(), recall(&held, &queries, &tenths, &found));

    let kept: Vec<u32> = (0..ROWS as u32).filter(|place| *place as usize % KEPT_ONE_IN == 7).collect();
    let filtered = Filter { places: Some(&kept), ..Filter::all(0) };
    let mut peer = python.as_deref().map(|python| Peer::start(python, &folder, threads));
    if peer.is_none() {
        eprintln!("no interpreter is named: ours alone");
    }
    let cases = [(BATCHES[0], false), (BATCHES[1], false), (BATCHES[0], true)];
    for (batch, is_filtered) in cases {
        let names: &[&str] = if is_filtered { &["faiss"] } else { &["faiss", "usearch", "numpy"] };
        let (mut ours, mut theirs) = (Vec::new(), vec![Vec::new(); names.len()]);
        let mut wrong = vec![0; names.len()];
        for round in 0..rounds {
            let mut of_round = Vec::new();
            let mut of_peers = vec![Vec::new(); names.len()];
            for time in 0..TIMES {
                let first = (round * TIMES + time) * batch % (QUERIES - batch);
                let some = &queries[first * DIMS..][..batch * DIMS];
                let filter = if is_filtered { filtered.clone() } else { Filter::all(0) };
                let (seconds, found) = timed(|| search(&index, &held, some, &filter));
                of_round.push(seconds);
                for (at, name) in names.iter().enumerate() {
                    // Slow ones are asked less often.
                    let Some(peer) = peer.as_mut().filter(|_| batch == 1 || time < 4) else { continue };
                    let mut question = json!({ "peer": name, "first": first, "count": batch, "k": K });
                    if is_filtered {
                        question["kept"] = json!(kept);
                    }
                    let (seconds, answer) = peer.ask(&question);
                    of_peers[at].push(seconds);
                    wrong[at] += differences(&found, &answer);
                }
            }
            ours.push(median(&of_round));
            theirs
                .iter_mut()
                .zip(of_peers)
                .filter(|(_, of)| !of.is_empty())
                .for_each(|(all, of)| all.push(median(&of)));
        }
        let what = if is_filtered { ", 1 row in 100 kept" } else { "" };
        println!("{batch} queries{what}: {:.3} ms", median(&ours) * 1e3);
        for ((name, theirs), wrong) in
            names.iter().zip(&theirs).zip(wrong).filter(|((_, theirs), _)| !theirs.is_empty())
        {
            let ratios: Vec<f64> = theirs.iter().zip(&ours).map(|(theirs, ours)| theirs / ours).collect();
            println!(
                "  {name:<8} {:.3} ms = {:.1} × ours ({wrong} of its answers are not ours)",
                median(theirs) * 1e3,
                median(&ratios)
            );
        }
    }
    drop(index);
    graph::measure(&held, &queries, &tenths, peer.as_mut(), rounds, threads, &folder);
    repeated::measure(&held, &queries, rounds);
    drop(peer);

    let mut state = 1u64;
    let mut noisy = |value: &f16| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let noise = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        f16::from_f32(value.to_f32() + 0.02 * noise * 0.05)
    };
    let tiled = Held((0..TILES).flat_map(|_| held.0.iter().map(&mut noisy).collect::<Vec<_>>()).collect());
    let index = tiled.index(threads);
    let took: Vec<f64> = (0..TIMES)
        .map(|at| timed(|| search(&index, &tiled, &queries[at * DIMS..][..DIMS], &Filter::all(0))).0)
        .collect();
    let bandwidth = read_bandwidth(threads);
    let share = (ROWS * TILES * DIMS) as f64 / median(&took) / bandwidth;
    println!(
        "{} rows, 1 query: {:.1} ms = {share:.2} of the read bandwidth ({:.1} GB/s, {threads} threads)",
        ROWS * TILES,
        median(&took) * 1e3,
        bandwidth / 1e9
    );
}

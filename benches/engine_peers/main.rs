//! Is the CPU engine faster than onnxruntime, on the same texts, at its best batch size?
//!
//! ```text
//! cargo bench --bench engine_peers -- PYTHON [rounds] [threads]
//! ```
//!
//! `PYTHON` is an interpreter that has what `peer.py` names (see there); without it the command says so and measures ours
//! alone. Texts are real: 1,000 package descriptions and 1,000 one-line summaries, cut to the model's 256 tokens, sorted by
//! length for everybody. Engines take turns, round after round; figures are medians of the rounds, ratios medians of each
//! round's ratio. The peer's batch size is the best of a sweep.

#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used, reason = "a bench")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use vecmemo::domain::{Truncation, TruncationDirection};
use vecmemo::engine::{self, Model, Options, Precision, Sources};

/// What the batcher gives the engine at once.
const BATCH_TOKENS: usize = 4096;
/// Texts of which single ones are timed in a round.
const SINGLES: usize = 30;
const OURS: [(&str, Precision); 3] = [("f32", Precision::F32), ("half", Precision::Half), ("int8", Precision::Int8)];
const PEERS: [&str; 2] = ["f32", "int8"];

type Ids = Vec<Box<[u32]>>;

struct Corpus {
    name: &'static str,
    ids: Ids,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn open(precision: Precision, threads: usize) -> Model {
    let sources = Sources { models_dir: root().join("models"), revision: None };
    let options = Options { precision, threads: Some(threads), ..Options::default() };
    engine::open("all-MiniLM-L6-v2", &sources, &options).expect("scripts/fetch-model has brought the default model")
}

/// The lines of a packed file.
fn lines(file: &str, count: usize, every: usize) -> Vec<String> {
    let unpacked = Command::new("gzip").arg("-dc").arg(root().join("tests/data").join(file)).output().unwrap();
    String::from_utf8(unpacked.stdout).unwrap().lines().step_by(every).take(count).map(str::to_owned).collect()
}

fn tokenize(model: &Model, texts: &[String]) -> Ids {
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: model.card.max_tokens };
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut ids: Ids = model.tokenizer.tokenize(&texts, "", truncation).unwrap().into_iter().map(|t| t.ids).collect();
    ids.sort_by_key(|ids| std::cmp::Reverse(ids.len()));
    ids
}

fn embed_all(model: &mut Model, ids: &Ids) -> f64 {
    let started = Instant::now();
    let mut from = 0;
    while from < ids.len() {
        let mut tokens = 0;
        let fits = ids[from..].iter().take_while(|ids| {
            tokens += ids.len();
            tokens <= BATCH_TOKENS
        });
        let to = from + fits.count().max(1);
        let batch: Vec<&[u32]> = ids[from..to].iter().map(|ids| &**ids).collect();
        model.engine.embed(&batch).unwrap();
        from = to;
    }
    started.elapsed().as_secs_f64()
}

fn embed_singly(model: &mut Model, ids: &Ids) -> Vec<f64> {
    let one = |index: usize| {
        let started = Instant::now();
        model.engine.embed(&[&ids[index % ids.len()]]).unwrap();
        started.elapsed().as_secs_f64() * 1e3
    };
    (0..SINGLES).map(one).collect()
}

/// onnxruntime, in a process of its own.
struct Peer {
    process: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &str, threads: usize) -> Self {
        let mut process = Command::new(python)
            .arg(root().join("benches/engine_peers/peer.py"))
            .args([root().join("models/all-MiniLM-L6-v2"), root().join("target/engine-peers")])
            .arg(threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the interpreter named can be started");
        let (asks, answers) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let mut peer = Self { process, asks, answers };
        println!("onnxruntime {}", peer.answer()["version"]);
        peer
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).expect("the peer answers in JSON (its own message stands above)")
    }

    fn ask(&mut self, question: &Value) -> Value {
        writeln!(self.asks, "{question}").unwrap();
        self.answer()
    }

    fn run(&mut self, engine: &str, batch: usize) -> f64 {
        self.ask(&json!({"do": "run", "engine": engine, "batch": batch}))["seconds"].as_f64().unwrap()
    }

    fn singly(&mut self, engine: &str) -> Vec<f64> {
        let answer = self.ask(&json!({"do": "one", "engine": engine, "count": SINGLES}));
        answer["milliseconds"].as_array().unwrap().iter().map(|ms| ms.as_f64().unwrap()).collect()
    }

    fn vectors(&mut self, engine: &str) -> Vec<Vec<f32>> {
        let answer = self.ask(&json!({"do": "vectors", "engine": engine}));
        serde_json::from_value(answer["vectors"].clone()).unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn cosines(a: &[Vec<f32>], b: &[Vec<f32>]) -> (f64, f64) {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let all: Vec<f64> = a.iter().zip(b).map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).collect();
    (all.iter().copied().fold(f64::MAX, f64::min), all.iter().sum::<f64>() / all.len() as f64)
}

/// Every n-th text: a sample over all lengths.
fn sample(ids: &Ids, count: usize) -> Ids {
    ids.iter().step_by((ids.len() / count).max(1)).take(count).cloned().collect()
}

fn main() {
    let mut given = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let python = given.next();
    let rounds: usize = given.next().map_or(7, |rounds| rounds.parse().expect("rounds is a number"));
    let threads: usize = given.next().map_or(2, |threads| threads.parse().expect("threads is a number"));

    let mut models: Vec<(&str, Model)> =
        OURS.iter().map(|&(name, precision)| (name, open(precision, threads))).collect();
    for (name, model) in &models {
        println!("{name}: {}", model.card.device.kernel());
    }
    let long = lines("long-1k.txt.gz", 1000, 1);
    let short = lines("short-10k.txt.gz", 1000, 10);
    let corpora = [
        Corpus { name: "2,000 mixed texts", ids: tokenize(&models[0].1, &[long.clone(), short.clone()].concat()) },
        Corpus { name: "long texts", ids: tokenize(&models[0].1, &long) },
        Corpus { name: "short texts", ids: tokenize(&models[0].1, &short) },
    ];
    let mut peer = python.map(|python| Peer::start(&python, threads));
    if peer.is_none() {
        eprintln!("no peer: name a Python interpreter that has onnxruntime, torch, transformers, onnx and onnxscript");
    }

    for Corpus { name, ids } in &corpora {
        let tokens: usize = ids.iter().map(|ids| ids.len()).sum();
        println!(
            "\n{name}: {} texts, {:.1} tokens on average, {threads} threads, {rounds} rounds",
            ids.len(),
            tokens as f64 / ids.len() as f64
        );
        measure(&mut models, peer.as_mut(), ids, rounds);
    }
    fidelity(&mut models, peer.as_mut(), &sample(&corpora[0].ids, 400));
}

fn measure(models: &mut [(&str, Model)], mut peer: Option<&mut Peer>, ids: &Ids, rounds: usize) {
    // Each peer's batch size, from a sweep over a sample.
    let mut best = Vec::new();
    if let Some(peer) = &mut peer {
        peer.ask(&json!({"do": "texts", "ids": sample(ids, 300)}));
        for engine in PEERS {
            peer.run(engine, 8);
            let times =
                [1, 2, 4, 8, 16, 32, 64].map(|batch| (batch, peer.run(engine, batch).min(peer.run(engine, batch))));
            let batch = times.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
            println!(
                "  onnxruntime {engine}: best batch {batch} of {:?}",
                times.map(|(batch, seconds)| (batch, (seconds * 1e3).round()))
            );
            best.push(batch);
        }
        peer.ask(&json!({"do": "texts", "ids": ids}));
    }
    let mut ours = vec![Vec::new(); models.len()];
    let mut theirs = vec![Vec::new(); PEERS.len()];
    let mut ours_single = vec![Vec::new(); models.len()];
    let mut theirs_single = vec![Vec::new(); PEERS.len()];
    let singles = sample(ids, SINGLES);
    for _ in 0..rounds {
        for (index, (_, model)) in models.iter_mut().enumerate() {
            ours[index].push(embed_all(model, ids));
        }
        if let Some(peer) = &mut peer {
            for (index, engine) in PEERS.iter().enumerate() {
                theirs[index].push(peer.run(engine, best[index]));
            }
            peer.ask(&json!({"do": "texts", "ids": singles}));
            for (index, engine) in PEERS.iter().enumerate() {
                theirs_single[index].push(median(peer.singly(engine)));
            }
            peer.ask(&json!({"do": "texts", "ids": ids}));
        }
        for (index, (_, model)) in models.iter_mut().enumerate() {
            ours_single[index].push(median(embed_singly(model, &singles)));
        }
    }
    let count = ids.len() as f64;
    for (index, (name, _)) in models.iter().enumerate() {
        print!("  ours {name:5} {:7.1} texts/s", count / median(ours[index].clone()));
        for (peer, theirs) in PEERS.iter().zip(&theirs).filter(|(_, theirs)| !theirs.is_empty()) {
            let ratios = theirs.iter().zip(&ours[index]).map(|(theirs, ours)| theirs / ours).collect();
            print!("   {:.2}× onnxruntime {peer}", median(ratios));
        }
        print!("   one text alone, p50: {:.2} ms", median(ours_single[index].clone()));
        if !theirs_single[0].is_empty() {
            let ratios = ours_single[index].iter().zip(&theirs_single[0]).map(|(ours, theirs)| ours / theirs).collect();
            print!(" = {:.2} of onnxruntime f32's", median(ratios));
        }
        println!();
    }
    for (index, name) in PEERS.iter().enumerate().filter(|(index, _)| !theirs[*index].is_empty()) {
        println!(
            "  onnxruntime {name:5} {:7.1} texts/s   one text alone, p50: {:.2} ms",
            count / median(theirs[index].clone()),
            median(theirs_single[index].clone())
        );
    }
}

fn fidelity(models: &mut [(&str, Model)], peer: Option<&mut Peer>, ids: &Ids) {
    let mut vectors = Vec::new();
    for (name, model) in models {
        let batch: Vec<&[u32]> = ids.iter().map(|ids| &**ids).collect();
        vectors.push((format!("ours {name}"), model.engine.embed(&batch).unwrap()));
    }
    let mut reference = vectors[0].1.clone();
    println!("\ncosine to f32 over {} texts:", ids.len());
    if let Some(peer) = peer {
        peer.ask(&json!({"do": "texts", "ids": ids}));
        reference = peer.vectors("f32");
        vectors.push(("onnxruntime int8".to_owned(), peer.vectors("int8")));
        println!("  (to onnxruntime's f32)");
    }
    for (name, vectors) in &vectors {
        let (least, mean) = cosines(&reference, vectors);
        println!("  {name:17} least {least:.7}, mean {mean:.7}");
    }
}

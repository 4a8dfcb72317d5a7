//! What does a miss cost? Tokenising, and the engine by the shape of its batch, on the default model.

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vecmemo::batch::plan;
use vecmemo::domain::{Truncation, TruncationDirection};
use vecmemo::engine::{self, Model, Sources};

const RIGHT: Truncation = Truncation { direction: TruncationDirection::Right, max_tokens: 256 };

fn model() -> Model {
    let models_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    engine::open("all-MiniLM-L6-v2", &Sources { models_dir, revision: None }, &engine::Options::default())
        .expect("scripts/fetch-model has brought the default model")
}

/// Real texts of the fixture, those of ordinary length.
fn texts() -> Vec<String> {
    let lines = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/texts.jsonl"))
        .expect("the fixture is in the repository");
    let text = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).expect("the fixture is JSON");
        (value["repeat"].is_null()).then(|| value["text"].as_str().expect("every line has a text").to_owned())
    };
    lines.lines().filter_map(text).collect()
}

fn tokenize(criterion: &mut Criterion) {
    let (model, texts) = (model(), texts());
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut group = criterion.benchmark_group("tokenize");
    for count in [1, 32] {
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("texts", count), |bencher| {
            bencher.iter(|| black_box(model.tokenizer.tokenize(&texts[..count], "", RIGHT)));
        });
    }
    group.finish();
}

fn embed(criterion: &mut Criterion) {
    let mut model = model();
    let mut group = criterion.benchmark_group("engine");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for (texts, tokens) in [(1, 16), (32, 16), (256, 16), (1, 93), (32, 93), (16, 256)] {
        let ids: Vec<u32> = (0..tokens as u32).map(|id| 1000 + id * 7).collect();
        let batch = vec![ids.as_slice(); texts];
        group.throughput(Throughput::Elements(texts as u64));
        group.bench_function(format!("{texts} texts of {tokens} tokens"), |bencher| {
            bencher.iter(|| black_box(model.engine.embed(&batch)));
        });
    }
    group.finish();
}

/// Real texts as a warm-up would send them: tokenised, cut into batches, computed.
fn real_texts(criterion: &mut Criterion) {
    let (mut model, texts) = (model(), texts());
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut group = criterion.benchmark_group("engine on real texts");
    group.sample_size(10).throughput(Throughput::Elements(texts.len() as u64));
    group.bench_function("tokenise, plan, embed", |bencher| {
        bencher.iter(|| {
            let tokens = model.tokenizer.tokenize(&texts, "", RIGHT).expect("real texts have tokens");
            let lengths: Vec<usize> = tokens.iter().map(|tokens| tokens.ids.len()).collect();
            for batch in plan(&lengths, 4096, 256) {
                let batch: Vec<&[u32]> = batch.into_iter().map(|index| &*tokens[index].ids).collect();
                black_box(model.engine.embed(&batch)).expect("the model computes");
            }
        });
    });
    group.finish();
}

fn plans(criterion: &mut Criterion) {
    let lengths: Vec<usize> = (0..2048).map(|n| 8 + n * 37 % 250).collect();
    let mut group = criterion.benchmark_group("plan");
    group.throughput(Throughput::Elements(lengths.len() as u64));
    group.bench_function("2048 texts", |bencher| bencher.iter(|| black_box(plan(&lengths, 4096, 256))));
    group.finish();
}

criterion_group!(benches, tokenize, embed, real_texts, plans);
criterion_main!(benches);

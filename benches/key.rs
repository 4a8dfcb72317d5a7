//! What does a key cost? The content hash and the keyed hash of a text, under a scope that is hashed once a request.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vecmemo::domain::{ContentHash, FingerprintBuilder, Namespace, Scope, Truncation, TruncationDirection};

fn keys(criterion: &mut Criterion) {
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: 256 };
    let model = FingerprintBuilder::new().finish();
    let namespace = Namespace::default();
    let scope = Scope::new(&namespace, &model, "", truncation);
    let mut group = criterion.benchmark_group("key");
    group.throughput(Throughput::Elements(1));
    for bytes in [80, 400, 4000] {
        let text = "t".repeat(bytes);
        group.bench_with_input(BenchmarkId::new("text of bytes", bytes), &text, |bencher, text| {
            bencher.iter(|| black_box(scope.key(ContentHash::of(black_box(text)))));
        });
    }
    group.bench_function("scope", |bencher| {
        bencher.iter(|| black_box(Scope::new(&namespace, &model, black_box("query: "), truncation)));
    });
    group.finish();
}

criterion_group!(benches, keys);
criterion_main!(benches);

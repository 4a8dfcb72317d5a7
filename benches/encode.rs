//! What does it cost to write one vector of 384 values in each format?

#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use vecmemo::domain::Embedding;
use vecmemo::http::{encode, numbers};

const DIMS: usize = 384;
const ROWS: usize = 512;

/// Unit vectors with values as spread as a model's.
fn rows() -> Vec<Box<[f16]>> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut draw = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut raw = || (0..DIMS).map(|_| draw() + draw() + draw()).collect::<Vec<f32>>();
    (0..ROWS).map(|_| Embedding::from_raw(&raw()).expect("it has a direction").unit).collect()
}

fn encode(criterion: &mut Criterion) {
    numbers::prepare();
    let rows = rows();
    let mut group = criterion.benchmark_group("encode 384 dims");
    group.throughput(Throughput::Elements(1));
    let mut bench = |name: &str, write: &dyn Fn(&mut Vec<u8>, &[f16])| {
        let (mut out, mut next) = (Vec::with_capacity(DIMS * 32), 0);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                next = (next + 1) % ROWS;
                out.clear();
                write(&mut out, black_box(&rows[next]));
                out.len()
            });
        });
    };
    bench("JSON by table", &numbers::write_list);
    bench("JSON by serde_json", &|out, row| {
        let wide: Vec<f32> = row.iter().map(|value| value.to_f32()).collect();
        serde_json::to_writer(out, &wide).expect("memory can be written to");
    });
    bench("base64 of f32", &encode::append_base64);
    bench("npy f16", &|out, row| *out = encode::npy(row, DIMS, false));
    bench("raw f16", &|out, row| out.extend_from_slice(bytemuck::cast_slice(row)));
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);

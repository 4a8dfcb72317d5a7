//! The graph beside usearch's, over the same rows: recall against queries a second, memory, a narrow filter, and what churn costs.

use std::num::NonZero;
use std::path::Path;
use std::time::Instant;

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde_json::json;
use usearch::{IndexOptions, MetricKind, ScalarKind};
use vecmemo::index::{Choice, Filter, GraphOptions, Index, Query};

use super::{DIMS, Held, K, KEPT_ONE_IN, Peer, QUERIES, TIMES, median, place, recall, root, search, timed};

/// How many rows our walks keep.
const BREADTHS: [usize; 10] = [12, 16, 24, 32, 48, 64, 96, 128, 192, 256];
/// How many usearch's searches keep.
const EXPANSIONS: [usize; 10] = [12, 16, 24, 32, 48, 64, 96, 128, 256, 512];
/// What is asked of both.
const RECALLS: [f64; 2] = [0.95, 0.99];
/// Rows that churn is measured on, and how many of them go and come, in parts of a hundred.
const CHURN: (usize, usize) = (20_000, 150);

/// One way to search with one setting: what it finds, and how many queries a second it answered in each round.
struct Point {
    setting: usize,
    recall: f64,
    rates: Vec<f64>,
}

pub(super) fn measure(
    held: &Held,
    queries: &[f32],
    tenths: &[f64],
    mut peer: Option<&mut Peer>,
    rounds: usize,
    threads: usize,
    folder: &Path,
) {
    let index = Index::new(DIMS).with_threads_max(NonZero::new(threads).unwrap());
    let options = GraphOptions { folder: Some(folder.join("graph")), rows_min: None };
    let index = index.with_graph(options).with_choice(Choice::Graph);
    (0..held.0.len() / DIMS).for_each(|at| held.set(&index, at));
    let rows_bytes = index.memory_bytes();
    let (seconds, ()) = timed(|| {
        index.start();
        index.wait_for_graph();
    });
    let graph_bytes = index.graph_figures().memory_bytes;
    let of_rows = |bytes: usize| bytes as f64 / (held.0.len() / DIMS) as f64;
    println!(
        "graph: {} segments in {seconds:.1} s (0 if kept from another run), {:.0} bytes a row beside {:.0}",
        index.graph_figures().segments,
        of_rows(graph_bytes),
        of_rows(rows_bytes)
    );

    let ours = |breadth: Option<usize>| {
        index.set_breadth(breadth.and_then(NonZero::new));
        let (seconds, found) = timed(|| search(&index, held, queries, &Filter::all(0)));
        (QUERIES as f64 / seconds, found)
    };
    let scan = |index: &Index| {
        let asked: Vec<Query<'_>> = queries.chunks_exact(DIMS).map(|vector| Query::new(vector, K)).collect();
        timed(|| {
            for query in &asked {
                index.answer(&[*query], &Filter::all(0), held, true).unwrap();
            }
        })
        .0
    };
    let mut theirs = |expansion: usize| {
        let question = json!({ "peer": "graph", "expansion": expansion, "first": 0, "count": QUERIES, "k": K });
        let (seconds, found) = peer.as_mut()?.ask(&question);
        Some((QUERIES as f64 / seconds, serde_json::from_value::<Vec<Vec<usize>>>(found).unwrap()))
    };
    let point = |setting, found: &[Vec<usize>]| Point {
        setting,
        recall: recall(held, queries, tenths, found),
        rates: Vec::new(),
    };
    let mut by_us: Vec<Point> = BREADTHS.iter().map(|&breadth| point(breadth, &ours(Some(breadth)).1)).collect();
    by_us.push(point(0, &ours(None).1));
    let mut by_them: Vec<Point> =
        EXPANSIONS.iter().filter_map(|&expansion| Some(point(expansion, &theirs(expansion)?.1))).collect();
    let mut scans = Vec::new();
    for _ in 0..rounds {
        for (at, point) in by_us.iter_mut().enumerate() {
            point.rates.push(ours((point.setting > 0).then_some(point.setting)).0);
            if let Some(point) = by_them.get_mut(at) {
                point.rates.extend(theirs(point.setting).map(|(rate, _)| rate));
            }
        }
        scans.push(QUERIES as f64 / scan(&index));
    }
    for (name, points) in [("our graph", &by_us), ("usearch", &by_them)] {
        for Point { setting, recall, rates } in points {
            let setting = if *setting == 0 { "as measured".to_owned() } else { setting.to_string() };
            println!("  {name} {setting}: recall@{K} {recall:.4}, {:.0} queries/s", median(rates));
        }
    }
    println!("  exact, one by one: {:.0} queries/s", median(&scans));
    for least in RECALLS {
        let of = |points: &'_ [Point]| points.iter().position(|point| point.recall >= least && point.setting > 0);
        let (Some(us), Some(them)) = (of(&by_us), of(&by_them)) else { continue };
        let (us, them) = (&by_us[us], &by_them[them]);
        let ratios: Vec<f64> = us.rates.iter().zip(&them.rates).map(|(us, them)| us / them).collect();
        println!(
            "recall >= {least}: {:.0} queries/s = {:.2} x usearch's {:.0} ({threads} threads)",
            median(&us.rates),
            median(&ratios),
            median(&them.rates)
        );
    }
    let Some(peer) = peer else { return churn(held, queries) };
    let their_bytes = peer.ask(&json!({ "peer": "graph", "memory": true })).1.as_u64().unwrap() as usize;
    println!(
        "memory: {:.0} bytes a row = {:.2} x usearch's {:.0}; together with the rows that are scanned, {:.2} x",
        of_rows(graph_bytes),
        graph_bytes as f64 / their_bytes as f64,
        of_rows(their_bytes),
        (graph_bytes + rows_bytes) as f64 / their_bytes as f64
    );
    let curve =
        |points: &[Point]| points.iter().map(|point| json!([point.recall, median(&point.rates)])).collect::<Vec<_>>();
    let curves = json!({
        "vecmemo, graph": curve(&by_us),
        "usearch, f16 graph": curve(&by_them),
        "vecmemo, exact, one by one": [[1.0, median(&scans)]],
    });
    let note = format!("{} real vectors × {DIMS}, {threads} threads, CPU", held.0.len() / DIMS);
    let file = root().join("docs/search.svg");
    peer.ask(&json!({ "draw": file, "curves": curves, "note": note }));
    println!("drawn: {}", file.display());
    filter(held, queries, &index, &folder.join("peer-graph.usearch"), rounds);
    churn(held, queries);
}

/// One query at a time, one row in a hundred kept, against usearch's graph asked with the same filter.
fn filter(held: &Held, queries: &[f32], index: &Index, graph: &Path, rounds: usize) {
    let options = IndexOptions {
        dimensions: DIMS,
        metric: MetricKind::IP,
        quantization: ScalarKind::F16,
        connectivity: 16,
        expansion_add: 128,
        expansion_search: 64,
        multi: false,
    };
    let mut peer = usearch::Index::new(&options).unwrap();
    peer.load(graph.to_str().unwrap()).unwrap();
    // The crate is built without its kernels: it is given one as good as ours for f16.
    peer.change_metric::<usearch::f16>(Box::new(|a, b| {
        // SAFETY: usearch calls this with vectors of the dimensions that it was made for.
        #[expect(unsafe_code, reason = "usearch hands its metric pointers")]
        let [a, b] = [a, b].map(|vector| unsafe { std::slice::from_raw_parts(vector.cast::<f16>(), DIMS) });
        let (mut wide_a, mut wide_b) = ([0.0f32; DIMS], [0.0f32; DIMS]);
        a.convert_to_f32_slice(&mut wide_a);
        b.convert_to_f32_slice(&mut wide_b);
        let mut sums = [0.0f32; 16];
        for (a, b) in wide_a.as_chunks::<16>().0.iter().zip(wide_b.as_chunks::<16>().0) {
            (0..16).for_each(|lane| sums[lane] += a[lane] * b[lane]);
        }
        1.0 - sums.iter().sum::<f32>()
    }));
    let kept: Vec<u32> = (0..(held.0.len() / DIMS) as u32).filter(|at| *at as usize % KEPT_ONE_IN == 7).collect();
    let filter = Filter { places: Some(&kept), ..Filter::all(0) };
    let (mut ratios, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut found, mut all) = (0, 0);
    for round in 0..rounds {
        let (mut of_us, mut of_them) = (Vec::new(), Vec::new());
        for time in 0..TIMES {
            let query = &queries[(round * TIMES + time) % QUERIES * DIMS..][..DIMS];
            let (seconds, hits) = timed(|| search(index, held, query, &filter).remove(0));
            of_us.push(seconds);
            let halves: Vec<i16> = query.iter().map(|&value| f16::from_f32(value).to_bits() as i16).collect();
            let halves = usearch::f16::from_i16s(&halves);
            let is_kept = |key: u64| key as usize % KEPT_ONE_IN == 7;
            let (seconds, matches) = timed(|| peer.filtered_search(halves, K, is_kept).unwrap());
            of_them.push(seconds);
            found += hits.iter().filter(|&&hit| matches.keys.contains(&(hit as u64))).count();
            all += hits.len();
        }
        ours.push(median(&of_us));
        theirs.push(median(&of_them));
        ratios.push(median(&of_them) / median(&of_us));
    }
    println!(
        "1 row in {KEPT_ONE_IN} kept: {:.3} ms exactly; usearch's filtered search {:.2} ms = {:.0} x ours, and finds {:.3} of the rows",
        median(&ours) * 1e3,
        median(&theirs) * 1e3,
        median(&ratios),
        found as f64 / all as f64
    );
}

/// What the graph finds before rows come and go, and after.
fn churn(held: &Held, queries: &[f32]) {
    let (count, percent) = CHURN;
    // Every second row, so that what comes is like what goes.
    let options = GraphOptions { folder: None, rows_min: Some(count / 4) };
    let index = Index::new(DIMS).with_graph(options).with_choice(Choice::Graph);
    let mut living: Vec<usize> = (0..count).map(|at| at * 2).collect();
    living.iter().for_each(|&at| held.set(&index, at));
    index.start();
    index.wait_for_graph();
    let found = |living: &[usize]| {
        let (mut found, mut all) = (0, 0);
        for vector in queries.chunks_exact(DIMS) {
            let query = [Query::new(vector, K)];
            let exact = index.answer(&query, &Filter::all(0), held, true).unwrap();
            let graph = index.answer(&query, &Filter::all(0), held, false).unwrap();
            let worst = exact.hits[0][K - 1].similarity;
            found += graph.hits[0].iter().filter(|hit| hit.similarity >= worst).count();
            all += K;
            assert!(graph.hits[0].iter().all(|hit| living.binary_search(&place(&hit.key)).is_ok()));
        }
        found as f64 / all as f64
    };
    let before = found(&living);
    let started = Instant::now();
    let changes = count * percent / 100;
    for change in 0..changes {
        // The rows after the living ones come, the first of them go.
        let (gone, fresh) = (change, count + change);
        index.clear(living[gone] as u32);
        living.push(fresh * 2 % (held.0.len() / DIMS) + usize::from(fresh * 2 >= held.0.len() / DIMS));
        held.set(&index, living[fresh]);
        if change % (changes / 6) == 0 {
            index.wait_for_graph();
        }
    }
    index.wait_for_graph();
    let mut living = living.split_off(changes);
    living.sort_unstable();
    let after = found(&living);
    println!(
        "churn: {percent} % of {count} rows replaced in {:.0} s: recall@{K} {before:.4} before, {after:.4} after; {:?}",
        started.elapsed().as_secs_f64(),
        index.graph_figures()
    );
}

//! How many near-duplicates does reuse answer, does it keep what it promises, and what does it cost?
//!
//! ```text
//! cargo bench --bench reuse -- [splits] [CORPUS ...]
//! ```
//!
//! Corpora are what `scripts/reuse-corpora` has written to `target/reuse`; their true vectors are computed by the default model
//! at its default precision (once, in minutes). Each split calibrates with the product's own code on seven tenths of the bases'
//! edits and of the natural texts, and judges on the rest. Writes `target/reuse/report.json`, of which `scripts/reuse-report`
//! makes a table and a picture.

#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used, reason = "a bench")]

mod corpus;
mod cost;
mod figures;
mod recall;
mod trial;

use std::sync::Arc;

use rayon::prelude::*;
use serde_json::json;
use vecmemo::engine::{Model, Options};
use vecmemo::reuse::{Matcher, Table};

use corpus::Corpus;
use trial::{Judged, Traffic};

/// Splits in which a calibration is tried on the other corpora, and without vetoes.
const SPLITS_ASIDE: u64 = 8;
/// Tokens that are distilled at a time.
const BATCH: usize = 512;

/// The static table, made as the product does: of each token alone, between the special tokens of a text. Kept.
fn table(model: &mut Model) -> Table {
    let path = corpus::folder().join(format!("table-{}.safetensors", model.card.version));
    if let Some(table) = std::fs::read(&path).ok().and_then(|bytes| Table::from_bytes(&bytes).ok()) {
        return table;
    }
    let around = model.tokenizer.inspect("", "", true).unwrap();
    let [before, after] = around.as_slice() else { panic!("a text stands between two special tokens") };
    let all: Vec<[u32; 3]> =
        (0..model.tokenizer.vocabulary_size() as u32).map(|id| [before.id, id, after.id]).collect();
    let mut vectors = Vec::new();
    for batch in all.chunks(BATCH) {
        let ids: Vec<&[u32]> = batch.iter().map(<[u32; 3]>::as_slice).collect();
        vectors.extend(model.engine.embed(&ids).unwrap().into_iter().flatten());
        eprint!("\r{} of {} tokens distilled", vectors.len() / model.card.dims, all.len());
    }
    eprintln!();
    let table = Table::distil(&vectors, model.card.dims);
    std::fs::write(&path, table.to_bytes()).unwrap();
    table
}

fn main() {
    let mut given = std::env::args().skip(1).filter(|argument| argument != "--bench").peekable();
    let splits: u64 = given.next_if(|word| word.parse::<u64>().is_ok()).map_or(20, |splits| splits.parse().unwrap());
    let mut names: Vec<String> = given.collect();
    if names.is_empty() {
        names = ["descriptions", "manual"].map(str::to_owned).to_vec();
    }
    let mut model = corpus::model(&Options::default());
    let pieces: Vec<String> =
        (0..model.tokenizer.vocabulary_size() as u32).map(|id| model.tokenizer.piece(id).unwrap_or_default()).collect();
    let table = Arc::new(table(&mut model));
    let traffics: Vec<Traffic> = names.iter().map(|name| Traffic::new(Corpus::open(name, &mut model))).collect();

    let (mut judged, mut recall_of_8_bits, mut token_hits) = (Vec::new(), Vec::new(), Vec::new());
    for traffic in &traffics {
        let name = &traffic.corpus.name;
        let (hits, identical) = traffic.token_hits();
        token_hits.push(json!({ "corpus": name, "hits": hits, "identical": identical }));
        let of_split = |split: u64| {
            let mut judged = Vec::new();
            for vetoes in [true, false].into_iter().filter(|&vetoes| vetoes || split < SPLITS_ASIDE) {
                let calibration = traffic.calibrate(&table, &pieces, split, vetoes);
                let matcher = traffic.matcher(&table, &pieces, split, calibration.clone());
                judged.extend(traffic.judge(&matcher, name, split, vetoes));
                if vetoes && split < SPLITS_ASIDE {
                    for other in traffics.iter().filter(|other| other.corpus.name != *name) {
                        let matcher: Matcher = other.matcher(&table, &pieces, split, calibration.clone());
                        judged.extend(other.judge(&matcher, name, split, vetoes));
                    }
                }
            }
            eprintln!("{name}: split {split} judged");
            (judged, traffic.recall_of_8_bits(split))
        };
        let done: Vec<(Vec<Judged>, Option<f64>)> = (0..splits).into_par_iter().map(of_split).collect();
        for (of_split, recall) in done {
            judged.extend(of_split);
            recall_of_8_bits.extend(recall.map(|recall| json!({ "corpus": name, "recall": recall })));
        }
    }
    let cost: Vec<_> = traffics.iter().map(|traffic| cost::measure(traffic, &table, &pieces)).collect();
    let report = json!({
        "splits": splits,
        "kernel": model.engine.kernel(),
        "corpora": traffics.iter().map(Traffic::facts).collect::<Vec<_>>(),
        "token_hits": token_hits,
        "judged": judged,
        "recall_of_8_bits": recall_of_8_bits,
        "cost": cost,
    });
    let path = corpus::folder().join("report.json");
    std::fs::write(&path, serde_json::to_vec(&report).unwrap()).unwrap();
    println!("{}", path.display());
}

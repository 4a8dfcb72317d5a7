//! `vecmemo dedupe`: which cached entries are near-duplicates of each other, also beside a running server. Changes nothing.
//!
//! Two entries are linked if their similarity is at least what is asked for; a cluster is what hangs together by such
//! links, so its ends may be further apart (single linkage). Exact: every pair counts. Memory: an entry's row
//! twice while entries are read, then once beside its copy in the index: about 1.7 KB at 384 dimensions.

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::bail;
use clap::ArgMatches;
use half::f16;
use half::slice::HalfFloatSliceExt;
use serde_json::json;

use super::meter::Meter;
use super::{SettingsArguments, export, print, say, search};
use crate::domain::Key;
use crate::index::{Cursor, Filter, HITS_MAX, Index, Query, Row, Rows};
use crate::store::unix_seconds;

/// Entries that are compared with all others at a time.
const QUERIES_AT_ONCE: usize = 32;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// From which similarity on two entries are near-duplicates
    #[arg(long, value_name = "COSINE", default_value_t = 0.98)]
    min_similarity: f32,

    /// The model whose entries are meant, by the first digits of its fingerprint [default: the setting `model`, or the only
    /// one there is]
    #[arg(long, value_name = "DIGITS")]
    fingerprint: Option<String>,

    #[command(flatten)]
    settings: SettingsArguments,
}

/// Prints a line a cluster, the largest first: its keys, the first stored first, and the least similarity among its links.
pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let least = arguments.min_similarity;
    if !(0.0..=1.0).contains(&least) {
        bail!("--min-similarity {least} is not between 0 and 1");
    }
    let settings = arguments.settings.settings(matches)?;
    let known = export::known_model(&settings);
    let space = export::choose(&settings.data_dir, arguments.fingerprint.as_deref(), known.as_ref())?;
    let survey = space.survey();
    let mut held = Held::new(space.dims());
    let scanned = space.scan(&survey, unix_seconds(), |found| {
        held.add(found.key, found.row);
        anyhow::Ok(())
    })?;
    let clusters = held.clusters(least);

    let together: usize = clusters.iter().map(|cluster| cluster.keys.len()).sum();
    for Cluster { keys, least } in &clusters {
        let keys: Vec<String> = keys.iter().map(Key::to_string).collect();
        print(&json!({ "size": keys.len(), "least_similarity": search::decimal(*least), "keys": keys }).to_string())?;
    }
    say(&format!(
        "{} entries; {} clusters of {together} near-duplicates at {least}; {} entries could go if one of each stayed",
        scanned.shown,
        clusters.len(),
        together - clusters.len(),
    ));
    Ok(ExitCode::SUCCESS)
}

/// A model's entries in memory. Those whose rows are the same to the bit have one row.
struct Held {
    dims: usize,
    rows: Vec<f16>,
    /// Each row's entries, in the order in which they were stored.
    keys: Vec<Vec<Key>>,
    by_row: HashMap<Box<[u8]>, u32>,
    by_first_key: HashMap<Key, u32>,
}

struct Cluster {
    keys: Vec<Key>,
    least: f32,
}

impl Held {
    fn new(dims: usize) -> Self {
        Self { dims, rows: Vec::new(), keys: Vec::new(), by_row: HashMap::new(), by_first_key: HashMap::new() }
    }

    fn add(&mut self, key: Key, row: &[f16]) {
        let next = self.keys.len() as u32;
        let at = *self.by_row.entry(bytemuck::cast_slice(row).into()).or_insert(next);
        if at == next {
            self.rows.extend_from_slice(row);
            self.keys.push(Vec::new());
            self.by_first_key.insert(key, at);
        }
        self.keys[at as usize].push(key);
    }

    fn row(&self, at: u32) -> &[f16] {
        &self.rows[at as usize * self.dims..][..self.dims]
    }

    fn clusters(mut self, least: f32) -> Vec<Cluster> {
        self.by_row = HashMap::new();
        let index = Index::new(self.dims);
        for at in 0..self.keys.len() as u32 {
            let (key, unit) = (self.keys[at as usize][0], self.row(at));
            index.set(Row { place: at, key, sequence: u64::from(at), namespace: 0, created: 0, expires: None, unit });
        }
        let mut links = Links::new(self.keys.len());
        let mut meter = Meter::new("compared", self.keys.len() as u64);
        let all: Vec<u32> = (0..self.keys.len() as u32).collect();
        for batch in all.chunks(QUERIES_AT_ONCE) {
            self.link(&index, batch, least, &mut links);
            meter.advance(batch.len() as u64);
        }
        meter.finish();
        let mut clusters: HashMap<u32, Cluster> = HashMap::new();
        for at in all {
            let root = links.root(at);
            let cluster =
                clusters.entry(root).or_insert(Cluster { keys: Vec::new(), least: links.least[root as usize] });
            cluster.keys.extend(&self.keys[at as usize]);
        }
        let mut clusters: Vec<Cluster> = clusters.into_values().filter(|cluster| cluster.keys.len() > 1).collect();
        clusters.sort_by(|a, b| b.keys.len().cmp(&a.keys.len()).then_with(|| a.keys[0].cmp(&b.keys[0])));
        clusters
    }

    /// Links each of a few rows with those that are near enough.
    fn link(&self, index: &Index, batch: &[u32], least: f32, links: &mut Links) {
        let vectors: Vec<Vec<f32>> = batch.iter().map(|&at| self.row(at).to_f32_vec()).collect();
        let mut open: Vec<(usize, Option<Cursor>)> = (0..batch.len()).map(|query| (query, None)).collect();
        while !open.is_empty() {
            let query = |&(query, after): &(usize, Option<Cursor>)| Query {
                vector: &vectors[query],
                k: HITS_MAX,
                min_similarity: Some(least),
                after,
            };
            let queries: Vec<Query<'_>> = open.iter().map(query).collect();
            let found = match index.search(&queries, &Filter::all(0), self) {
                Ok(found) => found,
                Err(error) => unreachable!("rows of a store are unit vectors of its dims: {error}"),
            };
            let asked = std::mem::take(&mut open);
            for ((query, _), hits) in asked.into_iter().zip(found) {
                hits.iter().for_each(|hit| links.link(batch[query], hit.place, hit.similarity));
                if let Some(last) = hits.last().filter(|_| hits.len() == HITS_MAX) {
                    let cursor = Cursor { similarity: last.similarity, key: last.key, sequence: u64::MAX };
                    open.push((query, Some(cursor)));
                }
            }
        }
    }
}

impl Rows for Held {
    fn read(&self, keys: &[Key], found: &mut dyn FnMut(usize, u64, &[f16])) -> bool {
        for (index, key) in keys.iter().enumerate() {
            if let Some(&at) = self.by_first_key.get(key) {
                found(index, u64::from(at), self.row(at));
            }
        }
        true
    }
}

/// What hangs together: a forest of rows, of which each tree is a cluster (union by the smaller number, with path halving).
struct Links {
    parents: Vec<u32>,
    /// For each root, the least similarity among its links; 1 if there is none.
    least: Vec<f32>,
}

impl Links {
    fn new(rows: usize) -> Self {
        Self { parents: (0..rows as u32).collect(), least: vec![1.0; rows] }
    }

    fn root(&mut self, mut at: u32) -> u32 {
        while self.parents[at as usize] != at {
            let above = self.parents[self.parents[at as usize] as usize];
            self.parents[at as usize] = above;
            at = above;
        }
        at
    }

    fn link(&mut self, a: u32, b: u32, similarity: f32) {
        let (a, b) = (self.root(a), self.root(b));
        let (root, other) = (a.min(b), a.max(b));
        let least = self.least[root as usize].min(self.least[other as usize]).min(similarity);
        self.parents[other as usize] = root;
        self.least[root as usize] = least;
    }
}

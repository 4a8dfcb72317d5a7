//! What an export says besides vectors: of each entry, and of itself.

use std::collections::BTreeMap;

use anyhow::Context;
use half::f16;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::Xxh3;

use crate::domain::Key;

/// The first word of every manifest, and the version of what follows.
const FORMAT: &str = "vecmemo export 1";
/// How many rows are in memory at a time, at most; and about how many bytes of them.
const ROWS_AT_ONCE: usize = 4096;
const ROW_BYTES_AT_ONCE: usize = 4 << 20;

/// What is known of an entry besides its vector. One JSON object a line in the formats that hold lines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::cli) struct Facts {
    #[serde(serialize_with = "as_hex", deserialize_with = "from_hex")]
    pub(in crate::cli) key: Key,
    /// The length the vector had before it was scaled to one.
    pub(in crate::cli) norm: f32,
    #[serde(default)]
    pub(in crate::cli) tokens: u32,
    #[serde(default)]
    pub(in crate::cli) truncated: bool,
    #[serde(default)]
    pub(in crate::cli) copied: bool,
    #[serde(default)]
    pub(in crate::cli) pinned: bool,
    #[serde(default)]
    pub(in crate::cli) refresh_ahead: bool,
    #[serde(default)]
    pub(in crate::cli) stale: bool,
    /// Unix seconds.
    pub(in crate::cli) created: u32,
    /// Unix seconds.
    pub(in crate::cli) expires: Option<u32>,
    #[serde(default)]
    pub(in crate::cli) namespace: String,
    #[serde(default)]
    pub(in crate::cli) tags: Vec<String>,
    /// JSON text.
    pub(in crate::cli) payload: Option<String>,
    /// Whether it has a namespace, tags or a payload that could not be read, because a server had the side store.
    #[serde(default)]
    pub(in crate::cli) incomplete: bool,
    /// XXH3 64 over the vector and everything above, as hexadecimal digits; empty if nobody has computed it.
    #[serde(default)]
    pub(in crate::cli) checksum: String,
}

impl Facts {
    /// With the checksum over itself and its vector.
    pub(super) fn sealed(self, row: &[f16]) -> Self {
        Self { checksum: self.computed_checksum(row), ..self }
    }

    /// Whether facts and vector are those that were sealed together; also if they never were.
    pub(in crate::cli) fn is_as_sealed(&self, row: &[f16]) -> bool {
        self.checksum.is_empty() || self.checksum == self.computed_checksum(row)
    }

    fn computed_checksum(&self, row: &[f16]) -> String {
        let json = serde_json::to_vec(&Self { checksum: String::new(), ..self.clone() });
        let mut hasher = Xxh3::new();
        hasher.update(&json.expect("facts are strings and finite numbers"));
        hasher.update(bytemuck::cast_slice(row));
        format!("{:016x}", hasher.digest())
    }
}

fn as_hex<S: Serializer>(key: &Key, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(key)
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Key, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// What an export says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct Manifest {
    format: String,
    /// The program that wrote it.
    program: String,
    /// The version of the model whose vectors these are, as 64 hexadecimal digits.
    pub(in crate::cli) fingerprint: String,
    /// The model's name, if it was known to whoever exported.
    pub(in crate::cli) model: Option<String>,
    pub(in crate::cli) dims: usize,
    pub(in crate::cli) count: u64,
    /// When it was made, in Unix seconds.
    pub(in crate::cli) created: u32,
    /// SHA-256 of the files beside the manifest, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(in crate::cli) sha256: BTreeMap<String, String>,
}

impl Manifest {
    pub(in crate::cli) fn new(fingerprint: String, model: Option<String>, dims: usize, created: u32) -> Self {
        let program = concat!("vecmemo ", env!("CARGO_PKG_VERSION")).to_owned();
        let format = FORMAT.to_owned();
        Self { format, program, fingerprint, model, dims, count: 0, created, sha256: BTreeMap::new() }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a manifest is strings and numbers")
    }

    /// Reads a manifest and checks that it is of the one format there is.
    pub(super) fn parse(json: &[u8]) -> anyhow::Result<Self> {
        let manifest: Self = serde_json::from_slice(json).context("the manifest cannot be read")?;
        anyhow::ensure!(manifest.format == FORMAT, "its format is {:?}, not {FORMAT:?}", manifest.format);
        anyhow::ensure!((1..=1 << 16).contains(&manifest.dims), "it has vectors of {} values", manifest.dims);
        Ok(manifest)
    }

    /// How many rows to have in memory at a time.
    pub(in crate::cli) fn rows_at_once(&self) -> usize {
        (ROW_BYTES_AT_ONCE / (2 * self.dims)).clamp(1, ROWS_AT_ONCE)
    }
}

/// An export being written. Nothing is at its place before `finish` has returned; dropped before, it leaves nothing.
pub(in crate::cli) trait Sink {
    /// Adds an entry.
    fn add(&mut self, facts: Facts, row: &[f16]) -> anyhow::Result<()>;

    /// Completes the manifest, brings everything to the medium and gives it its name.
    fn finish(self: Box<Self>, manifest: Manifest) -> anyhow::Result<()>;
}

/// Some entries of an export.
#[derive(Debug, Default, PartialEq)]
pub(in crate::cli) struct Batch {
    pub(in crate::cli) facts: Vec<Facts>,
    /// Row after row.
    pub(in crate::cli) rows: Vec<f16>,
}

/// An export being read.
pub(in crate::cli) trait Source {
    fn manifest(&self) -> &Manifest;

    /// The next entries, in the order they were written; none at the end.
    fn next(&mut self) -> anyhow::Result<Batch>;
}

/// Reads the next lines of facts, `count` of them.
pub(super) fn read_lines(lines: &mut impl std::io::BufRead, count: usize) -> anyhow::Result<Vec<Facts>> {
    let mut facts = Vec::with_capacity(count);
    let mut line = String::new();
    for _ in 0..count {
        line.clear();
        let read = lines.read_line(&mut line).context("cannot read the entries")?;
        anyhow::ensure!(read > 0, "there are fewer entries than vectors");
        facts.push(serde_json::from_str(&line).context("an entry's line cannot be read")?);
    }
    Ok(facts)
}

/// Writes one line of facts.
pub(super) fn write_line(out: &mut impl std::io::Write, facts: &Facts) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *out, facts).context("cannot write the entries")?;
    out.write_all(b"\n").context("cannot write the entries")
}

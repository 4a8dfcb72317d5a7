//! The traffic that reuse is judged on: texts as `scripts/reuse-corpora` wrote them, their tokens, and their true vectors by
//! the default model at its default precision. Vectors are computed once and kept beside the texts, under a digest of texts and
//! model; tokenising is done anew each time, in seconds.

use std::io::Write;
use std::path::{Path, PathBuf};

use half::f16;
use serde::Deserialize;
use vecmemo::domain::{Embedding, Truncation, TruncationDirection};
use vecmemo::engine::{self, Model, Options, Sources};

/// What the engine is given at once.
const BATCH_TOKENS: usize = 4096;

/// A line of the file.
#[derive(Deserialize)]
struct Line {
    id: usize,
    base: usize,
    kind: String,
    text: String,
}

/// Where a text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It was there before.
    Base,
    /// Nobody has seen it, nor made it from another.
    Natural,
    /// A base, edited so.
    Edit(String),
}

/// A text that arrived.
pub(crate) struct Text {
    /// The place of the text it was made from, its own if of none: texts of one base belong together.
    pub(crate) base: usize,
    /// Where it comes from.
    pub(crate) kind: Kind,
    /// As the model reads it.
    pub(crate) ids: Box<[u32]>,
    /// Its true vector.
    pub(crate) unit: Box<[f16]>,
}

/// A corpus, in order of arrival.
pub(crate) struct Corpus {
    /// The file's name without its ending.
    pub(crate) name: String,
    /// All texts: bases, then the others mixed.
    pub(crate) texts: Vec<Text>,
}

/// Where all is kept.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/reuse")
}

/// The default model.
pub(crate) fn model(options: &Options) -> Model {
    let sources = Sources { models_dir: Path::new(env!("CARGO_MANIFEST_DIR")).join("models"), revision: None };
    engine::open("all-MiniLM-L6-v2", &sources, options).expect("scripts/fetch-model has brought the default model")
}

impl Corpus {
    /// Reads a corpus, and computes its vectors if they are not kept.
    pub(crate) fn open(name: &str, model: &mut Model) -> Self {
        let path = folder().join(format!("{name}.jsonl"));
        let bytes = std::fs::read(&path)
            .unwrap_or_else(|error| panic!("{}: {error}: run scripts/reuse-corpora", path.display()));
        let lines: Vec<Line> = bytes
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("a line is as scripts/reuse-corpora writes it"))
            .collect();
        assert!(lines.iter().enumerate().all(|(at, line)| line.id == at), "lines are numbered from 0");
        let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: model.card.max_tokens };
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        let ids: Vec<Box<[u32]>> = texts
            .chunks(256)
            .flat_map(|texts| model.tokenizer.tokenize(texts, "", truncation).unwrap())
            .map(|tokens| tokens.ids)
            .collect();
        let digest = blake3::Hasher::new().update(&bytes).update(model.card.version.as_bytes()).finalize();
        let units = vectors(&path.with_extension("vectors"), digest.as_bytes(), &ids, model);
        let texts = lines
            .into_iter()
            .zip(ids)
            .zip(units)
            .map(|((line, ids), unit)| {
                let kind = match line.kind.as_str() {
                    "base" => Kind::Base,
                    "natural" => Kind::Natural,
                    _ => Kind::Edit(line.kind),
                };
                Text { base: line.base, kind, ids, unit }
            })
            .collect();
        Self { name: name.to_owned(), texts }
    }
}

/// Each text's true vector: kept, or computed and kept.
fn vectors(path: &Path, digest: &[u8; 32], ids: &[Box<[u32]>], model: &mut Model) -> Vec<Box<[f16]>> {
    let dims = model.card.dims;
    let kept = std::fs::read(path).unwrap_or_default();
    if kept.len() == digest.len() + ids.len() * dims * size_of::<f16>() && kept.starts_with(digest) {
        let rows = kept[digest.len()..].chunks_exact(dims * size_of::<f16>());
        return rows.map(|row| row.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect()).collect();
    }
    let mut units: Vec<Box<[f16]>> = vec![Box::default(); ids.len()];
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|&at| ids[at].len());
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|&&at| {
            tokens += ids[at].len();
            tokens <= BATCH_TOKENS
        });
        let (batch, after) = rest.split_at(fits.count().max(1));
        let raw = model.engine.embed(&batch.iter().map(|&at| &*ids[at]).collect::<Vec<_>>()).unwrap();
        for (&at, raw) in batch.iter().zip(raw) {
            units[at] = Embedding::from_raw(&raw).unwrap().unit;
        }
        rest = after;
        eprint!("\r{}: {} of {} vectors", path.display(), ids.len() - rest.len(), ids.len());
    }
    eprintln!();
    let part = path.with_extension("part");
    let mut file = std::fs::File::create(&part).unwrap();
    file.write_all(digest).unwrap();
    units.iter().for_each(|unit| file.write_all(bytemuck::cast_slice(unit)).unwrap());
    std::fs::rename(&part, path).unwrap();
    units
}

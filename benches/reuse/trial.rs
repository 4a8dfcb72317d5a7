//! One split of a corpus: reuse is calibrated on some of its traffic, and judged on the rest.
//!
//! Texts of one base are on the same side. The bases were there before: they are sources for all, and what is learnt from, but
//! no fair sample of the traffic. What the token key answers is left out, in calibration as in judging: it never comes this far.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use rayon::prelude::*;
use serde::Serialize;
use vecmemo::domain::Key;
use vecmemo::reuse::{self, Calibration, Matcher, Miss, Options, Refusal, Table, Terms};

use crate::corpus::{Corpus, Kind, Text};
use crate::figures::Outcome;
use crate::recall::{self, Truth};

/// What is asked for: the floor of the cosine, and the share of violations.
pub(crate) const GOALS: [(f32, f32); 4] = [(0.98, 0.05), (0.95, 0.05), (0.90, 0.01), (0.98, 0.01)];
/// Of ten bases, so many are calibrated on.
const CALIBRATED_OF_TEN: u64 = 7;
/// Nearest texts that are kept for each: those of the other side are passed over.
const NEAREST: usize = 12;
/// When all this is.
pub(crate) const NOW: u32 = 1_800_000_000;

/// A corpus, with what all its splits share.
pub(crate) struct Traffic {
    /// The texts.
    pub(crate) corpus: Corpus,
    /// Texts whose tokens no earlier text has, as far as reuse is for their length.
    new: Vec<usize>,
    /// For each text after the bases the nearest of all texts by their true vectors, nearest first.
    nearest: Vec<Vec<(f32, usize)>>,
    wide: Vec<Vec<f32>>,
}

/// What a corpus has.
#[derive(Serialize)]
pub(crate) struct Facts {
    corpus: String,
    bases: usize,
    naturals: usize,
    edits: usize,
    /// The 5th, 50th and 95th percentile of the texts' lengths.
    tokens: [usize; 3],
}

/// What became of the held-out texts, by what was asked for.
#[derive(Serialize)]
pub(crate) struct Judged {
    calibrated_on: String,
    applied_to: String,
    split: u64,
    vetoes: bool,
    floor: f32,
    share: f32,
    /// Whether there is a certificate for any length.
    certified: bool,
    edited: Outcome,
    natural: Outcome,
    /// Of the edited texts, those that a veto kept from being judged.
    vetoed: usize,
    /// By the kind of edit.
    kinds: BTreeMap<String, Outcome>,
    /// Of the ten nearest texts to a query, the share still found when reused vectors stand for the true ones.
    recall: Option<f64>,
}

fn draw(corpus: &str, split: u64, place: usize) -> [u8; 32] {
    *blake3::hash(format!("{corpus} {split} {place}").as_bytes()).as_bytes()
}

impl Traffic {
    /// Looks for what the best judge would find.
    pub(crate) fn new(corpus: Corpus) -> Self {
        let wide = recall::wide(corpus.texts.iter().map(|text| &*text.unit));
        let mut seen = HashSet::new();
        let new = |&place: &usize| {
            let ids = &corpus.texts[place].ids;
            seen.insert(ids.clone()) && reuse::bin(ids.len()).is_some()
        };
        let new: Vec<usize> = (0..corpus.texts.len()).filter(new).collect();
        let nearest = |place: usize| {
            if corpus.texts[place].kind == Kind::Base {
                return Vec::new();
            }
            let others = new.iter().filter(|&&other| other != place);
            let mut all: Vec<(f32, usize)> =
                others.map(|&other| (recall::dot(&wide[place], &wide[other]), other)).collect();
            all.select_nth_unstable_by(NEAREST, |a, b| b.0.total_cmp(&a.0));
            all.truncate(NEAREST);
            all.sort_by(|a, b| b.0.total_cmp(&a.0));
            all
        };
        let nearest = (0..wide.len()).into_par_iter().map(nearest).collect();
        Self { corpus, new, nearest, wide }
    }

    fn text(&self, place: usize) -> &Text {
        &self.corpus.texts[place]
    }

    /// Whether a text is there for calibration.
    fn is_calibrated(&self, split: u64, place: usize) -> bool {
        let text = self.text(place);
        let number = u64::from_le_bytes(*draw(&self.corpus.name, split, text.base).first_chunk().unwrap());
        text.kind == Kind::Base || number % 10 < CALIBRATED_OF_TEN
    }

    /// A key for a text: it says which half of a calibration the text is in, so each split has others.
    pub(crate) fn key(&self, split: u64, place: usize) -> Key {
        Key::from_bytes(draw(&format!("{} key", self.corpus.name), split, place))
    }

    /// A text's token ids.
    pub(crate) fn ids(&self, place: usize) -> Arc<[u32]> {
        Arc::from(&*self.text(place).ids)
    }

    /// Calibrates on a split's traffic, with the product's own code.
    pub(crate) fn calibrate(&self, table: &Table, pieces: &[String], split: u64, vetoes: bool) -> Calibration {
        let misses: Vec<Miss> = self
            .new
            .iter()
            .filter(|&&place| self.is_calibrated(split, place))
            .map(|&place| Miss {
                key: self.key(split, place),
                ids: self.ids(place),
                unit: self.text(place).unit.to_vec(),
                drawn: self.text(place).kind != Kind::Base,
            })
            .collect();
        let options = Options { vetoes, valid_seconds: 1, now: NOW };
        reuse::calibrate(table, pieces, &misses, options).expect("there is enough to learn from")
    }

    /// A calibration at work: all of a split's calibrated texts may be reused.
    pub(crate) fn matcher(
        &self,
        table: &Arc<Table>,
        pieces: &[String],
        split: u64,
        calibration: Calibration,
    ) -> Matcher {
        let matcher = Matcher::new(Arc::clone(table), pieces, calibration).expect("the table is the calibration's");
        for &place in self.new.iter().filter(|&&place| self.is_calibrated(split, place)) {
            matcher.add(self.key(split, place), &self.ids(place));
        }
        matcher
    }

    /// Texts that are judged on in a split.
    pub(crate) fn held_out(&self, split: u64) -> Vec<usize> {
        self.new.iter().copied().filter(|&place| !self.is_calibrated(split, place)).collect()
    }

    /// Judges a calibration on a split's held-out texts.
    pub(crate) fn judge(&self, matcher: &Matcher, calibrated_on: &str, split: u64, vetoes: bool) -> Vec<Judged> {
        let held_out = self.held_out(split);
        let places: HashMap<Key, usize> = self.new.iter().map(|&place| (self.key(split, place), place)).collect();
        let truth = self.truth(&held_out);
        let goal = |&(floor, share): &(f32, f32)| {
            let terms = Terms { min_similarity: floor, max_violation: share };
            let (mut edited, mut natural, mut vetoed) = (Outcome::default(), Outcome::default(), 0);
            let mut kinds = BTreeMap::<String, Outcome>::new();
            let mut given = HashMap::new();
            for &place in &held_out {
                let text = self.text(place);
                let best = self.nearest[place].iter().find(|(_, other)| self.is_calibrated(split, *other));
                let found = matcher.find(&text.ids, terms, NOW, &|_| false);
                let source = found.as_ref().ok().map(|found| places[&found.source]);
                let reused = source.map(|source| recall::dot(&self.wide[place], &self.wide[source]));
                let best = best.map_or(0.0, |(cosine, _)| *cosine);
                if let Some(source) = source {
                    given.insert(place, source);
                }
                match &text.kind {
                    Kind::Edit(kind) => {
                        edited.count(floor, best, reused);
                        kinds.entry(kind.clone()).or_default().count(floor, best, reused);
                        vetoed += usize::from(matches!(found, Err((Refusal::Vetoed(_), _))));
                    }
                    _ => natural.count(floor, best, reused),
                }
            }
            let certified = matcher.calibration().certificates.iter().any(|certificate| certificate.meets(terms));
            let recall = truth.as_ref().map(|(truth, documents)| {
                let vectors: Vec<Vec<f32>> = documents
                    .iter()
                    .map(|place| self.wide[given.get(place).copied().unwrap_or(*place)].clone())
                    .collect();
                truth.recall(&vectors)
            });
            let (calibrated_on, applied_to) = (calibrated_on.to_owned(), self.corpus.name.clone());
            Judged {
                calibrated_on,
                applied_to,
                split,
                vetoes,
                floor,
                share,
                certified,
                edited,
                natural,
                vetoed,
                kinds,
                recall,
            }
        };
        GOALS.iter().map(goal).collect()
    }

    /// A search over held-out edits, one of each base so that no two are alike, by the natural texts.
    fn truth(&self, held_out: &[usize]) -> Option<(Truth, Vec<usize>)> {
        let mut bases = HashSet::new();
        let is_first =
            |&place: &usize| matches!(self.text(place).kind, Kind::Edit(_)) && bases.insert(self.text(place).base);
        let documents: Vec<usize> = held_out.iter().copied().filter(is_first).collect();
        let queries = self.new.iter().filter(|&&place| self.text(place).kind == Kind::Natural).take(1000);
        let queries: Vec<Vec<f32>> = queries.map(|&place| self.wide[place].clone()).collect();
        let truth = Truth::new(queries, &self.vectors(&documents));
        (!documents.is_empty()).then_some((truth, documents))
    }

    fn vectors(&self, places: &[usize]) -> Vec<Vec<f32>> {
        places.iter().map(|&place| self.wide[place].clone()).collect()
    }

    /// The recall of a split's held-out texts with 8 bits a value: what reuse is to be compared with.
    pub(crate) fn recall_of_8_bits(&self, split: u64) -> Option<f64> {
        let (truth, documents) = self.truth(&self.held_out(split))?;
        Some(truth.recall(&recall::quantised(&self.vectors(&documents))))
    }

    /// What there is.
    pub(crate) fn facts(&self) -> Facts {
        let count = |wanted: fn(&Kind) -> bool| self.corpus.texts.iter().filter(|text| wanted(&text.kind)).count();
        let mut tokens: Vec<usize> = self.corpus.texts.iter().map(|text| text.ids.len()).collect();
        tokens.sort_unstable();
        Facts {
            corpus: self.corpus.name.clone(),
            bases: count(|kind| *kind == Kind::Base),
            naturals: count(|kind| *kind == Kind::Natural),
            edits: count(|kind| matches!(kind, Kind::Edit(_))),
            tokens: [5, 50, 95].map(|percent| tokens[tokens.len() * percent / 100]),
        }
    }

    /// Texts that have an earlier text's tokens, and how many of them have its vector to the last bit, computed apart.
    pub(crate) fn token_hits(&self) -> (usize, usize) {
        let mut first = HashMap::new();
        let (mut hits, mut identical) = (0, 0);
        for (place, text) in self.corpus.texts.iter().enumerate() {
            let earlier = *first.entry(&text.ids).or_insert(place);
            if earlier != place {
                hits += 1;
                identical += usize::from(text.unit == self.text(earlier).unit);
            }
        }
        (hits, identical)
    }
}

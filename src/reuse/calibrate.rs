//! From traffic to certificates: the misses of a namespace are gone through again in the order in which they came, each with
//! the text that was nearest to it then. Since each was computed, what reusing its neighbour's vector would have done is known.

use std::collections::HashMap;
use std::sync::Arc;

use half::f16;
use serde::{Deserialize, Serialize};

use super::certificate::{BINS, CONFIDENCE, Certificate, CertificateId, GOALS, bin, bin_end};
use super::certify::{Promise, learn_then_test};
use super::changes::Changes;
use super::features::{Cosines, Features, features};
use super::gate::{Gate, GateError};
use super::lexicon::Lexicon;
use super::map::{Map, mean};
use super::neighbours::{Cheap, Neighbours};
use super::table::Table;
use super::veto::{Veto, veto};
use crate::domain::Key;
use crate::index::similarity;

/// The fewest pairs of texts that anything is learnt from.
pub const PAIRS_MIN: usize = 500;

/// From which cosine of their cheap vectors on two texts are of one family. Families are not divided between what the gate
/// learns from and what it is tested on.
const FAMILY_COSINE: f32 = 0.9;

/// Families that the gate learns from, of 256: two in five. The pairs that it is tested on are what decides how much can be certified.
const LEARNING_IN_256: u8 = 102;

/// A text that was computed, when it was missed.
#[derive(Clone, Debug)]
pub struct Miss {
    /// Its key.
    pub key: Key,
    /// Its token ids.
    pub ids: Arc<[u32]>,
    /// Its vector, of length one.
    pub unit: Vec<f16>,
    /// Whether it was computed whatever a gate may have thought of it. Only such texts are a fair sample of the traffic.
    pub drawn: bool,
}

/// How to calibrate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Whether differences that mean much in few words are refused: a negation, a number, an order.
    pub vetoes: bool,
    /// How long certificates count, in seconds.
    pub valid_seconds: u32,
    /// When this is, in Unix seconds.
    pub now: u32,
}

/// What has been learnt of a namespace's traffic: what tells cheap vectors, what judges pairs, and what was shown of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Calibration {
    /// How many texts each token was in, by its id.
    pub document_counts: Vec<u32>,
    /// Of how many.
    pub documents: u32,
    /// What makes cheap vectors.
    pub map: Map,
    /// For each floor of the cosine the gate that judges whether a pair is above it.
    pub gates: Vec<(f32, Gate)>,
    /// What was shown.
    pub certificates: Vec<Certificate>,
    /// Whether differences that mean much in few words are refused.
    pub vetoes: bool,
    /// When it was made, in Unix seconds.
    pub made: u32,
    /// Pairs that were gone through.
    pub pairs: usize,
}

/// Why nothing could be learnt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// Too few texts.
    #[error(
        "{found} texts of 64 tokens and more have been computed with a text before them, and {PAIRS_MIN} are needed"
    )]
    TooFew {
        /// How many there are.
        found: usize,
    },
    /// The texts' vectors say nothing that a map could be fitted to.
    #[error("no map from token vectors to the texts' own can be fitted: the texts are too few or all alike")]
    NoMap,
    /// The gate could not be trained.
    #[error("the gate for a cosine of {floor} cannot be trained: {source}")]
    Gate {
        /// The floor.
        floor: f32,
        /// Why.
        source: GateError,
    },
}

/// A text and the one that was nearest to it.
struct Pair {
    features: Features,
    veto: Option<Veto>,
    /// The cosine of the two texts' own vectors.
    cosine: f32,
    tokens: usize,
    drawn: bool,
    family: usize,
}

/// Learns from misses, in the order in which they came.
///
/// # Errors
/// When there is too little to learn from.
pub fn calibrate(
    table: &Table,
    pieces: &[String],
    misses: &[Miss],
    options: Options,
) -> Result<Calibration, CalibrateError> {
    let long: Vec<&Miss> = misses.iter().filter(|miss| bin(miss.ids.len()).is_some()).collect();
    if long.len() <= PAIRS_MIN {
        return Err(CalibrateError::TooFew { found: long.len().saturating_sub(1) });
    }
    let documents = long.len() as u32;
    let document_counts = document_counts(pieces.len(), &long);
    let lexicon = Lexicon::new(pieces, &document_counts, documents);
    let learning: Vec<&Miss> = long.iter().copied().filter(|miss| is_learning(&miss.key)).collect();
    let texts = learning.iter().map(|miss| (&*miss.ids, &*miss.unit));
    let map = Map::fit(table, &lexicon, texts).ok_or(CalibrateError::NoMap)?;
    let pairs = replay(table, &lexicon, &map, &long);
    if pairs.len() < PAIRS_MIN {
        return Err(CalibrateError::TooFew { found: pairs.len() });
    }
    let (learning, testing): (Vec<&Pair>, Vec<&Pair>) = pairs
        .iter()
        .filter(|pair| !options.vetoes || pair.veto.is_none())
        .partition(|pair| is_learning(&long[pair.family].key));
    let testing: Vec<&Pair> = testing.into_iter().filter(|pair| pair.drawn).collect();

    let mut floors: Vec<f32> = GOALS.iter().map(|&(floor, _)| floor).collect();
    floors.dedup();
    let (mut gates, mut certificates) = (Vec::new(), Vec::new());
    for floor in floors {
        let within = |pairs: &[&Pair]| pairs.iter().map(|pair| pair.cosine >= floor).collect::<Vec<bool>>();
        let rows: Vec<Features> = learning.iter().map(|pair| pair.features).collect();
        let gate = match Gate::train(&rows, &within(&learning)) {
            Ok(gate) => gate,
            // Nearly all pairs are on one side of the floor: there is nothing to tell apart, and nothing to certify.
            Err(GateError::TooFew { .. }) => continue,
            Err(source) => return Err(CalibrateError::Gate { floor, source }),
        };
        for (number, &tokens_min) in BINS.iter().enumerate() {
            let of_bin = |pairs: &[&Pair]| -> (Vec<f32>, Vec<bool>) {
                let pairs = pairs.iter().filter(|pair| bin(pair.tokens) == Some(number));
                pairs.map(|pair| (gate.score(&pair.features), pair.cosine >= floor)).unzip()
            };
            let ((learnt, _), (tested, outcomes)) = (of_bin(&learning), of_bin(&testing));
            for &(_, max_violation) in GOALS.iter().filter(|goal| goal.0 == floor) {
                let promise = Promise { budget: f64::from(max_violation), confidence: CONFIDENCE };
                // Too few pairs, or none that passes: nothing is promised.
                let Ok(passed) = learn_then_test(&learnt, &tested, &outcomes, promise) else { continue };
                certificates.push(Certificate {
                    id: CertificateId(0),
                    min_similarity: floor,
                    max_violation,
                    confidence: CONFIDENCE,
                    tokens_min,
                    tokens_max: bin_end(number),
                    threshold: passed.threshold(),
                    pairs: tested.len(),
                    accepted: passed.accepted() as usize,
                    violations: passed.violations() as usize,
                    upper_bound: passed.violations_share_max(),
                    made: options.now,
                    expires: options.now.saturating_add(options.valid_seconds),
                });
            }
        }
        gates.push((floor, gate));
    }
    for certificate in &mut certificates {
        certificate.id = name(certificate, &long);
    }
    let (vetoes, made, pairs) = (options.vetoes, options.now, pairs.len());
    Ok(Calibration { document_counts, documents, map, gates, certificates, vetoes, made, pairs })
}

/// How many of the texts have each token.
fn document_counts(tokens: usize, misses: &[&Miss]) -> Vec<u32> {
    let mut counts = vec![0; tokens];
    let mut ids = Vec::new();
    for miss in misses {
        ids.clear();
        ids.extend_from_slice(&miss.ids);
        ids.sort_unstable();
        ids.dedup();
        for &id in &ids {
            if let Some(count) = counts.get_mut(id as usize) {
                *count += 1;
            }
        }
    }
    counts
}

/// Each miss that had a neighbour, with it.
fn replay(table: &Table, lexicon: &Lexicon, map: &Map, misses: &[&Miss]) -> Vec<Pair> {
    let neighbours = Neighbours::new(map.dims());
    let places: HashMap<Key, usize> = misses.iter().enumerate().map(|(place, miss)| (miss.key, place)).collect();
    let mut families: Vec<usize> = Vec::with_capacity(misses.len());
    let mut pairs = Vec::with_capacity(misses.len());
    for (place, miss) in misses.iter().enumerate() {
        families.push(place);
        let cheap = Cheap::of(table, lexicon, map, &miss.ids);
        let Some(vector) = &cheap.mapped else { continue };
        if let Some(neighbour) = neighbours.nearest(vector).filter(|neighbour| neighbour.key != miss.key) {
            let source = places[&neighbour.key];
            if neighbour.cosine >= FAMILY_COSINE {
                families[place] = families[source];
            }
            let own: Vec<f32> = miss.unit.iter().map(|value| value.to_f32()).collect();
            let changes = Changes::between(&miss.ids, &neighbour.ids);
            pairs.push(Pair {
                features: compare(table, lexicon, &changes, &cheap.mean, neighbour.cosine),
                veto: veto(&changes, lexicon),
                cosine: similarity(&own, &misses[source].unit),
                tokens: miss.ids.len(),
                drawn: miss.drawn,
                family: families[place],
            });
        }
        neighbours.add(miss.key, Arc::clone(&miss.ids), vector);
    }
    pairs
}

/// What a gate sees of a text and its neighbour.
pub(super) fn compare(
    table: &Table,
    lexicon: &Lexicon,
    changes: &Changes<'_>,
    own: &[f32],
    candidate: f32,
) -> Features {
    let other = mean(table, lexicon, changes.neighbour());
    let plain = own.iter().zip(&other).map(|(a, b)| a * b).sum();
    features(changes, lexicon, |id| table.row(id), Cosines { plain, candidate })
}

/// Whether a text, or a family by its first text, is for learning. The others are for tests.
fn is_learning(key: &Key) -> bool {
    // Another byte than those by which the store and the audits choose.
    key.as_bytes()[16] < LEARNING_IN_256
}

fn name(certificate: &Certificate, misses: &[&Miss]) -> CertificateId {
    let mut hasher = blake3::Hasher::new_derive_key("vecmemo 2026 reuse certificate v1");
    hasher.update(&serde_json::to_vec(certificate).expect("numbers can be written"));
    for miss in misses {
        hasher.update(miss.key.as_bytes());
    }
    let bytes = hasher.finalize();
    CertificateId(u64::from_le_bytes(bytes.as_bytes()[..8].try_into().expect("a digest has more than eight bytes")))
}

//! How likely a neighbour's vector is near enough, by what is known of the pair: gradient-boosted trees.
//!
//! Training is `forust-ml`'s, of XGBoost's kind, on one thread and without sampling: the same pairs give the same gate, to
//! the bit. Where more of a feature can only speak for closeness, or only against it, splits that say otherwise are not made. What
//! is kept of the trees is what a prediction needs, in one array:
//!
//! ```text
//! roots: [0, 5, ..]            where each tree begins
//! nodes: feature  split  left  right     value < split goes left, else right; children lie after their parent
//!        LEAF     weight                 the tree's part of the log-odds
//! ```
//!
//! Promises: a score is a share from 0 to 1, monotone in the log-odds; of features that are not finite it is 0. A gate that was loaded
//! ends whatever it is asked, for its children lie after their parents: anything else is refused.
//! Never: says what score is enough; that is `certify.rs`'s.

use forust_ml::constraints::{Constraint, ConstraintMap};
use forust_ml::gradientbooster::GrowPolicy;
use forust_ml::objective::ObjectiveType;
use forust_ml::{GradientBooster, Matrix};

use super::features::{COUNT, DIRECTIONS, Features, NAMES};

/// Fewer pairs teach nothing.
pub(super) const PAIRS_MIN: usize = 100;
/// Of each outcome.
pub(super) const OUTCOMES_MIN: usize = 10;
/// More pairs are not better, and training takes memory and time for each.
pub(super) const PAIRS_MAX: usize = 1 << 20;
/// The largest gate that is loaded.
const NODES_MAX: usize = 1 << 20;

const TREES: usize = 200;
const LEAVES_MAX: usize = 15;
const DEPTH_MAX: usize = 8;
const LEARNING_RATE: f32 = 0.05;
const L2: f32 = 2.0;
/// The least sum of p (1 − p) in a leaf.
const LEAF_WEIGHT_MIN: f32 = 2.0;
const BINS: u16 = 128;

/// Scores pairs.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Gate {
    /// The log-odds that the trees add to.
    base: f64,
    roots: Vec<u32>,
    nodes: Vec<Node>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Node {
    Leaf { weight: f32 },
    Split { feature: u8, split: f32, left: u32, right: u32 },
}

/// Why there is no gate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// As many outcomes as pairs are needed.
    #[error("{pairs} pairs but {outcomes} outcomes: give one outcome for each")]
    Lengths {
        /// How many pairs.
        pairs: usize,
        /// How many outcomes.
        outcomes: usize,
    },
    /// Too few pairs, or too few of one outcome.
    #[error(
        "{within} pairs within the floor and {outside} outside are too few: {PAIRS_MIN} are needed, {OUTCOMES_MIN} of each; \
         collect more shadow traffic or choose another floor"
    )]
    TooFew {
        /// How many are within the floor.
        within: usize,
        /// How many are not.
        outside: usize,
    },
    /// Too many pairs.
    #[error("{0} pairs are too many: give at most {PAIRS_MAX}, the latest")]
    TooMany(usize),
    /// A feature is not a finite number.
    #[error("feature {feature} of pair {pair} is not a finite number")]
    NotFinite {
        /// Which pair.
        pair: usize,
        /// Its name.
        feature: &'static str,
    },
    /// The library could not train.
    #[error("could not train: {0}")]
    Training(String),
    /// What was stored is no gate.
    #[error("not a gate of this version: {0}; train it anew")]
    Malformed(&'static str),
}

impl Gate {
    /// Of pairs and whether each was within the floor.
    ///
    /// # Errors
    /// If there are too few or too many, if outcomes are missing, or if a feature is not finite.
    pub fn train(pairs: &[Features], within: &[bool]) -> Result<Self, GateError> {
        let booster = booster(pairs, within)?;
        let (mut roots, mut nodes) = (Vec::with_capacity(booster.trees.len()), Vec::new());
        for tree in &booster.trees {
            let root = nodes.len() as u32;
            roots.push(root);
            for node in &tree.nodes {
                nodes.push(if node.is_leaf {
                    Node::Leaf { weight: node.weight_value }
                } else {
                    Node::Split {
                        feature: u8::try_from(node.split_feature)
                            .map_err(|_| GateError::Malformed("a split on no feature"))?,
                        split: least_from(node.split_value),
                        left: root + node.left_child as u32,
                        right: root + node.right_child as u32,
                    }
                });
            }
        }
        Self { base: booster.base_score, roots, nodes }.checked()
    }

    /// How likely a pair is within the floor, from 0 to 1; 0 if a feature is not finite.
    #[must_use]
    pub fn score(&self, features: &Features) -> f32 {
        if features.0.iter().any(|value| !value.is_finite()) {
            return 0.0;
        }
        let odds = self.base + self.roots.iter().map(|&root| f64::from(self.weight(root, features))).sum::<f64>();
        (1.0 / (1.0 + (-odds).exp())) as f32
    }

    /// What the tree that begins at `at` says.
    fn weight(&self, mut at: u32, features: &Features) -> f32 {
        loop {
            match self.nodes[at as usize] {
                Node::Leaf { weight } => return weight,
                Node::Split { feature, split, left, right } => {
                    at = if features.0[usize::from(feature)] < split { left } else { right };
                }
            }
        }
    }

    /// Itself, if every walk from a root ends in a leaf and every number is finite.
    fn checked(self) -> Result<Self, GateError> {
        let count = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        if count as usize > NODES_MAX || self.roots.len() > NODES_MAX {
            return Err(GateError::Malformed("it is too large"));
        }
        if !self.base.is_finite() {
            return Err(GateError::Malformed("its base is not a finite number"));
        }
        if self.roots.iter().any(|&root| root >= count) {
            return Err(GateError::Malformed("a root is past its nodes"));
        }
        for (at, node) in (0..count).zip(&self.nodes) {
            match *node {
                Node::Leaf { weight } if !weight.is_finite() => {
                    return Err(GateError::Malformed("a weight is not a finite number"));
                }
                Node::Split { feature, .. } if usize::from(feature) >= COUNT => {
                    return Err(GateError::Malformed("a split on no feature"));
                }
                Node::Split { split, .. } if !split.is_finite() => {
                    return Err(GateError::Malformed("a split is not a finite number"));
                }
                Node::Split { left, right, .. } if !(at < left.min(right) && left.max(right) < count) => {
                    return Err(GateError::Malformed("a child does not lie after its parent"));
                }
                _ => {}
            }
        }
        Ok(self)
    }
}

/// The library's trees, trained.
fn booster(pairs: &[Features], within: &[bool]) -> Result<GradientBooster, GateError> {
    if pairs.len() != within.len() {
        return Err(GateError::Lengths { pairs: pairs.len(), outcomes: within.len() });
    }
    if pairs.len() > PAIRS_MAX {
        return Err(GateError::TooMany(pairs.len()));
    }
    let close = within.iter().filter(|&&within| within).count();
    let outside = pairs.len() - close;
    if pairs.len() < PAIRS_MIN || close.min(outside) < OUTCOMES_MIN {
        return Err(GateError::TooFew { within: close, outside });
    }
    for (pair, features) in pairs.iter().enumerate() {
        if let Some(at) = features.0.iter().position(|value| !value.is_finite()) {
            return Err(GateError::NotFinite { pair, feature: NAMES[at] });
        }
    }

    let columns: Vec<f64> =
        (0..COUNT).flat_map(|feature| pairs.iter().map(move |pair| f64::from(pair.0[feature]))).collect();
    let outcomes: Vec<f64> = within.iter().map(|&within| f64::from(u8::from(within))).collect();
    let directions: ConstraintMap = DIRECTIONS
        .iter()
        .enumerate()
        .filter(|&(_, &direction)| direction != 0)
        .map(|(feature, &direction)| (feature, if direction > 0 { Constraint::Positive } else { Constraint::Negative }))
        .collect();
    let mut booster = GradientBooster::default()
        .set_objective_type(ObjectiveType::LogLoss)
        .set_iterations(TREES)
        .set_learning_rate(LEARNING_RATE)
        .set_max_leaves(LEAVES_MAX)
        .set_max_depth(DEPTH_MAX)
        .set_l2(L2)
        .set_min_leaf_weight(LEAF_WEIGHT_MIN)
        .set_nbins(BINS)
        .set_initialize_base_score(true)
        .set_monotone_constraints(Some(directions))
        .set_parallel(false);
    booster.grow_policy = GrowPolicy::LossGuide;
    booster
        .fit_unweighted(&Matrix::new(&columns, pairs.len(), COUNT), &outcomes, None)
        .map_err(|error| GateError::Training(error.to_string()))?;
    Ok(booster)
}

/// The least number of 32 bits that is not below `split`: of those, the same are below both.
fn least_from(split: f64) -> f32 {
    let nearest = split as f32;
    if f64::from(nearest) < split { nearest.next_up() } else { nearest }
}

/// As it is written down: a node is feature, split, left and right, or a weight alone.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    features: Vec<String>,
    base: f64,
    roots: Vec<u32>,
    nodes: Vec<StoredNode>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum StoredNode {
    Leaf(f32),
    Split(u8, f32, u32, u32),
}

impl From<Gate> for Stored {
    fn from(gate: Gate) -> Self {
        let nodes = gate.nodes.into_iter().map(|node| match node {
            Node::Leaf { weight } => StoredNode::Leaf(weight),
            Node::Split { feature, split, left, right } => StoredNode::Split(feature, split, left, right),
        });
        Self { features: NAMES.map(str::to_owned).to_vec(), base: gate.base, roots: gate.roots, nodes: nodes.collect() }
    }
}

impl TryFrom<Stored> for Gate {
    type Error = GateError;

    fn try_from(stored: Stored) -> Result<Self, GateError> {
        if !stored.features.iter().eq(NAMES.iter()) {
            return Err(GateError::Malformed("it was trained on other features"));
        }
        let nodes = stored.nodes.into_iter().map(|node| match node {
            StoredNode::Leaf(weight) => Node::Leaf { weight },
            StoredNode::Split(feature, split, left, right) => Node::Split { feature, split, left, right },
        });
        Self { base: stored.base, roots: stored.roots, nodes: nodes.collect() }.checked()
    }
}

#[cfg(test)]
mod tests {
    use super::super::draws::Draws;
    use super::*;

    /// Pairs whose closeness hangs on three of the features and on chance, and the true probability of each.
    fn drawn(count: usize, seed: u64) -> (Vec<Features>, Vec<bool>, Vec<f64>) {
        let mut draws = Draws::new(seed);
        let mut truth = Vec::new();
        let (pairs, within) = (0..count)
            .map(|_| {
                let mut values = [0.0; COUNT];
                values.fill_with(|| draws.share() as f32);
                let odds = 6.0 * f64::from(values[30]) - 5.0 * f64::from(values[4])
                    + if values[16] > 0.5 { 2.0 } else { -2.0 } * f64::from(values[22]);
                let probability = 1.0 / (1.0 + (-2.0 * odds).exp());
                truth.push(probability);
                (Features(values), draws.happens(probability))
            })
            .unzip();
        (pairs, within, truth)
    }

    /// The chance that a pair within the floor scores higher than one outside it.
    fn area(scores: &[f64], within: &[bool]) -> f64 {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let close = within.iter().filter(|&&within| within).count() as f64;
        let ranks: f64 = (1..).zip(&order).filter(|&(_, &at)| within[at]).map(|(rank, _)| f64::from(rank)).sum();
        (ranks - close * (close + 1.0) / 2.0) / (close * (within.len() as f64 - close))
    }

    #[test]
    fn it_tells_pairs_it_has_not_seen_apart_nearly_as_well_as_the_truth_does() {
        let (pairs, within, _) = drawn(3000, 1);
        let gate = Gate::train(&pairs, &within).unwrap();
        let (unseen, outcomes, truth) = drawn(3000, 2);
        let scores: Vec<f64> = unseen.iter().map(|pair| f64::from(gate.score(pair))).collect();
        let (got, best) = (area(&scores, &outcomes), area(&truth, &outcomes));
        assert!(got > best - 0.015 && best < 1.0, "{got} of {best}");
        // As probabilities too: by ten bands, within sampling error and a little.
        for band in 0..10 {
            let range = f64::from(band) / 10.0..f64::from(band + 1) / 10.0;
            let inside: Vec<usize> = (0..scores.len()).filter(|&at| range.contains(&scores[at])).collect();
            let count = inside.len() as f64;
            let seen = inside.iter().filter(|&&at| outcomes[at]).count() as f64 / count.max(1.0);
            let said = inside.iter().map(|&at| scores[at]).sum::<f64>() / count.max(1.0);
            let allowed = 0.06 + 3.0 * 0.5 / count.sqrt();
            assert!(count == 0.0 || (seen - said).abs() < allowed, "{band}: {seen} is not {said}");
        }
    }

    #[test]
    fn the_flattened_trees_say_what_the_librarys_do() {
        let (pairs, within, _) = drawn(1000, 3);
        let gate = Gate::train(&pairs, &within).unwrap();
        let booster = booster(&pairs, &within).unwrap();
        let (unseen, ..) = drawn(500, 4);
        // On the splits themselves too, where the rounding of a split to 32 bits would show.
        for pair in pairs.iter().chain(&unseen) {
            let row = pair.0.map(f64::from);
            let odds: f64 =
                booster.trees.iter().map(|tree| tree.predict_row_from_row_slice(&row, &f64::NAN)).sum::<f64>()
                    + booster.base_score;
            assert!((f64::from(gate.score(pair)) - 1.0 / (1.0 + (-odds).exp())).abs() < 1e-7);
        }
        assert_eq!(gate.roots.len(), TREES);
    }

    #[test]
    fn a_split_between_two_numbers_of_32_bits_parts_them_as_one_of_64_does() {
        for split in [0.1f64, 0.25, 1.0 / 3.0, -0.1, 1e-40] {
            let split32 = least_from(split);
            for value in [split32.next_down(), split32, split32.next_up()] {
                assert_eq!(value < split32, f64::from(value) < split, "{value} {split}");
            }
        }
    }

    #[test]
    fn more_of_what_speaks_for_closeness_raises_scores() {
        let (pairs, within, _) = drawn(2000, 5);
        let gate = Gate::train(&pairs, &within).unwrap();
        for (feature, &direction) in DIRECTIONS.iter().enumerate().filter(|&(_, &direction)| direction != 0) {
            let mean = |by: f32| {
                let raised = pairs.iter().map(|pair| {
                    let mut raised = *pair;
                    raised.0[feature] += by;
                    f64::from(gate.score(&raised))
                });
                raised.sum::<f64>() / pairs.len() as f64
            };
            // Single pairs may differ: the library bounds a split by those above it only where both are directed.
            let change = f64::from(direction) * (mean(0.3) - mean(0.0));
            assert!(change >= -1e-3, "{}: {change}", NAMES[feature]);
        }
    }

    #[test]
    fn the_same_pairs_give_the_same_gate_and_it_comes_back_as_it_was() {
        let (pairs, within, _) = drawn(500, 6);
        let gate = Gate::train(&pairs, &within).unwrap();
        assert_eq!(Gate::train(&pairs, &within).unwrap(), gate);
        let text = serde_json::to_string(&gate).unwrap();
        assert_eq!(serde_json::from_str::<Gate>(&text).unwrap(), gate);
    }

    #[test]
    fn a_feature_that_is_not_finite_is_refused_in_training_and_scores_nothing() {
        let (mut pairs, within, _) = drawn(500, 7);
        let gate = Gate::train(&pairs, &within).unwrap();
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            pairs[9].0[3] = value;
            assert_eq!(gate.score(&pairs[9]), 0.0);
            let refused = Gate::train(&pairs, &within);
            assert_eq!(refused, Err(GateError::NotFinite { pair: 9, feature: "bag_changed" }));
        }
    }

    #[test]
    fn too_few_pairs_or_outcomes_are_refused() {
        let (pairs, within, _) = drawn(500, 8);
        assert_eq!(Gate::train(&pairs, &within[1..]), Err(GateError::Lengths { pairs: 500, outcomes: 499 }));
        assert!(matches!(Gate::train(&pairs[..99], &within[..99]), Err(GateError::TooFew { .. })));
        assert_eq!(Gate::train(&pairs, &[true; 500]), Err(GateError::TooFew { within: 500, outside: 0 }));
        assert!(matches!(Gate::train(&[], &[]), Err(GateError::TooFew { within: 0, outside: 0 })));
    }

    #[test]
    fn a_file_that_is_no_gate_is_refused() {
        let names = serde_json::to_string(&NAMES.to_vec()).unwrap();
        let loaded = |base: &str, roots: &str, nodes: &str| {
            let text = format!(r#"{{"features":{names},"base":{base},"roots":{roots},"nodes":{nodes}}}"#);
            serde_json::from_str::<Gate>(&text).map_err(|error| error.to_string())
        };
        let gate = loaded("0.0", "[0]", "[[3,0.5,1,2],-4.0,4.0]").unwrap();
        assert!(gate.score(&Features([0.0; COUNT])) < 0.02 && gate.score(&Features([1.0; COUNT])) > 0.98);
        for (base, roots, nodes, said) in [
            ("0.0", "[0]", "[[3,0.5,0,0]]", "after its parent"),
            ("0.0", "[0]", "[[3,0.5,1,0],1.0]", "after its parent"),
            ("0.0", "[1]", "[1.0,[3,0.5,0,2],1.0]", "after its parent"),
            ("0.0", "[0]", "[[3,0.5,1,9],1.0]", "after its parent"),
            ("0.0", "[3]", "[1.0]", "past its nodes"),
            ("0.0", "[0]", "[]", "past its nodes"),
            ("0.0", "[0]", "[[99,0.5,1,2],1.0,1.0]", "no feature"),
            ("0.0", "[0]", "[[3,1e99,1,2],1.0,1.0]", "finite"),
            ("0.0", "[0]", "[1e99]", "finite"),
        ] {
            let error = loaded(base, roots, nodes).unwrap_err();
            assert!(error.contains(said), "{nodes}: {error}");
        }
        assert!(loaded("0.0", "[0]", "[[3,0.5,1]]").is_err() && loaded("null", "[0]", "[1.0]").is_err());
        let other = r#"{"features":["length"],"base":0.0,"roots":[0],"nodes":[1.0]}"#;
        assert!(serde_json::from_str::<Gate>(other).unwrap_err().to_string().contains("other features"));
    }
}

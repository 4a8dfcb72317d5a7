//! From which score on a neighbour may be trusted, with a stated confidence.
//!
//! Learn then test (Angelopoulos et al., "Learn then test: calibrating predictive algorithms to achieve risk control",
//! 2021). Candidate thresholds are set by the scores the gate was *trained* on, before a *calibration* pair is looked
//! at. Each stands for the hypothesis "of what scores this much or more, over the budget violates the floor". Of n
//! calibration pairs accepted, k violations, its p-value is the exact binomial P\[Bin(n, budget) ≤ k\].
//!
//! The hypotheses are tested from strict to loose by the fallback procedure (Wiens, "A fixed sequence Bonferroni procedure
//! for testing multiple endpoints", 2003): each has a share of the permitted error, and one that is rejected hands on what
//! it was tested at to the next. The chance that any true hypothesis is rejected is at most 1 − confidence, whatever the
//! dependence between them, so the loosest that is rejected may be used. It rejects whatever Bonferroni's correction with the
//! same shares rejects, and unlike a plain fixed sequence it is not ended by one unlucky violation among
//! the strictest, where a few hundred pairs decide.
//!
//! The promise holds for pairs drawn as the calibration pairs were: of the same traffic. `audit.rs` watches whether they are.
//! Never: certifies what fewer pairs carry than [`accepted_min`] says.

use statrs::function::beta::checked_beta_reg;

/// How many thresholds are tested.
const THRESHOLDS: usize = 20;
/// What the strictest has of the permitted error; the others have equal shares of the rest.
const FIRST_SHARE: f64 = 0.3;
/// By how much more pairs than the least the strictest threshold accepts, as expected.
const FIRST_MARGIN: f64 = 1.1;
/// Halvings of an interval until it is one number of 64 bits.
const HALVINGS: usize = 60;

/// What is to be promised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Promise {
    /// The greatest share of accepted pairs that may violate the floor, between 0 and 1.
    pub budget: f64,
    /// How sure that is to be, between 0 and 1: 0.95.
    pub confidence: f64,
}

/// A threshold that keeps its promise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Passed {
    threshold: f32,
    accepted: u64,
    violations: u64,
    promise: Promise,
}

/// Why there is no certificate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub(super) enum CertifyError {
    /// The promise is none.
    #[error("a promise needs a budget and a confidence between 0 and 1, not {budget} and {confidence}")]
    Promise {
        /// As given.
        budget: f64,
        /// As given.
        confidence: f64,
    },
    /// A score is not a finite number.
    #[error("score {index} of the {set} pairs is not a finite number: score them again by a gate that loads")]
    NotFinite {
        /// `training` or `calibration`.
        set: &'static str,
        /// Which one.
        index: usize,
    },
    /// As many scores as outcomes are needed.
    #[error("{scores} calibration scores but {outcomes} outcomes: give one outcome for each")]
    Lengths {
        /// How many scores.
        scores: usize,
        /// How many outcomes.
        outcomes: usize,
    },
    /// Too few pairs for any certificate.
    #[error("{found} {set} pairs are too few: this promise needs {least}, collect more shadow traffic")]
    TooFew {
        /// `training` or `calibration`.
        set: &'static str,
        /// How many there are.
        found: usize,
        /// How many there must be at least.
        least: u64,
    },
    /// No threshold passed its test.
    #[error(
        "no threshold of {tested} keeps the promise: allow a lower floor or a larger budget, or collect more pairs"
    )]
    NonePassed {
        /// How many were tested.
        tested: usize,
    },
}

impl Promise {
    /// A promise that at most `budget` of what is accepted violates the floor.
    ///
    /// # Errors
    /// If one of the two is not strictly between 0 and 1.
    pub(super) fn new(budget: f64, confidence: f64) -> Result<Self, CertifyError> {
        let within = |value: f64| value > 0.0 && value < 1.0;
        if within(budget) && within(confidence) {
            Ok(Self { budget, confidence })
        } else {
            Err(CertifyError::Promise { budget, confidence })
        }
    }
}

impl Passed {
    /// What scores this much or more may be trusted.
    #[must_use]
    pub(super) fn threshold(&self) -> f32 {
        self.threshold
    }

    /// How many calibration pairs scored so.
    #[must_use]
    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// How many of those violated the floor.
    #[must_use]
    pub(super) fn violations(&self) -> u64 {
        self.violations
    }

    /// The Clopper–Pearson upper bound of the violations' share, at the promise's confidence, for this threshold alone: at
    /// most the budget, by how much says how much room there is.
    #[must_use]
    pub(super) fn violations_share_max(&self) -> f64 {
        share_max(self.violations, self.accepted, self.promise.confidence)
    }
}

/// The loosest threshold that keeps the promise. `training` are the scores of pairs the gate was trained on or any others
/// apart from the calibration pairs; `calibration` are scores of pairs the gate has not seen, `within[i]` whether pair i was
/// within the floor.
///
/// # Errors
/// Of scores that are not finite, of too few pairs, and if no threshold passes.
pub(super) fn learn_then_test(
    training: &[f32],
    calibration: &[f32],
    within: &[bool],
    promise: Promise,
) -> Result<Passed, CertifyError> {
    let Promise { budget, confidence } = Promise::new(promise.budget, promise.confidence)?;
    for (set, scores) in [("training", training), ("calibration", calibration)] {
        if let Some(index) = scores.iter().position(|score| !score.is_finite()) {
            return Err(CertifyError::NotFinite { set, index });
        }
    }
    if calibration.len() != within.len() {
        return Err(CertifyError::Lengths { scores: calibration.len(), outcomes: within.len() });
    }
    let least = accepted_min(promise);
    if (calibration.len() as u64) < least {
        return Err(CertifyError::TooFew { set: "calibration", found: calibration.len(), least });
    }
    if training.len() < THRESHOLDS {
        return Err(CertifyError::TooFew { set: "training", found: training.len(), least: THRESHOLDS as u64 });
    }

    let error_max = 1.0 - confidence;
    let thresholds = thresholds(training, calibration.len(), promise);
    let outcomes = Outcomes::new(calibration, within);
    let rest = (1.0 - FIRST_SHARE) / (THRESHOLDS - 1) as f64;
    let (mut level, mut passed) = (0.0, None);
    for (nth, &threshold) in thresholds.iter().enumerate() {
        level += error_max * if nth == 0 { FIRST_SHARE } else { rest };
        let (accepted, violations) = outcomes.at(threshold);
        // The least count would follow from the level; that it is asked for keeps it so if shares are changed.
        if accepted >= least && at_most(violations, accepted, budget) <= level {
            passed = Some(Passed { threshold, accepted, violations, promise });
        } else {
            level = 0.0;
        }
    }
    passed.ok_or(CertifyError::NonePassed { tested: thresholds.len() })
}

/// The fewest accepted pairs that carry a promise, if none of them is a violation: 299 for one in a hundred at 95 %.
#[must_use]
pub(super) fn accepted_min(promise: Promise) -> u64 {
    ((1.0 - promise.confidence).ln() / (-promise.budget).ln_1p()).ceil() as u64
}

/// From strict to loose. The first accepts as many calibration pairs as its own level needs without a violation, and
/// some more, if these score as the training pairs do; the last all.
fn thresholds(training: &[f32], calibrated: usize, promise: Promise) -> Vec<f32> {
    let mut scores = training.to_vec();
    scores.sort_unstable_by(|a, b| b.total_cmp(a));
    let first_confidence = 1.0 - (1.0 - promise.confidence) * FIRST_SHARE;
    let first = accepted_min(Promise { confidence: first_confidence, ..promise }) as f64 * FIRST_MARGIN;
    let strictest = (first / calibrated as f64).min(1.0);
    (0..THRESHOLDS)
        .map(|nth| {
            let share = strictest + (1.0 - strictest) * nth as f64 / (THRESHOLDS - 1) as f64;
            let rank = (share * scores.len() as f64).ceil() as usize;
            scores[rank.clamp(1, scores.len()) - 1]
        })
        .collect()
}

/// Calibration pairs by falling score, with the violations among the first of them.
struct Outcomes {
    scores: Vec<f32>,
    /// `violations[n]` among the first n.
    violations: Vec<u64>,
}

impl Outcomes {
    fn new(scores: &[f32], within: &[bool]) -> Self {
        let mut pairs: Vec<(f32, bool)> = scores.iter().copied().zip(within.iter().copied()).collect();
        pairs.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let mut sum = 0;
        let violations = std::iter::once(0).chain(pairs.iter().map(|&(_, within)| {
            sum += u64::from(!within);
            sum
        }));
        let violations = violations.collect();
        Self { scores: pairs.into_iter().map(|(score, _)| score).collect(), violations }
    }

    /// How many score `threshold` or more, and how many of those are violations.
    fn at(&self, threshold: f32) -> (u64, u64) {
        let accepted = self.scores.partition_point(|&score| score >= threshold);
        (accepted as u64, self.violations[accepted])
    }
}

/// P\[Bin(n, p) ≤ k\], by the regularised incomplete beta function; 1 if it can't be computed, which certifies nothing.
fn at_most(k: u64, n: u64, p: f64) -> f64 {
    if k >= n { 1.0 } else { checked_beta_reg((n - k) as f64, (k + 1) as f64, 1.0 - p).unwrap_or(1.0) }
}

/// The Clopper–Pearson upper bound of a share of which `k` in `n` were seen, at a confidence; 1 of none.
#[must_use]
pub(super) fn share_max(k: u64, n: u64, confidence: f64) -> f64 {
    if k >= n {
        return 1.0;
    }
    let (mut low, mut high) = (k as f64 / n as f64, 1.0);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        if at_most(k, n, middle) > 1.0 - confidence { low = middle } else { high = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::super::draws::Draws;
    use super::*;

    const ONE_IN_A_HUNDRED: Promise = Promise { budget: 0.01, confidence: 0.95 };
    const ONE_IN_TWENTY: Promise = Promise { budget: 0.05, confidence: 0.95 };

    /// Pairs of scores from 0 to 1; one of score 1 − u is a violation with the probability `curve(u)`.
    fn drawn(draws: &mut Draws, count: usize, curve: &dyn Fn(f64) -> f64) -> (Vec<f32>, Vec<bool>) {
        (0..count)
            .map(|_| {
                let u = draws.share();
                ((1.0 - u) as f32, !draws.happens(curve(u)))
            })
            .unzip()
    }

    /// The true share of violations among what a threshold accepts.
    fn truth(threshold: f32, curve: &dyn Fn(f64) -> f64) -> f64 {
        let u = 1.0 - f64::from(threshold);
        (0..1000).map(|i| curve(u * (f64::from(i) + 0.5) / 1000.0)).sum::<f64>() / 1000.0
    }

    #[test]
    fn p_values_and_bounds_are_those_of_the_tables() {
        // 0.99^299 is the first power of it under 0.05.
        assert_eq!((accepted_min(ONE_IN_A_HUNDRED), accepted_min(ONE_IN_TWENTY)), (299, 59));
        for (k, n, p, expected) in [
            (0, 299, 0.01, 0.99f64.powi(299)),
            (1, 10, 0.5, 11.0 / 1024.0),
            (9, 10, 0.5, 1023.0 / 1024.0),
            (10, 10, 0.5, 1.0),
            (0, 0, 0.5, 1.0),
        ] {
            assert!((at_most(k, n, p) - expected).abs() < 1e-12, "{k} of {n}");
        }
        // By the definition: 1 − 0.05^(1/n) for none, and 0.05^(1/n) … of the other tail for all but one.
        assert!((share_max(0, 299, 0.95) - (1.0 - 0.05f64.powf(1.0 / 299.0))).abs() < 1e-12);
        assert!((share_max(1, 2, 0.95) - 0.95f64.sqrt()).abs() < 1e-12);
        assert_eq!((share_max(3, 3, 0.95), share_max(0, 0, 0.95)), (1.0, 1.0));
    }

    #[test]
    fn a_promise_is_broken_no_more_often_than_its_confidence_allows() {
        let curves: [(&str, &dyn Fn(f64) -> f64); 4] = [
            ("steep", &|u| (1.5 * (u - 0.3).max(0.0).powi(2)).min(1.0)),
            ("linear", &|u| 0.1 * u),
            ("just over the budget everywhere", &|_| 0.0501),
            ("worst where the gate is surest", &|u| if u < 0.1 { 0.10 } else { 0.04 }),
        ];
        let mut draws = Draws::new(11);
        const REPETITIONS: u32 = 500;
        for (name, curve) in curves {
            let (mut broken, mut certified) = (0, 0);
            for _ in 0..REPETITIONS {
                let (training, _) = drawn(&mut draws, 600, curve);
                let (scores, within) = drawn(&mut draws, 1500, curve);
                if let Ok(certificate) = learn_then_test(&training, &scores, &within, ONE_IN_TWENTY) {
                    certified += 1;
                    broken += u32::from(truth(certificate.threshold(), curve) > 0.05);
                }
            }
            // 5 % and three standard errors.
            let allowed = 0.05 + 3.0 * (0.05 * 0.95 / f64::from(REPETITIONS)).sqrt();
            assert!(f64::from(broken) <= allowed * f64::from(REPETITIONS), "{name}: {broken} of {REPETITIONS}");
            if matches!(name, "steep" | "linear") {
                assert!(f64::from(certified) >= 0.9 * f64::from(REPETITIONS), "{name}: {certified} certified");
            }
        }
    }

    #[test]
    fn one_violation_among_the_surest_does_not_end_the_search() {
        let scores: Vec<f32> = (0..4000).map(|i| 1.0 - i as f32 / 4000.0).collect();
        let within: Vec<bool> = (0..4000).map(|i| i != 5 && i < 2800).collect();
        let certificate = learn_then_test(&scores, &scores, &within, ONE_IN_A_HUNDRED).unwrap();
        assert!(certificate.accepted() >= 2500 && certificate.violations() <= 10, "{certificate:?}");
        assert!(certificate.violations_share_max() <= 0.01);
    }

    #[test]
    fn fewer_pairs_than_the_least_certify_nothing_however_good_they_are() {
        let scores = |count: usize| (0..count).map(|i| i as f32).collect::<Vec<_>>();
        let (training, few) = (scores(500), scores(298));
        let found = learn_then_test(&training, &few, &[true; 298], ONE_IN_A_HUNDRED);
        assert_eq!(found, Err(CertifyError::TooFew { set: "calibration", found: 298, least: 299 }));
        // Enough pairs, but only few of them score as the training pairs did.
        let mut low = vec![-1.0; 1000];
        low[..250].fill(1000.0);
        assert_eq!(
            learn_then_test(&training, &low, &[true; 1000], ONE_IN_A_HUNDRED),
            Err(CertifyError::NonePassed { tested: THRESHOLDS })
        );
        assert!(learn_then_test(&training, &scores(420), &[true; 420], ONE_IN_A_HUNDRED).is_ok());
    }

    #[test]
    fn what_is_no_score_no_promise_or_no_pair_is_refused() {
        let good = vec![0.5; 500];
        let mut bad = good.clone();
        bad[7] = f32::NAN;
        let within = [true; 500];
        let refused = |training: &[f32], scores: &[f32], within: &[bool], budget| {
            learn_then_test(training, scores, within, Promise { budget, confidence: 0.95 }).unwrap_err()
        };
        assert_eq!(refused(&bad, &good, &within, 0.05), CertifyError::NotFinite { set: "training", index: 7 });
        assert_eq!(refused(&good, &bad, &within, 0.05), CertifyError::NotFinite { set: "calibration", index: 7 });
        assert_eq!(refused(&good, &good, &within[1..], 0.05), CertifyError::Lengths { scores: 500, outcomes: 499 });
        assert!(matches!(refused(&[], &good, &within, 0.05), CertifyError::TooFew { set: "training", .. }));
        for budget in [0.0, 1.0, -1.0, f64::NAN] {
            assert!(matches!(refused(&good, &good, &within, budget), CertifyError::Promise { .. }));
        }
    }
}

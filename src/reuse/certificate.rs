//! What has been shown of a gate on a namespace's own traffic, and until when that counts.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Terms;
use super::certify::share_max;

/// The shortest texts that reuse is for, in tokens: shorter ones are cheaper to compute, and one word more means more in them.
pub const TOKENS_MIN: usize = 64;

/// Where bins of lengths begin, in tokens. Each is certified by itself.
pub const BINS: [usize; 2] = [TOKENS_MIN, 256];

/// Which goals certificates are sought for: a floor of the cosine, and the share of reused vectors that may be below it.
pub const GOALS: [(f32, f32); 6] = [(0.90, 0.01), (0.90, 0.05), (0.95, 0.01), (0.95, 0.05), (0.98, 0.01), (0.98, 0.05)];

/// How sure a certificate is: the share of certificates that may be wrong is one less this.
pub const CONFIDENCE: f64 = 0.95;

/// A certificate's name: a digest of what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CertificateId(pub u64);

impl fmt::Display for CertificateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// That of texts like those it was made on, whose length is in its bin and whose score is at least its threshold, at most a share
/// `max_violation` is less similar to the reused text than `min_similarity`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// Its name.
    pub id: CertificateId,
    /// The floor of the cosine between the reused vector and the text's own.
    pub min_similarity: f32,
    /// The share of reused vectors that may be below the floor.
    pub max_violation: f32,
    /// How sure this is, 0 to 1.
    pub confidence: f64,
    /// The shortest texts it is for, in tokens.
    pub tokens_min: usize,
    /// The longest.
    pub tokens_max: usize,
    /// The score from which on the gate accepts.
    pub threshold: f32,
    /// Pairs it was tested on.
    pub pairs: usize,
    /// Of those, how many the gate accepts.
    pub accepted: usize,
    /// Of those, how many are below the floor.
    pub violations: usize,
    /// The upper end of a confidence interval of their share (Clopper and Pearson, 1934), at the same confidence.
    pub upper_bound: f64,
    /// When it was made, in Unix seconds.
    pub made: u32,
    /// When it ceases to count, in Unix seconds.
    pub expires: u32,
}

impl Certificate {
    /// Whether it counts for a text of so many tokens, asked for on such terms at such a time.
    #[must_use]
    pub fn serves(&self, tokens: usize, terms: Terms, now: u32) -> bool {
        (self.tokens_min..=self.tokens_max).contains(&tokens) && self.meets(terms) && now < self.expires
    }

    /// Whether its counts carry its promise: of one that was read from disk.
    pub(super) fn is_sound(&self) -> bool {
        let shares = [self.min_similarity, self.max_violation];
        shares.iter().all(|share| (0.0..=1.0).contains(share))
            && (0.0..1.0).contains(&self.confidence)
            && self.threshold.is_finite()
            && self.violations <= self.accepted
            && self.accepted <= self.pairs
            && share_max(self.violations as u64, self.accepted as u64, self.confidence)
                <= f64::from(self.max_violation) + 1e-6
    }

    /// Whether what it promises is what the terms ask for, or more.
    #[must_use]
    pub fn meets(&self, terms: Terms) -> bool {
        self.min_similarity >= terms.min_similarity && self.max_violation <= terms.max_violation
    }
}

/// The bin that a text of so many tokens is in, by its number; `None` for one that is too short.
#[must_use]
pub fn bin(tokens: usize) -> Option<usize> {
    BINS.iter().rposition(|&start| tokens >= start)
}

/// The longest text of a bin, in tokens.
#[must_use]
pub(super) fn bin_end(bin: usize) -> usize {
    BINS.get(bin + 1).map_or(usize::MAX, |next| next - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_carry_no_promise_are_not_sound() {
        let sound = Certificate {
            id: CertificateId(1),
            min_similarity: 0.95,
            max_violation: 0.05,
            confidence: CONFIDENCE,
            tokens_min: 64,
            tokens_max: 127,
            threshold: 0.9,
            pairs: 400,
            accepted: 200,
            violations: 3,
            upper_bound: 0.038,
            made: 1,
            expires: 2,
        };
        assert!(sound.is_sound());
        let changes: [fn(&mut Certificate); 6] = [
            |one| one.violations = 9,
            |one| one.accepted = 40,
            |one| one.accepted = 401,
            |one| one.max_violation = 0.01,
            |one| one.threshold = f32::NAN,
            |one| one.confidence = 1.5,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut changed = sound.clone();
            change(&mut changed);
            assert!(!changed.is_sound(), "{number}");
        }
    }

    #[test]
    fn bins_cover_all_lengths_from_the_least_on() {
        assert_eq!([0, 63, 64, 255, 256, 8192].map(bin), [None, None, Some(0), Some(0), Some(1), Some(1)]);
        for (number, &start) in BINS.iter().enumerate() {
            assert_eq!((bin(start), bin(bin_end(number))), (Some(number), Some(number)));
        }
    }
}

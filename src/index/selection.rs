//! Which rows one query's answer can be among, judged by the bounds of their similarities.
//!
//! A row is a candidate unless `k` others are certainly more similar: its upper bound is below the k-th largest lower bound.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::query::{Cursor, Query};
use crate::domain::Key;

/// A row that may be in the answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// At most its similarity.
    pub(super) lower: f32,
    /// At least its similarity.
    pub(super) upper: f32,
    pub(super) place: u32,
    pub(super) sequence: u64,
    pub(super) key: Key,
}

/// What a scan comes to, for one query.
#[derive(Clone)]
pub(super) struct Candidates {
    pub(super) found: Vec<Candidate>,
    /// Every row is found that is wanted and at least so similar.
    pub(super) dropped_below: f32,
}

/// Candidates as they are found. Chunks of rows can be selected from apart, and their selections merged.
pub(super) struct Selection {
    /// How many rows have to be certainly more similar to keep a row out.
    keep: usize,
    min_similarity: f32,
    after: Option<Cursor>,
    /// The largest lower bounds, at most `keep`.
    lowers: BinaryHeap<Reverse<Ordered>>,
    found: Vec<Candidate>,
    /// How many may be found before those are dropped that are none any more.
    found_max: usize,
}

/// The least number of candidates that it is worth to look through again.
const FOUND_MIN: usize = 256;

#[derive(Clone, Copy, PartialEq)]
struct Ordered(f32);

impl Eq for Ordered {}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Default for Candidates {
    /// Of no rows.
    fn default() -> Self {
        Self { found: Vec::new(), dropped_below: f32::NEG_INFINITY }
    }
}

impl Selection {
    /// `keep` is `k`, or more, where some of those that keep others out may be gone.
    pub(super) fn new(query: &Query<'_>, keep: usize) -> Self {
        Self {
            keep,
            min_similarity: query.min_similarity.unwrap_or(f32::NEG_INFINITY),
            after: query.after,
            lowers: BinaryHeap::new(),
            found: Vec::new(),
            found_max: FOUND_MIN,
        }
    }

    /// What a row's upper bound must reach.
    pub(super) fn threshold(&self) -> f32 {
        self.dropped_below().max(self.min_similarity)
    }

    fn dropped_below(&self) -> f32 {
        let least = self.lowers.peek().filter(|_| self.lowers.len() == self.keep);
        least.map_or(f32::NEG_INFINITY, |Reverse(Ordered(lower))| *lower)
    }

    /// Takes a row whose upper bound reaches the threshold.
    pub(super) fn offer(&mut self, candidate: Candidate) {
        let lower = candidate.lower;
        // Only what is certainly behind the cursor keeps others out; what is certainly before it is no candidate.
        let certain = match self.after {
            Some(cursor) if candidate.sequence > cursor.sequence || lower > cursor.similarity => return,
            Some(cursor) => candidate.upper < cursor.similarity,
            None => true,
        };
        self.found.push(candidate);
        if certain {
            self.keep_out_below(lower);
        }
        if self.found.len() > self.found_max {
            self.drop_beaten();
            self.found_max = FOUND_MIN.max(2 * self.found.len());
        }
    }

    fn keep_out_below(&mut self, lower: f32) {
        if self.lowers.len() < self.keep {
            self.lowers.push(Reverse(Ordered(lower)));
        } else if let Some(mut least) = self.lowers.peek_mut()
            && least.0.0 < lower
        {
            *least = Reverse(Ordered(lower));
        }
    }

    fn drop_beaten(&mut self) {
        let threshold = self.threshold();
        self.found.retain(|candidate| candidate.upper >= threshold);
    }

    /// Adds what was selected from other rows.
    pub(super) fn merge(&mut self, other: Self) {
        for Reverse(Ordered(lower)) in other.lowers {
            self.keep_out_below(lower);
        }
        self.found.extend(other.found);
    }

    pub(super) fn finish(mut self) -> Candidates {
        self.drop_beaten();
        Candidates { dropped_below: self.dropped_below(), found: self.found }
    }
}

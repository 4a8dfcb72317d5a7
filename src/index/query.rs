//! What callers give a search and get from it.

use std::ops::RangeInclusive;

use half::f16;

use super::searcher::Device;
use crate::domain::Key;

/// The most hits of one query.
pub const HITS_MAX: usize = 1000;

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// A vector of length one (within 1 %), as many values as rows have.
    pub vector: &'a [f32],
    /// How many hits, 1 to [`HITS_MAX`].
    pub k: usize,
    /// Nothing less similar.
    pub min_similarity: Option<f32>,
    /// The end of the page before: nothing up to there, and nothing newer.
    pub after: Option<Cursor>,
}

/// Where a page ended. Pages that begin where the one before ended show each row once, and none that was set after the
/// first page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cursor {
    /// The similarity of the page's last hit.
    pub similarity: f32,
    /// Its key.
    pub key: Key,
    /// The last sequence number that had been given out when the first page was asked for.
    pub sequence: u64,
}

/// Which rows count, for all queries of a search.
#[derive(Clone, Debug)]
pub struct Filter<'a> {
    /// Only these namespaces', in ascending order.
    pub namespaces: Option<&'a [u32]>,
    /// Only those written then, in Unix seconds.
    pub created: RangeInclusive<u32>,
    /// Only those not expired by then, in Unix seconds.
    pub now: u32,
    /// Only those in these places, which ascend. Only they are looked at, so a few of many rows are soon searched.
    pub places: Option<&'a [u32]>,
}

/// A row that was found. Hits come the most similar first, of equally similar ones the one with the smaller key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// The row's key.
    pub key: Key,
    /// [`super::similarity`] of the query and the row that was shown.
    pub similarity: f32,
    /// Where the index had it.
    pub place: u32,
    /// The sequence number of the row that was shown.
    pub sequence: u64,
}

/// Why a search was refused. The first such query is named.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SearchError {
    /// A query has another length than the rows.
    #[error("query {query} has {dims} values, but the index has rows of {expected}")]
    Dims {
        /// Which query.
        query: usize,
        /// How many values it has.
        dims: usize,
        /// How many the rows have.
        expected: usize,
    },
    /// A query is no unit vector: zero, not finite, or not scaled.
    #[error("query {query} has length {length}, but has to have length 1")]
    NotUnit {
        /// Which query.
        query: usize,
        /// Its length.
        length: f64,
    },
    /// A query wants no hits, or too many.
    #[error("query {query} wants {k} hits, but can have 1 to {HITS_MAX}")]
    Hits {
        /// Which query.
        query: usize,
        /// How many it wants.
        k: usize,
    },
    /// What computes has failed. Callers of an index never see it: the processor answers then.
    #[error("{} cannot search: {message}", device.name())]
    Device {
        /// What.
        device: Device,
        /// Why.
        message: String,
    },
}

/// How far from one a query's length may be.
const LENGTH_TOLERANCE: f64 = 0.01;

/// # Errors
/// When a query cannot be answered over rows of so many values.
pub(super) fn check(queries: &[Query<'_>], dims: usize) -> Result<(), SearchError> {
    for (index, query) in queries.iter().enumerate() {
        if !(1..=HITS_MAX).contains(&query.k) {
            return Err(SearchError::Hits { query: index, k: query.k });
        }
        if query.vector.len() != dims {
            return Err(SearchError::Dims { query: index, dims: query.vector.len(), expected: dims });
        }
        let length = length(query.vector);
        if length.is_nan() || (length - 1.0).abs() > LENGTH_TOLERANCE {
            return Err(SearchError::NotUnit { query: index, length });
        }
    }
    Ok(())
}

/// A vector's length.
pub(super) fn length(vector: &[f32]) -> f64 {
    vector.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
}

/// The rows themselves, which the index does not have.
pub trait Rows: Sync {
    /// Shows the row of each of these keys that still lives: the key's index, the row's sequence number, the row. Each at
    /// most once. Returns false where what was shown must be forgotten; the same is then asked for again.
    fn read(&self, keys: &[Key], found: &mut dyn FnMut(usize, u64, &[f16])) -> bool;
}

impl<'a> Query<'a> {
    /// The `k` rows nearest to a vector.
    #[must_use]
    pub fn new(vector: &'a [f32], k: usize) -> Self {
        Self { vector, k, min_similarity: None, after: None }
    }

    /// Whether a row belongs to the answer, if it is near enough.
    pub(super) fn wants(&self, hit: &Hit) -> bool {
        let behind = |cursor: Cursor| {
            let order = hit.similarity.total_cmp(&cursor.similarity).reverse().then(hit.key.cmp(&cursor.key));
            hit.sequence <= cursor.sequence && order.is_gt()
        };
        self.min_similarity.is_none_or(|min| hit.similarity >= min) && self.after.is_none_or(behind)
    }
}

impl Filter<'_> {
    /// All rows that have not expired.
    #[must_use]
    pub fn all(now: u32) -> Self {
        Self { namespaces: None, created: 0..=u32::MAX, now, places: None }
    }

    /// Whether all rows count. Expired ones are left out where they are found: they are few until they are cleared.
    pub(super) fn is_open(&self) -> bool {
        self.namespaces.is_none() && self.created == (0..=u32::MAX) && self.places.is_none()
    }
}

//! A run of places: the rows in them as codes, and the facts that decide who may find them.

use std::num::NonZero;

use super::Row;
use super::codes::{RowScale, round_row, stride};
use super::kernel::{BLOCK_ROWS, Block};
use super::lines::Lines;
use super::query::Filter;
use crate::domain::Key;

/// Places of a chunk: few enough that a scan, which holds a chunk still, is soon through; many enough to be worth the lock.
pub(super) const CHUNK_ROWS: usize = 1024;

/// What a row without an end is said to expire at; it doesn't.
const NEVER: u32 = u32::MAX;

/// What a row is, beside its vector.
#[derive(Clone, Copy)]
pub(super) struct Facts {
    pub(super) key: Key,
    pub(super) sequence: u64,
}

/// The number of the segment that a row can be found by; none is for rows of the tail.
pub(super) type Cover = Option<NonZero<u32>>;

/// Which of the rows are meant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    All,
    /// Those that no segment covers.
    Tail,
    /// Those that one does.
    Covered,
}

/// What a change does to a chunk.
#[derive(Clone, Copy, Default)]
pub(super) struct Change {
    /// By how much the number of rows changes.
    pub(super) rows: isize,
    /// The segment that had covered the row that is gone.
    pub(super) uncovered: Cover,
}

/// Who may find a row. A place without a row has always expired.
#[derive(Clone, Copy, Default)]
struct Validity {
    namespace: u32,
    created: u32,
    expires: u32,
}

/// What was said of a block's rows, in the order in which they were picked.
pub(super) struct Scales {
    pub(super) scales: [f32; BLOCK_ROWS],
    pub(super) errors: [f32; BLOCK_ROWS],
}

/// [`CHUNK_ROWS`] places. Takes no memory until the first row.
#[derive(Default)]
pub(super) struct Chunk {
    codes: Option<Lines<i8>>,
    scales: Vec<RowScale>,
    facts: Vec<Facts>,
    validity: Vec<Validity>,
    /// Empty until the first row is covered.
    covers: Vec<Cover>,
    /// The length of the longest row there ever was.
    length_max: f32,
}

impl Validity {
    #[inline]
    fn admits(self, filter: &Filter<'_>) -> bool {
        (self.expires > filter.now || self.expires == NEVER)
            & (filter.created.start() <= &self.created)
            & (&self.created <= filter.created.end())
            & filter.namespaces.is_none_or(|namespaces| match namespaces {
                [only] => *only == self.namespace,
                several => several.binary_search(&self.namespace).is_ok(),
            })
    }
}

impl Chunk {
    /// Bytes that a chunk has once it has a row.
    pub(super) fn memory_bytes(dims: usize) -> usize {
        CHUNK_ROWS
            * (stride(dims) + size_of::<RowScale>() + size_of::<Facts>() + size_of::<Validity>() + size_of::<Cover>())
    }

    pub(super) fn has_memory(&self) -> bool {
        self.codes.is_some()
    }

    /// Whether a row is in the place, and which.
    fn at(&self, at: usize) -> Option<Facts> {
        let vacant = self.validity.get(at).is_none_or(|validity| validity.expires == 0);
        (!vacant).then(|| self.facts[at])
    }

    /// Puts a row in the place, unless a later one is there.
    pub(super) fn set(&mut self, at: usize, row: &Row<'_>) -> Change {
        let before = self.at(at);
        if before.is_some_and(|facts| facts.sequence > row.sequence) {
            return Change::default();
        }
        let uncovered = self.uncover(at);
        let stride = stride(row.unit.len());
        let codes = self.codes.get_or_insert_with(|| {
            self.scales = vec![RowScale { scale: 0.0, error: 0.0, length: 0.0 }; CHUNK_ROWS];
            self.facts = vec![Facts { key: Key::from_bytes([0; 32]), sequence: 0 }; CHUNK_ROWS];
            self.validity = vec![Validity::default(); CHUNK_ROWS];
            Lines::zeroed(CHUNK_ROWS * stride)
        });
        let codes = &mut codes.as_mut_slice()[at * stride..][..row.unit.len()];
        let Some(scale) = round_row(row.unit, codes) else {
            self.validity[at] = Validity::default();
            return Change { rows: -isize::from(before.is_some()), uncovered };
        };
        self.length_max = self.length_max.max(scale.length);
        self.scales[at] = scale;
        self.facts[at] = Facts { key: row.key, sequence: row.sequence };
        let expires = row.expires.map_or(NEVER, |expires| expires.max(1));
        self.validity[at] = Validity { namespace: row.namespace, created: row.created, expires };
        Change { rows: isize::from(before.is_none()), uncovered }
    }

    /// Empties the place.
    pub(super) fn clear(&mut self, at: usize) -> Change {
        if self.at(at).is_none() {
            return Change::default();
        }
        self.validity[at] = Validity::default();
        // Nothing of a row that is gone is left in memory.
        self.facts[at] = Facts { key: Key::from_bytes([0; 32]), sequence: 0 };
        if let Some(codes) = &mut self.codes {
            let stride = codes.as_slice().len() / CHUNK_ROWS;
            codes.as_mut_slice()[at * stride..][..stride].fill(0);
        }
        Change { rows: -1, uncovered: self.uncover(at) }
    }

    fn uncover(&mut self, at: usize) -> Cover {
        self.covers.get_mut(at).and_then(Option::take)
    }

    /// Which segment covers the row in the place; none if there is no row.
    pub(super) fn cover(&self, at: usize) -> Cover {
        self.covers.get(at).copied().flatten()
    }

    /// Notes by which segment the row in the place is found, if it has these codes. Returns whether it has.
    pub(super) fn cover_by(&mut self, at: usize, codes: &[i8], scale: f32, segment: Cover) -> bool {
        let is_the_row =
            self.at(at).is_some() && self.scales[at].scale == scale && self.codes_of(at, codes.len()) == codes;
        if is_the_row {
            if self.covers.is_empty() {
                self.covers = vec![None; CHUNK_ROWS];
            }
            self.covers[at] = segment;
        }
        is_the_row
    }

    fn codes_of(&self, at: usize, stride: usize) -> &[i8] {
        self.codes.as_ref().map_or(&[], |codes| &codes.as_slice()[at * stride..][..stride])
    }

    /// Shows each row with its place in the chunk, its cover, its codes and their scale.
    pub(super) fn rows(&self, stride: usize) -> impl Iterator<Item = (usize, Cover, &[i8], f32)> {
        let there = (0..self.validity.len()).filter(|&at| self.at(at).is_some());
        there.map(move |at| (at, self.cover(at), self.codes_of(at, stride), self.scales[at].scale))
    }

    /// Which rows the filter admits, among the places it names that are this chunk's, whose first is `first`.
    pub(super) fn pick(&self, filter: &Filter<'_>, part: Part, first: usize, picked: &mut Vec<u16>) {
        picked.clear();
        if let Some(places) = filter.places {
            let of_chunk = places_of(places, first).iter().map(|&place| place as usize - first);
            let admitted = |&at: &usize| self.validity.get(at).is_some_and(|validity| validity.admits(filter));
            picked.extend(of_chunk.filter(admitted).map(|at| at as u16));
            self.keep(part, picked);
            return;
        }
        // Written without a branch: which rows are admitted can be any pattern.
        picked.resize(self.validity.len(), 0);
        let mut count = 0;
        for (at, validity) in self.validity.iter().enumerate() {
            picked[count] = at as u16;
            count += usize::from(validity.admits(filter));
        }
        picked.truncate(count);
        self.keep(part, picked);
    }

    /// Keeps the rows of a part.
    fn keep(&self, part: Part, picked: &mut Vec<u16>) {
        let is_covered = |at: &u16| self.cover(usize::from(*at)).is_some();
        match part {
            Part::All => {}
            Part::Tail if self.covers.is_empty() => {}
            Part::Tail => picked.retain(|at| !is_covered(at)),
            Part::Covered => picked.retain(is_covered),
        }
    }

    /// How many of its rows a filter admits, and how many rows there are.
    pub(super) fn admitted(&self, filter: &Filter<'_>) -> (usize, usize) {
        let rows = self.validity.iter().filter(|validity| validity.expires != 0);
        rows.fold((0, 0), |(admitted, rows), validity| (admitted + usize::from(validity.admits(filter)), rows + 1))
    }

    /// The rows to multiply.
    pub(super) fn block<'a>(&'a self, dims: usize, rows: &'a [u16], next: &'a [u16]) -> Block<'a> {
        let codes = self.codes.as_ref().map_or(&[][..], Lines::as_slice);
        Block { codes, stride: stride(dims), rows, next }
    }

    /// What is known of these rows' codes. Past them, what is known of others.
    pub(super) fn scales_of(&self, rows: &[u16], into: &mut Scales) {
        for ((&row, scale), error) in rows.iter().zip(&mut into.scales).zip(&mut into.errors) {
            let known = self.scales[usize::from(row)];
            (*scale, *error) = (known.scale, known.error);
        }
    }

    /// Sets the bit of each row that the filter admits, as far as the words go.
    pub(super) fn admit(&self, filter: &Filter<'_>, first: usize, words: &mut [u32]) {
        const WORD: usize = u32::BITS as usize;
        if let Some(places) = filter.places {
            for at in places_of(places, first).iter().map(|&place| place as usize - first) {
                if let Some(word) = words.get_mut(at / WORD) {
                    *word |= u32::from(self.facts_at(at, filter).is_some()) << (at % WORD);
                }
            }
            return;
        }
        for (word, validity) in words.iter_mut().zip(self.validity.chunks(WORD)) {
            for (bit, validity) in validity.iter().enumerate() {
                *word |= u32::from(validity.admits(filter)) << bit;
            }
        }
    }

    /// What is in the place.
    pub(super) fn found(&self, at: usize) -> Option<Facts> {
        self.at(at)
    }

    /// What is in the place, if the filter, its places apart, admits it.
    pub(super) fn facts_at(&self, at: usize, filter: &Filter<'_>) -> Option<Facts> {
        self.validity.get(at).is_some_and(|validity| validity.admits(filter)).then(|| self.facts[at])
    }

    pub(super) fn facts(&self, row: u16) -> Facts {
        self.facts[usize::from(row)]
    }

    pub(super) fn length_max(&self) -> f32 {
        self.length_max
    }
}

/// Those of the ascending places that are in the chunk that begins at `first`.
pub(super) fn places_of(places: &[u32], first: usize) -> &[u32] {
    let from = places.partition_point(|&place| (place as usize) < first);
    let rest = &places[from..];
    &rest[..rest.partition_point(|&place| (place as usize) < first + CHUNK_ROWS)]
}

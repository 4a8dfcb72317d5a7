//! Rows on their way to a device, and which places have one.

use std::collections::HashMap;
use std::mem;
use std::ops::Range;

use half::f16;

use super::WORD_ROWS;
use super::arithmetic::length;

/// What has changed since the device was last told.
#[derive(Default)]
pub(super) struct Staging {
    /// Where a place's row is among those on their way.
    waiting: HashMap<u32, usize>,
    places: Vec<u32>,
    rows: Vec<f16>,
    /// A bit for each place: whether it has a row.
    live: Vec<u32>,
    /// The words of it that the device has not seen.
    unseen: Range<usize>,
    /// At least the length of every row there ever was.
    length_max: f64,
}

/// What the device is told: rows, each place once, and the words of the bitmap from `first_word` on.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) places: Vec<u32>,
    pub(super) rows: Vec<f16>,
    pub(super) first_word: usize,
    pub(super) words: Vec<u32>,
    /// Places that there must be room for.
    pub(super) room: usize,
}

impl Staging {
    /// Puts a row in its place.
    pub(super) fn put(&mut self, place: u32, row: &[f16]) {
        match self.waiting.get(&place) {
            Some(&at) => self.rows[at * row.len()..][..row.len()].copy_from_slice(row),
            None => {
                self.waiting.insert(place, self.places.len());
                self.places.push(place);
                self.rows.extend_from_slice(row);
            }
        }
        self.length_max = self.length_max.max(length(row));
        self.mark(place, true);
    }

    /// Empties a place.
    pub(super) fn clear(&mut self, place: u32) {
        if (place as usize) < self.live.len() * WORD_ROWS {
            self.mark(place, false);
        }
    }

    fn mark(&mut self, place: u32, live: bool) {
        let (word, bit) = (place as usize / WORD_ROWS, 1 << (place as usize % WORD_ROWS));
        if self.live.len() <= word {
            self.live.resize(word + 1, 0);
        }
        self.live[word] = if live { self.live[word] | bit } else { self.live[word] & !bit };
        self.unseen = match self.unseen.is_empty() {
            true => word..word + 1,
            false => self.unseen.start.min(word)..self.unseen.end.max(word + 1),
        };
    }

    /// Bytes of rows on their way.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.rows.as_slice())
    }

    pub(super) fn length_max(&self) -> f64 {
        self.length_max
    }

    /// What has changed; from now on nothing has.
    pub(super) fn take(&mut self) -> Changes {
        self.waiting.clear();
        let unseen = mem::take(&mut self.unseen);
        Changes {
            places: mem::take(&mut self.places),
            rows: mem::take(&mut self.rows),
            first_word: unseen.start,
            words: self.live[unseen].to_vec(),
            room: self.live.len() * WORD_ROWS,
        }
    }
}

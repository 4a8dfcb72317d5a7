//! An answer in the making: rows and items filled as they are found or land.

use half::f16;

use super::Shared;
use super::flight::Landed;
use super::request::{Answer, Item, Timings};
use crate::domain::{Key, Status};

/// An answer in the making.
pub(super) struct Draft {
    pub(super) dims: usize,
    pub(super) keys: Vec<Key>,
    /// Rows up to the last one filled; a row that is not filled yet is zeros.
    pub(super) units: Vec<f16>,
    pub(super) items: Vec<Option<Item>>,
    pub(super) timings: Timings,
}

impl Draft {
    pub(super) fn new(keys: Vec<Key>, dims: usize) -> Self {
        let (units, items) = (Vec::with_capacity(keys.len() * dims), vec![None; keys.len()]);
        Self { dims, keys, units, items, timings: Timings::default() }
    }

    /// Takes what the store has.
    pub(super) fn fill(&mut self, shared: &Shared) {
        let Self { dims, keys, units, items, .. } = self;
        shared.store.get_many(keys, shared.now(), |index, entry, row| {
            set_row(units, index * *dims, row);
            let (key, tokens, truncated, norm) = (keys[index], entry.tokens, entry.truncated, entry.norm);
            items[index] = Some(Item { key, status: Status::Hit, tokens, truncated, norm });
        });
    }

    pub(super) fn missing(&self) -> Vec<usize> {
        self.items.iter().enumerate().filter(|(_, item)| item.is_none()).map(|(index, _)| index).collect()
    }

    /// Takes a landed call's vector. Who did not lead it has joined it.
    pub(super) fn land(&mut self, index: usize, landed: &Landed, leads: bool) {
        set_row(&mut self.units, index * self.dims, &landed.embedding.unit);
        self.items[index] = Some(Item {
            key: self.keys[index],
            status: if leads { landed.status } else { Status::Joined },
            tokens: landed.tokens,
            truncated: landed.truncated,
            norm: landed.embedding.norm,
        });
        let timings = &mut self.timings;
        timings.tokenize = timings.tokenize.max(landed.spent.tokenize);
        timings.queue = timings.queue.max(landed.spent.queue);
        timings.inference = timings.inference.max(landed.spent.inference);
        timings.write = timings.write.max(landed.spent.write);
    }

    pub(super) fn finish(self) -> Answer {
        let items = self.items.into_iter().map(|item| item.expect("every input was a hit or has landed")).collect();
        Answer { dims: self.dims, units: self.units, items, timings: self.timings }
    }
}

/// Puts a row in its place. Rows that come in order, as hits do, are written once and not zeroed before.
pub(super) fn set_row(units: &mut Vec<f16>, start: usize, row: &[f16]) {
    if start + row.len() <= units.len() {
        units[start..start + row.len()].copy_from_slice(row);
    } else {
        units.resize(start, f16::ZERO);
        units.extend_from_slice(row);
    }
}

//! An answer in the making: rows and items filled as they are found or land.

use std::cell::LazyCell;
use std::collections::BTreeMap;

use half::f16;

use super::Shared;
use super::flight::Landed;
use super::policy::is_in_last;
use super::request::{Answer, Freshness, Item, Timings};
use super::reuse::Reused;
use crate::domain::{Embedding, Key, Status, Tokens};
use crate::reuse::Refusal;

/// An answer in the making.
pub(super) struct Draft {
    pub(super) dims: usize,
    pub(super) keys: Vec<Key>,
    pub(super) found: Found,
    pub(super) reused: Vec<Reused>,
    pub(super) refusals: BTreeMap<Refusal, usize>,
    pub(super) timings: Timings,
}

/// What has been found so far.
#[derive(Default)]
pub(super) struct Found {
    /// Rows up to the last one filled; a row that is not filled yet is zeros.
    pub(super) units: Vec<f16>,
    pub(super) items: Vec<Option<Item>>,
    /// When the first of the hits expires, in Unix seconds.
    expires_first: Option<u32>,
    stale: usize,
    /// Hits to be computed anew: those that are stale, and those that may be in the last share of their lives.
    pub(super) due: Vec<usize>,
}

impl Found {
    fn nothing(keys: usize, dims: usize) -> Self {
        Self { units: Vec::with_capacity(keys * dims), items: vec![None; keys], ..Self::default() }
    }
}

impl Draft {
    pub(super) fn new(keys: Vec<Key>, dims: usize) -> Self {
        let found = Found::nothing(keys.len(), dims);
        let (reused, refusals) = (Vec::new(), BTreeMap::new());
        Self { dims, keys, found, reused, refusals, timings: Timings::default() }
    }

    /// Takes what the store has at `now`, in Unix seconds.
    pub(super) fn fill(&mut self, shared: &Shared, now: u32) {
        let Self { dims, keys, found, .. } = self;
        // Few entries are to be refreshed ahead: for the others nobody is asked.
        let share = LazyCell::new(|| shared.policies().refresh_ahead_max());
        let untouched = std::mem::take(found);
        let forget = |found: &mut Found| *found = Found::nothing(keys.len(), *dims);
        *found = shared.read(keys, now, untouched, forget, |found, index, entry, row| {
            set_row(&mut found.units, index * *dims, row);
            let (key, tokens, truncated, norm) = (keys[index], entry.tokens, entry.truncated, entry.norm);
            found.items[index] = Some(Item { key, status: Status::Hit, tokens, truncated, norm });
            found.stale += usize::from(entry.stale);
            let mut due = entry.stale;
            if let Some(expires) = entry.expires {
                found.expires_first = Some(found.expires_first.map_or(expires, |first| first.min(expires)));
                due |= entry.refresh_ahead && is_in_last(*share, entry.created, expires, now);
            }
            if due {
                found.due.push(index);
            }
        });
    }

    pub(super) fn missing(&self) -> Vec<usize> {
        self.found.items.iter().enumerate().filter(|(_, item)| item.is_none()).map(|(index, _)| index).collect()
    }

    /// Takes a landed call's vector. Who did not lead it has joined it.
    pub(super) fn land(&mut self, index: usize, landed: &Landed, leads: bool) {
        set_row(&mut self.found.units, index * self.dims, &landed.embedding.unit);
        self.found.items[index] = Some(Item {
            key: self.keys[index],
            status: if leads { landed.status } else { Status::Joined },
            tokens: landed.tokens,
            truncated: landed.truncated,
            norm: landed.embedding.norm,
        });
        let timings = &mut self.timings;
        timings.tokenize = timings.tokenize.max(landed.spent.tokenize);
        timings.remote = timings.remote.max(landed.spent.remote);
        timings.queue = timings.queue.max(landed.spent.queue);
        timings.inference = timings.inference.max(landed.spent.inference);
        timings.write = timings.write.max(landed.spent.write);
    }

    /// Takes another text's vector.
    pub(super) fn reuse(&mut self, tokens: &Tokens, embedding: &Embedding, reused: Reused) {
        set_row(&mut self.found.units, reused.index * self.dims, &embedding.unit);
        self.found.items[reused.index] = Some(Item {
            key: self.keys[reused.index],
            status: Status::Reused,
            tokens: tokens.ids.len() as u32,
            truncated: tokens.truncated(),
            norm: embedding.norm,
        });
        self.reused.push(reused);
    }

    /// The finished answer, with what is left at `now`.
    pub(super) fn finish(self, now: u32, bypassed: bool) -> Answer {
        let Found { units, items, expires_first, stale, .. } = self.found;
        let items = items.into_iter().map(|item| item.expect("every input was a hit or has landed")).collect();
        let ttl = expires_first.map(|expires| expires.saturating_sub(now));
        let not_reused = self.refusals.into_iter().max_by_key(|&(_, count)| count).map(|(refusal, _)| refusal);
        Answer {
            dims: self.dims,
            units,
            items,
            freshness: Freshness { ttl, stale, bypassed },
            reused: self.reused,
            not_reused,
            timings: self.timings,
        }
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

//! Namespaces that may have so many entries and no more: which of their own make room.
//!
//! ```text
//! put ─► last in its namespace's line ─► … ─► first ── read since it came or was passed by ─► last again
//!                                                  └─ not read ─────────────────────────────► gone
//! ```
//!
//! The first in line is the one that was put longest ago; one that was read is passed by once (the second chance of Corbató's CLOCK, as
//! eviction gives it). Pinned entries count, stand in no line and are never chosen: where they alone are too many, there are too many. A slot's
//! place is kept here and not read from its record, which may have changed on the medium since.
//!
//! In memory alone, for namespaces with a bound alone: about [`BYTES_AN_ENTRY`] bytes for each of their entries.

use std::collections::{BTreeMap, HashMap};

use super::layout::Slot;
use super::record::Record;

/// What a slot takes in a line and in the map from slots, with the room that such maps leave.
const BYTES_AN_ENTRY: u64 = 64;

/// The lines of all namespaces that have a bound.
#[derive(Default)]
pub(super) struct Quotas {
    lines: HashMap<u32, Line>,
    places: HashMap<Slot, Place>,
    /// The next place to be given out.
    next: u64,
}

/// One namespace's.
#[derive(Default)]
struct Line {
    entries_max: u64,
    waiting: BTreeMap<u64, Slot>,
    pinned: u64,
}

/// Where a slot stands.
#[derive(Clone, Copy)]
struct Place {
    namespace: u32,
    /// `None` for a pinned entry, which stands in no line.
    number: Option<u64>,
}

impl Quotas {
    /// Whether no namespace has a bound.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Whether a namespace's entries are kept track of.
    pub(super) fn has(&self, namespace: u32) -> bool {
        self.lines.contains_key(&namespace)
    }

    /// Bounds a namespace, or bounds it otherwise. One that had no bound has no entries until they are told.
    pub(super) fn bound(&mut self, namespace: u32, entries_max: u64) {
        self.lines.entry(namespace).or_default().entries_max = entries_max;
    }

    /// Bounds it no more.
    pub(super) fn free(&mut self, namespace: u32) {
        if self.lines.remove(&namespace).is_some() {
            self.places.retain(|_, place| place.namespace != namespace);
        }
    }

    /// An entry is in the slot, written after all that were told before.
    pub(super) fn inserted(&mut self, slot: Slot, record: &Record) {
        let namespace = record.namespace();
        let Some(line) = self.lines.get_mut(&namespace) else { return };
        let number = (!record.is_pinned()).then_some(self.next);
        match number {
            Some(number) => {
                self.next += 1;
                line.waiting.insert(number, slot);
            }
            None => line.pinned += 1,
        }
        self.places.insert(slot, Place { namespace, number });
    }

    /// The slot's entry is gone, for whatever reason.
    pub(super) fn removed(&mut self, slot: Slot) {
        let Some(Place { namespace, number }) = self.places.remove(&slot) else { return };
        let Some(line) = self.lines.get_mut(&namespace) else { return };
        match number {
            Some(number) => _ = line.waiting.remove(&number),
            None => line.pinned -= 1,
        }
    }

    /// The slots of those that have to go, first to last. `was_read` says whether one was read since this was last asked, and forgets it. They count until
    /// they are told to be [`removed`](Self::removed).
    pub(super) fn choose(&mut self, namespace: u32, mut was_read: impl FnMut(Slot) -> bool) -> Vec<Slot> {
        let Self { lines, places, next } = self;
        let Some(line) = lines.get_mut(&namespace) else { return Vec::new() };
        let count = line.waiting.len() as u64 + line.pinned;
        let over = count.saturating_sub(line.entries_max).min(line.waiting.len() as u64) as usize;
        let mut chosen = Vec::with_capacity(over);
        // Once round: readers may set marks again meanwhile, and then the first of the line go all the same.
        let mut chances = line.waiting.len();
        let mut passed = Vec::new();
        while chosen.len() < over {
            let Some((number, slot)) = line.waiting.pop_first() else { break };
            if chances > over - chosen.len() && was_read(slot) {
                passed.push(slot);
            } else {
                // It stays in the map until it is gone.
                chosen.push((number, slot));
            }
            chances -= 1;
        }
        for slot in passed {
            line.waiting.insert(*next, slot);
            places.insert(slot, Place { namespace, number: Some(*next) });
            *next += 1;
        }
        line.waiting.extend(chosen.iter().copied());
        chosen.into_iter().map(|(_, slot)| slot).collect()
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.places.len() as u64 * BYTES_AN_ENTRY
    }
}

//! The jobs of one lane, in line. Pure: whoever holds it locks it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::plan::cut;
use super::queue::Job;

/// A job, and when it was queued.
pub(super) type Queued = (Instant, Job);

/// Jobs that wait. They leave in order of arrival, but for a window at the head of the line that is sorted by length.
#[derive(Default)]
pub(super) struct Line {
    /// By the number of their tickets.
    arrived: BTreeMap<u64, Queued>,
    /// Taken off the line together, longest first; all of it leaves before the next window is made.
    window: VecDeque<Queued>,
    tokens: usize,
}

fn length((_, job): &Queued) -> usize {
    job.tokens.ids.len()
}

impl Line {
    pub(super) fn texts(&self) -> usize {
        self.arrived.len() + self.window.len()
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn is_empty(&self) -> bool {
        self.texts() == 0
    }

    pub(super) fn push(&mut self, queued: Queued) {
        self.tokens += length(&queued);
        self.arrived.insert(queued.1.ticket.number(), queued);
    }

    /// Takes the job of a ticket out of the line, wherever it stands.
    pub(super) fn remove(&mut self, number: u64) -> Option<Queued> {
        let queued = match self.arrived.remove(&number) {
            Some(queued) => queued,
            None => {
                let at = self.window.iter().position(|(_, job)| job.ticket.number() == number)?;
                self.window.remove(at)?
            }
        };
        self.tokens -= length(&queued);
        Some(queued)
    }

    /// Takes a batch of at most the given tokens and texts, or of one longer text. A new window holds `windows` times the
    /// tokens.
    pub(super) fn take(&mut self, tokens_max: usize, texts_max: usize, windows: usize) -> Vec<Queued> {
        if self.window.is_empty() {
            let count = cut(self.arrived.values().map(length), tokens_max.saturating_mul(windows), usize::MAX);
            self.window.extend((0..count).filter_map(|_| self.arrived.pop_first()).map(|(_, queued)| queued));
            self.window.make_contiguous().sort_by_key(|queued| Reverse(length(queued)));
        }
        let count = cut(self.window.iter().map(length), tokens_max, texts_max);
        let batch: Vec<Queued> = self.window.drain(..count).collect();
        self.tokens -= batch.iter().map(length).sum::<usize>();
        batch
    }
}

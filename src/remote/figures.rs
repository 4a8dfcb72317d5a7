//! What the tier has done, counted since it was started.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::link::Standing;
use super::notices::Epoch;
use super::record::Flaw;

/// Upper bounds of the classes that fetches' durations are counted in, in microseconds; the last class has none.
pub const LATENCY_BOUNDS_US: [u64; 10] = [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000];

/// A reading of all counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Keys that were asked for and found.
    pub hits: u64,
    /// Keys that were asked for and not served, whatever the reason.
    pub misses: u64,
    /// Records that were none, by [`Flaw::ALL`].
    #[serde(rename = "damaged", serialize_with = "by_flaw")]
    pub flawed: [u64; Flaw::ALL.len()],
    /// Records that had expired or been invalidated.
    pub outdated: u64,
    /// Fetches that were answered "nothing" at once, for the tier was away or had notices not read yet.
    pub skipped: u64,
    /// Questions of fetches that were asked a second time, for the answer was late.
    pub hedged: u64,
    /// Those among them whose second asking was answered first.
    pub hedge_won: u64,
    /// Operations that were not answered in time.
    pub timeouts: u64,
    /// Operations that failed otherwise.
    pub errors: u64,
    /// Records written.
    pub stores: u64,
    /// Records, removals and releases that had no room in the queue or could not be done.
    pub dropped: u64,
    /// Records that the servers had no room for.
    pub refused: u64,
    /// Leases taken.
    pub leases_ours: u64,
    /// Leases that were renewed, for their texts were still being computed.
    pub leases_renewed: u64,
    /// Leases that others held.
    pub leases_theirs: u64,
    /// Leases of others that ended without a record.
    pub leases_expired: u64,
    /// Notices published.
    pub notices_sent: u64,
    /// Those that no replica was known to have when their publishers were answered, though there is one.
    pub notices_unconfirmed: u64,
    /// Notices of others taken in.
    pub notices_received: u64,
    /// Notices that the servers had lost and were given again.
    pub notices_restored: u64,
    /// Entries of streams that were handled.
    pub stream_handled: u64,
    /// Those that could not be, and were kept aside; and those trimmed before.
    pub stream_refused: u64,
    /// Those that could not be at once, and come again; each time counts.
    pub stream_retried: u64,
    /// Fetches by their duration, in the classes of [`LATENCY_BOUNDS_US`] and one for the rest.
    #[serde(skip)]
    pub latency: [u64; LATENCY_BOUNDS_US.len() + 1],
    /// The sum of their durations, in microseconds.
    #[serde(skip)]
    pub latency_us: u64,
    /// Whether records are served.
    pub ready: bool,
    /// The newest notice that has been taken in.
    pub epoch: Epoch,
    /// How many notices are known.
    #[serde(skip)]
    pub notices: usize,
    /// Notices of this node that wait to be sent.
    pub notices_pending: usize,
    /// Writes that wait.
    pub queue: usize,
    /// The bytes they take.
    pub queue_bytes: usize,
    /// The servers, as far as they are known.
    #[serde(skip)]
    pub servers: Vec<Standing>,
    /// The newest failure, for people.
    pub error: Option<String>,
}

fn by_flaw<S: Serializer>(flawed: &[u64; Flaw::ALL.len()], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(Flaw::ALL.iter().map(|flaw| flaw.as_str()).zip(flawed))
}

/// The counts themselves.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) flawed: [AtomicU64; Flaw::ALL.len()],
    pub(super) outdated: AtomicU64,
    pub(super) skipped: AtomicU64,
    pub(super) timeouts: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) stores: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) leases_ours: AtomicU64,
    pub(super) leases_renewed: AtomicU64,
    pub(super) leases_theirs: AtomicU64,
    pub(super) leases_expired: AtomicU64,
    pub(super) notices_sent: AtomicU64,
    pub(super) notices_unconfirmed: AtomicU64,
    pub(super) notices_received: AtomicU64,
    pub(super) notices_restored: AtomicU64,
    pub(super) stream_handled: AtomicU64,
    pub(super) stream_refused: AtomicU64,
    pub(super) stream_retried: AtomicU64,
    latency: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    latency_us: AtomicU64,
    error: Mutex<Option<String>>,
}

pub(super) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn flaw(&self, flaw: Flaw) {
        let index = Flaw::ALL.iter().position(|&known| known == flaw).unwrap_or(0);
        add(&self.flawed[index], 1);
    }

    pub(super) fn took(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let class = LATENCY_BOUNDS_US.partition_point(|&bound| bound < us);
        add(&self.latency[class], 1);
        self.latency_us.fetch_add(us, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, why: String) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    pub(super) fn read(&self) -> Figures {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            hits: get(&self.hits),
            misses: get(&self.misses),
            flawed: self.flawed.each_ref().map(get),
            outdated: get(&self.outdated),
            skipped: get(&self.skipped),
            timeouts: get(&self.timeouts),
            errors: get(&self.errors),
            stores: get(&self.stores),
            dropped: get(&self.dropped),
            refused: get(&self.refused),
            leases_ours: get(&self.leases_ours),
            leases_renewed: get(&self.leases_renewed),
            leases_theirs: get(&self.leases_theirs),
            leases_expired: get(&self.leases_expired),
            notices_sent: get(&self.notices_sent),
            notices_unconfirmed: get(&self.notices_unconfirmed),
            notices_received: get(&self.notices_received),
            notices_restored: get(&self.notices_restored),
            stream_handled: get(&self.stream_handled),
            stream_refused: get(&self.stream_refused),
            stream_retried: get(&self.stream_retried),
            latency: self.latency.each_ref().map(get),
            latency_us: get(&self.latency_us),
            error: self.error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ..Figures::default()
        }
    }
}

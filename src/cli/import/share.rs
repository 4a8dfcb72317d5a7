//! Hands what is imported to the tier shared with other machines, where there is one and the policies allow it.
//!
//! The folder's place in the log of invalidations is left alone: whoever opens it next has to hear what it has missed. An entry is handed over as one
//! computed now, as it is stored here: what was invalidated before the import is there again, on all machines.

use std::thread;
use std::time::{Duration, Instant};

use super::super::say;
use crate::cache::SharedTier;
use crate::cache::policy::Policies;
use crate::config::Settings;
use crate::remote::{self, Tier};
use crate::store::NewEntry;

/// How long the servers are waited for at the beginning.
const READY: Duration = Duration::from_secs(3);
/// How long they may take to write what waits.
const FLUSH: Duration = Duration::from_secs(30);

/// See the module's head.
pub(super) struct Share<'a> {
    tier: Option<SharedTier>,
    policies: &'a Policies,
    queue_bytes_max: usize,
}

impl<'a> Share<'a> {
    /// Connects. Servers that do not answer are said, and left out.
    pub(super) fn begin(settings: &'a Settings) -> anyhow::Result<Self> {
        let policies = &settings.cache.policies;
        let Some((url, config)) = &settings.remote else {
            return Ok(Self { tier: None, policies, queue_bytes_max: 0 });
        };
        let tier = Tier::start(url, remote::Config { state_file: None, ..config.clone() })?;
        let begun = Instant::now();
        while !tier.figures().ready && begun.elapsed() < READY {
            thread::sleep(Duration::from_millis(10));
        }
        let is_ready = tier.figures().ready;
        if !is_ready {
            let why = tier.figures().servers.into_iter().find_map(|server| server.error).unwrap_or_default();
            say(&format!("the shared tier cannot be reached, and is left out: {why}"));
        }
        let tier = is_ready.then(|| SharedTier::new(tier));
        Ok(Self { tier, policies, queue_bytes_max: config.queue_bytes_max })
    }

    /// What a namespace may have, by the policies.
    pub(super) fn quota(&self, namespace: &str) -> Option<u64> {
        self.policies.quota(namespace)
    }

    /// Hands over what was stored here as of `created`, both in Unix seconds.
    pub(super) fn offer(&self, entries: &[NewEntry<'_>], created: u32, now: u32) {
        let Some(shared) = &self.tier else { return };
        for entry in entries {
            if self.policies.terms(entry.namespace.as_str(), entry.tags).shared {
                shared.offer(entry, created, now);
            }
        }
        // Nothing is read faster than it can be written there.
        if shared.tier().figures().queue_bytes > self.queue_bytes_max / 2 {
            let _ = shared.tier().flush(FLUSH);
        }
    }

    /// Waits until it is written there. Answers with how many are.
    pub(super) fn finish(self) -> u64 {
        let Some(shared) = self.tier else { return 0 };
        let is_done = shared.tier().flush(FLUSH);
        let figures = shared.tier().figures();
        let left = figures.dropped + figures.refused + figures.queue as u64;
        if !is_done || left > 0 {
            say(&format!("{left} entries did not get into the shared tier: {}", figures.error.unwrap_or_default()));
        }
        figures.stores
    }
}

//! The leases that this node holds: renewed for as long as their texts are being computed, so that a lease may be short and a model slow.
//!
//! ```text
//! taken ─► held ─┬─ every third of its time ─► renewed ─► held
//!                ├─ given back, or its record is on its way ─► not renewed any more
//!                ├─ somebody else has it ─► not renewed any more
//!                └─ held for TERMS_MAX times its length ─► ends by itself
//! ```
//!
//! A node that dies renews nothing: those who wait for it wait for the rest of one lease.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::core::Core;
use super::figures::add;
use super::link::Work;
use crate::domain::Key;

/// How often a lease is renewed while it lasts: one renewal may be lost.
const RENEWALS: u32 = 3;
/// For how many of its lengths a lease is held at most: what takes longer is computed elsewhere as well, before those who wait there are out of time.
const TERMS_MAX: u32 = 10;
/// The most renewed in one go.
const AT_ONCE: usize = 1024;

/// The right to compute one text while others wait, for a limited time. It is renewed until it is dropped, which gives it back.
pub struct Lease {
    key: Key,
    token: u64,
    core: Weak<Core>,
}

/// Which leases are to be renewed, and since when they are held.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<HashMap<(Key, u64), Instant>>);

impl Lease {
    pub(super) fn new(key: Key, token: u64, core: &Arc<Core>) -> Self {
        core.held.all().insert((key, token), Instant::now());
        Self { key, token, core: Arc::downgrade(core) }
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// Hands it on to whoever writes the record: it is renewed no more, and not given back here.
    pub(super) fn into_token(mut self) -> u64 {
        if let Some(core) = std::mem::take(&mut self.core).upgrade() {
            core.held.forget(self.key, self.token);
        }
        self.token
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            core.held.forget(self.key, self.token);
            core.enqueue(Work::Release { key: self.key, token: self.token });
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({})", self.key)
    }
}

impl Held {
    fn all(&self) -> MutexGuard<'_, HashMap<(Key, u64), Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, key: Key, token: u64) {
        self.all().remove(&(key, token));
    }

    /// Those to be renewed: all that are not held for too long already.
    fn due(&self, held_max: Duration) -> Vec<(Key, u64)> {
        let mut all = self.all();
        all.retain(|_, since| since.elapsed() < held_max);
        all.keys().copied().collect()
    }
}

/// How long a lease of that length may be waited for.
pub(super) fn longest(lease: Duration) -> Duration {
    // The last renewal, its term, and a second to see the end.
    lease * (TERMS_MAX + 1) + Duration::from_secs(1)
}

/// Renews what is held, for ever.
pub(super) async fn renew(core: Arc<Core>) {
    let Some(lease) = core.config.lease.filter(|lease| !lease.is_zero()) else { return };
    let ttl_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX).max(1);
    let pause = (lease / RENEWALS).max(Duration::from_millis(1));
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let due = core.held.due(lease * TERMS_MAX);
        for some in due.chunks(AT_ONCE) {
            let renewed = core.link.renew(some, ttl_ms, Instant::now() + pause.min(core.patience())).await;
            let mut any_fault = None;
            for (&(key, token), result) in some.iter().zip(renewed) {
                match result {
                    Ok(true) => add(&core.counters.leases_renewed, 1),
                    // It ended before: others may have it.
                    Ok(false) => core.held.forget(key, token),
                    Err(fault) => any_fault = Some(fault),
                }
            }
            if let Some(fault) = any_fault {
                core.count(&fault);
            }
        }
    }
}

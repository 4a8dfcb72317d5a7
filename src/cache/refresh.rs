//! Entries computed anew in the background, when a hit finds them stale or near the end of their lives.
//!
//! The hit is answered at once from what is there. The computation takes the same path as a miss (one call a key, the
//! queue, the writer), only that nobody waits for it, that it is computed whatever is stored, and that it replaces: the
//! entry keeps its tags, payload, pin and namespace and begins a new life. It waits in the warm-up lane, and is not begun
//! when the queue is more than half full, nor while draining: those who wait come first. What is removed meanwhile stays removed.
//!
//! A key is *claimed* when its refresh begins, so that the thousand hits that follow start nothing; a claim ends with
//! the refresh, or lasts for half a minute when that fails, so that a failing model is not asked by every hit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::flight::{Particulars, Place, Waiter};
use super::lead::{self, Errand, Input, Leader, Sharing};
use super::policy::{is_in_last, last_begins};
use super::{Inner, Shared};
use crate::domain::{Key, Lane, Namespace};
use crate::store::Entry;

/// How long a claim lasts at most, in seconds: when a refresh that failed is tried again.
const CLAIM_SECONDS: u32 = 30;

/// The most keys that are claimed at a time; past it hits start no refresh.
const CLAIMS_MAX: usize = 16_384;

/// Which keys are being refreshed, and which are not to be before a time.
#[derive(Default)]
pub(super) struct Claims {
    /// Until when, in Unix seconds.
    until: Mutex<HashMap<Key, u32>>,
}

impl Claims {
    /// A panic cannot leave the map half changed.
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, u32>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims a key. `false`: somebody has it.
    fn claim(&self, key: Key, now: u32) -> bool {
        let mut claims = self.lock();
        if claims.get(&key).is_some_and(|&until| now < until) {
            return false;
        }
        if claims.len() >= CLAIMS_MAX {
            claims.retain(|_, until| now < *until);
            if claims.len() >= CLAIMS_MAX {
                return false;
            }
        }
        claims.insert(key, now.saturating_add(CLAIM_SECONDS));
        true
    }

    /// Lets nobody claim a key before a time.
    fn put_off(&self, key: Key, until: u32) {
        self.lock().insert(key, until);
    }

    /// Lets keys be claimed again, whatever they were put off for.
    pub(super) fn release(&self, keys: &[Key]) {
        let mut claims = self.lock();
        for key in keys {
            claims.remove(key);
        }
    }
}

/// A hit to be computed anew.
pub(super) struct Due {
    pub(super) key: Key,
    pub(super) input: Input,
}

/// What the request that hit says of the entries it refreshes.
pub(super) struct Wishes {
    pub(super) namespace: Namespace,
    pub(super) ttl: Option<Duration>,
}

/// Of the keys at `due` those that nobody is at, now claimed.
pub(super) fn claim(shared: &Shared, keys: &[Key], due: &[usize], now: u32) -> Vec<usize> {
    due.iter().copied().filter(|&index| shared.claims.claim(keys[index], now)).collect()
}

/// Begins the computations. Blocking, and never waits for them.
pub(super) fn begin(
    inner: &Arc<Inner>,
    runtime: &tokio::runtime::Handle,
    due: Vec<Due>,
    wishes: &Wishes,
    errand: &Errand,
) {
    let shared = &inner.shared;
    let now = shared.now();
    let keys: Vec<Key> = due.iter().map(|due| due.key).collect();
    let entries = shared.store.contains_many(&keys, now);
    let mut leaders = Vec::new();
    let mut waiters = Vec::new();
    for (Due { key, input }, entry) in due.into_iter().zip(entries) {
        let Some(particulars) = entry.and_then(|entry| particulars(shared, &key, &entry, wishes, now)) else {
            continue;
        };
        // Somebody may be computing it for a request of their own: that will do.
        if let Place::Leader(waiter) = shared.flights.join(key, Lane::WarmUp, || particulars) {
            leaders.push(Leader { call: Arc::clone(waiter.call()), input });
            waiters.push((key, waiter));
        }
    }
    if leaders.is_empty() {
        return;
    }
    // Holding the waiters is what keeps the calls wanted.
    runtime.spawn(observe(Arc::clone(shared), waiters));
    let errand = Errand { sharing: Sharing::Refresh, ..errand.clone() };
    lead::lead(inner, leaders, &errand);
}

/// What the new entry is stored with; `None` if the old one is gone, or not due by its own policy.
fn particulars(shared: &Shared, key: &Key, entry: &Entry, wishes: &Wishes, now: u32) -> Option<Particulars> {
    let tags = shared.store.tags(key);
    let policies = shared.policies();
    let terms = policies.terms(wishes.namespace.as_str(), &tags);
    if !entry.stale {
        let expires = entry.expires?;
        if !is_in_last(terms.refresh_ahead, entry.created, expires, now) {
            let begins = last_begins(terms.refresh_ahead, entry.created, expires);
            shared.claims.put_off(*key, begins.max(now.saturating_add(1)));
            return None;
        }
    }
    // With neither a wish nor a policy the new life is as long as the old one.
    let life = entry.expires.map(|expires| Duration::from_secs(u64::from(expires.saturating_sub(entry.created))));
    let asked = wishes.ttl.or(if terms.ttl.is_some() { None } else { life });
    Some(Particulars {
        namespace: wishes.namespace.clone(),
        expires: terms.expires(key, asked, now),
        payload: shared.store.payload(key),
        tags,
        pinned: entry.pinned || terms.pinned,
        refresh_ahead: terms.refresh_ahead > 0.0,
        refreshes: true,
        is_shared: terms.shared,
        durability: terms.durability,
        quota: policies.quota(wishes.namespace.as_str()),
    })
}

/// Sees the refreshes through and counts them.
async fn observe(shared: Arc<Shared>, waiters: Vec<(Key, Waiter)>) {
    for (key, waiter) in waiters {
        match waiter.outcome().await {
            Ok(_) => {
                // While the store takes nothing the old entry stays due: its claim keeps every hit from computing again.
                if shared.metrics.write_failures_in_a_row() == 0 {
                    shared.claims.release(&[key]);
                }
                shared.metrics.observe_refresh(true);
            }
            Err(failure) => {
                shared.metrics.observe_refresh(false);
                tracing::warn!(%key, ?failure, "an entry could not be computed anew; the old one is served on");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u16) -> Key {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_le_bytes());
        Key::from_bytes(bytes)
    }

    #[test]
    fn a_key_is_claimed_once_until_it_is_released_or_its_time_is_over() {
        let claims = Claims::default();
        assert!(claims.claim(key(1), 100) && !claims.claim(key(1), 129));
        assert!(claims.claim(key(1), 130));
        claims.release(&[key(1)]);
        assert!(claims.claim(key(1), 130));
        claims.put_off(key(2), 500);
        assert!(!claims.claim(key(2), 499) && claims.claim(key(2), 500));
    }

    #[test]
    fn claims_are_bounded_and_old_ones_make_room() {
        let claims = Claims::default();
        assert!((0..CLAIMS_MAX as u16).all(|number| claims.claim(key(number), 100)));
        assert!(!claims.claim(key(u16::MAX), 120));
        assert!(claims.claim(key(u16::MAX), 130));
        assert_eq!(claims.lock().len(), 1);
    }
}

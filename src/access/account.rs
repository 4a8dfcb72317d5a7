//! What a tenant may have, and what it has had.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::allowance::Allowance;
use crate::domain::Namespace;

/// The limits of tenants that have none of their own.
pub const DEFAULT_TENANT: &str = "default";

/// What a tenant may have; without a bound as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Requests a second, of whatever kind.
    pub requests_per_second: Option<u64>,
    /// Tokens a second that are not answered from the cache. They are counted when a request is answered, so one request may exceed
    /// them; the next ones wait until it is paid for.
    pub tokens_per_second: Option<u64>,
    /// Entries in its namespaces, of all models.
    pub entries_max: Option<u64>,
    /// Bytes of their records and rows.
    pub bytes_max: Option<u64>,
    /// Namespaces of its own that have ever had entries, of any one model.
    pub namespaces_max: Option<u64>,
}

/// Limits by tenants' names, and those of [`DEFAULT_TENANT`] for all others.
pub type TenantLimits = BTreeMap<String, Limits>;

/// A tenant's account.
#[derive(Debug)]
pub struct Account {
    tenant: Arc<str>,
    limits: Limits,
    requests: Option<Allowance>,
    tokens: Option<Allowance>,
    /// Entries that requests under way may still add.
    adding: AtomicU64,
    /// Namespaces that requests are about to begin.
    beginning: Mutex<HashMap<Namespace, u64>>,
    figures: Arc<Counters>,
}

/// What a tenant has had since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Requests that were let in.
    pub requests: u64,
    /// Requests that were over a limit.
    pub refused: u64,
    /// Inputs answered.
    pub items: u64,
    /// Of them, from the cache.
    pub hits: u64,
    /// Tokens of all inputs.
    pub tokens: u64,
    /// Of them, not answered from the cache.
    pub tokens_computed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    refused: AtomicU64,
    items: AtomicU64,
    hits: AtomicU64,
    tokens: AtomicU64,
    tokens_computed: AtomicU64,
}

/// A limit that a request is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the limit of {limit} {what} of the tenant is reached")]
pub struct Exceeded {
    /// Of what.
    pub what: &'static str,
    /// How much of it there may be.
    pub limit: u64,
    /// When there will be more; `None` if that is not a matter of time.
    pub retry_after: Option<Duration>,
}

/// What is left of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Of what.
    pub what: &'static str,
    /// How much a second there may be.
    pub per_second: u64,
    /// How much there may be now.
    pub now: u64,
    /// How long until all of it is there again.
    pub full_in: Duration,
}

/// Room for entries that a request may add; given back when it is dropped, for by then they are counted where they are.
#[derive(Debug)]
pub struct Adding {
    account: Arc<Account>,
    entries: u64,
    /// With those that others were about to add.
    total: u64,
}

/// Room for a namespace that a request may be the first in; given back when it is dropped.
#[derive(Debug)]
pub struct Beginning {
    account: Arc<Account>,
    namespace: Namespace,
    /// Namespaces that are about to be begun, this one among them.
    total: u64,
}

impl Account {
    fn new(tenant: &str, limits: Limits, figures: Arc<Counters>) -> Self {
        Self {
            tenant: tenant.into(),
            limits,
            requests: limits.requests_per_second.map(Allowance::new),
            tokens: limits.tokens_per_second.map(Allowance::new),
            adding: AtomicU64::new(0),
            beginning: Mutex::default(),
            figures,
        }
    }

    /// Whose it is; empty for those who are no tenant's.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// What it may have.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What it has had.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let Counters { requests, refused, items, hits, tokens, tokens_computed } = &*self.figures;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            requests: count(requests),
            refused: count(refused),
            items: count(items),
            hits: count(hits),
            tokens: count(tokens),
            tokens_computed: count(tokens_computed),
        }
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// When there were too many of late.
    pub fn begin(&self, now: Duration) -> Result<(), Exceeded> {
        let taken = self.requests.as_ref().map_or(Ok(()), |requests| {
            requests.take(now).map_err(|wait| self.over("requests a second", requests.per_second(), Some(wait)))
        });
        if taken.is_ok() {
            self.figures.requests.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// Whether anything may be computed.
    ///
    /// # Errors
    /// When too much was of late.
    pub fn check_tokens(&self, now: Duration) -> Result<(), Exceeded> {
        let Some(tokens) = &self.tokens else { return Ok(()) };
        tokens.check(now).map_err(|wait| self.over("tokens a second", tokens.per_second(), Some(wait)))
    }

    /// Counts tokens that were not answered from the cache.
    pub fn charge(&self, tokens: u64, now: Duration) {
        self.figures.tokens_computed.fetch_add(tokens, Ordering::Relaxed);
        if let Some(allowance) = &self.tokens {
            allowance.charge(tokens, now);
        }
    }

    /// Counts what was answered.
    pub fn answered(&self, items: u64, hits: u64, tokens: u64) {
        self.figures.items.fetch_add(items, Ordering::Relaxed);
        self.figures.hits.fetch_add(hits, Ordering::Relaxed);
        self.figures.tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Whether there is a bound on what it keeps.
    #[must_use]
    pub fn bounds_entries(&self) -> bool {
        self.limits.entries_max.is_some() || self.limits.bytes_max.is_some()
    }

    /// A namespace that is to come. To be said before it is counted how many there are.
    #[must_use]
    pub fn beginning(self: &Arc<Self>, namespace: &Namespace) -> Beginning {
        let mut begun = self.lock_beginning();
        *begun.entry(namespace.clone()).or_default() += 1;
        let total = begun.len() as u64;
        drop(begun);
        Beginning { account: Arc::clone(self), namespace: namespace.clone(), total }
    }

    /// By how many requests each is about to be begun.
    fn lock_beginning(&self) -> MutexGuard<'_, HashMap<Namespace, u64>> {
        self.beginning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries that are to come. To be said before it is counted what there is: else those that arrive in between would be counted by nobody.
    #[must_use]
    pub fn adding(self: &Arc<Self>, more: u64) -> Adding {
        let total = self.adding.fetch_add(more, Ordering::Relaxed) + more;
        Adding { account: Arc::clone(self), entries: more, total }
    }

    /// What is left of its rates.
    pub fn left(&self, now: Duration) -> impl Iterator<Item = Left> {
        let rates = [("requests", &self.requests), ("tokens", &self.tokens)];
        rates.into_iter().filter_map(move |(what, allowance)| {
            let allowance = allowance.as_ref()?;
            let (per_second, full_in) = (allowance.per_second(), allowance.full_in(now));
            Some(Left { what, per_second, now: allowance.left(now), full_in })
        })
    }

    fn over(&self, what: &'static str, limit: u64, retry_after: Option<Duration>) -> Exceeded {
        Exceeded { what, limit, retry_after }
    }

    /// Counts a request that was over a limit.
    pub fn refused(&self) {
        self.figures.refused.fetch_add(1, Ordering::Relaxed);
    }
}

impl Beginning {
    /// Whether there is room for it, beside so many namespaces that are there.
    ///
    /// # Errors
    /// When there is none.
    pub fn check(&self, namespaces: u64) -> Result<(), Exceeded> {
        match self.account.limits.namespaces_max {
            Some(limit) if namespaces + self.total > limit => Err(self.account.over("namespaces", limit, None)),
            _ => Ok(()),
        }
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        let mut begun = self.account.lock_beginning();
        if let Some(requests) = begun.get_mut(&self.namespace) {
            *requests -= 1;
            if *requests == 0 {
                begun.remove(&self.namespace);
            }
        }
    }
}

impl Adding {
    /// Whether there is room for them, of so many bytes each, beside `entries` and `bytes` that are there.
    ///
    /// # Errors
    /// When there is none.
    pub fn check(&self, entry_bytes: u64, entries: u64, bytes: u64) -> Result<(), Exceeded> {
        let Self { account, total, .. } = self;
        if let Some(limit) = account.limits.entries_max.filter(|limit| entries + total > *limit) {
            return Err(account.over("entries", limit, None));
        }
        if let Some(limit) = account.limits.bytes_max.filter(|limit| bytes + total * entry_bytes > *limit) {
            return Err(account.over("bytes", limit, None));
        }
        Ok(())
    }
}

impl Drop for Adding {
    fn drop(&mut self) {
        self.account.adding.fetch_sub(self.entries, Ordering::Relaxed);
    }
}

/// An account for each tenant: the one there is where its limits are the same, else a new one that goes on counting.
pub(super) fn accounts<'a>(
    tenants: impl Iterator<Item = &'a str>,
    limits: &TenantLimits,
    before: &HashMap<Arc<str>, Arc<Account>>,
) -> HashMap<Arc<str>, Arc<Account>> {
    let account = |tenant: &str| {
        // Who is no tenant has no limits: it is nobody in particular.
        let of_default = || limits.get(DEFAULT_TENANT).filter(|_| !tenant.is_empty());
        let limits = limits.get(tenant).or_else(of_default).copied().unwrap_or_default();
        match before.get(tenant) {
            Some(account) if account.limits == limits => Arc::clone(account),
            Some(account) => Arc::new(Account::new(tenant, limits, Arc::clone(&account.figures))),
            None => Arc::new(Account::new(tenant, limits, Arc::default())),
        }
    };
    tenants.map(|tenant| (Arc::from(tenant), account(tenant))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(entries_max: u64) -> Limits {
        Limits { entries_max: Some(entries_max), ..Limits::default() }
    }

    #[test]
    fn room_is_kept_for_what_others_are_about_to_add() {
        let account = Arc::new(Account::new("a", Limits { bytes_max: Some(1000), ..limits(10) }, Arc::default()));
        let first = account.adding(6);
        first.check(100, 0, 0).unwrap();
        assert_eq!(account.adding(5).check(100, 0, 0).unwrap_err().what, "entries");
        let second = account.adding(4);
        second.check(100, 0, 0).unwrap();
        // Those that arrive while it is counted are counted by one or the other.
        let counted_before = account.adding(1);
        drop(first);
        assert_eq!(counted_before.check(100, 0, 0).unwrap_err().what, "entries");
        drop(counted_before);
        assert_eq!(account.adding(4).check(100, 3, 300).unwrap_err().limit, 10);
        assert_eq!(account.adding(3).check(200, 3, 600).unwrap_err().what, "bytes");
        drop(second);
        assert!(account.adding(10).check(100, 0, 0).is_ok());
    }

    #[test]
    fn namespaces_that_are_begun_at_once_are_counted_together_and_each_once() {
        let account =
            Arc::new(Account::new("a", Limits { namespaces_max: Some(2), ..Limits::default() }, Arc::default()));
        let beginning = |name: &str| account.beginning(&Namespace::new(name).unwrap());
        let (first, again, second) = (beginning("x"), beginning("x"), beginning("y"));
        assert!(first.check(0).is_ok() && again.check(0).is_ok() && second.check(0).is_ok());
        assert_eq!(beginning("z").check(0).unwrap_err().what, "namespaces");
        assert!(beginning("y").check(0).is_ok() && beginning("y").check(1).is_err());
        drop((first, again));
        assert!(beginning("z").check(0).is_ok());
        drop(second);
        assert!(account.lock_beginning().is_empty());
    }

    #[test]
    fn an_account_stays_while_its_limits_do_and_counts_on_when_they_change() {
        let all = |limits: &[(&str, u64)]| -> TenantLimits {
            limits.iter().map(|(name, max)| ((*name).to_owned(), super::tests::limits(*max))).collect()
        };
        let first = accounts(["a", "b", ""].into_iter(), &all(&[("a", 1), ("default", 2)]), &HashMap::new());
        assert_eq!([first["a"].limits, first["b"].limits, first[""].limits], [limits(1), limits(2), Limits::default()]);
        first["a"].begin(Duration::ZERO).unwrap();
        let second = accounts(["a", "b"].into_iter(), &all(&[("a", 7), ("default", 2)]), &first);
        assert!(Arc::ptr_eq(&first["b"], &second["b"]) && second["a"].limits == limits(7));
        assert_eq!(second["a"].figures().requests, 1);
    }
}

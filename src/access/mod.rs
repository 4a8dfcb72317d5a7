//! Who may do what: API keys, what each is good for, whose part of the cache it opens, and how much its owner may have.
//!
//! ```text
//! a request's token ─► its hash ─► the key of that hash ─► not expired ─► Caller: an id for the log, scopes, a reach, an account
//! ```
//!
//! Promises: a token is never kept, shown or logged, only its hash; keys are compared in constant time; all keys are replaced at once,
//! and a request ends under those it began with; without keys everybody may do everything. Pure but for the randomness of a new
//! token: no files, no clock, no HTTP.

mod account;
mod allowance;
mod keys;
mod scope;
mod token;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use crate::domain::Reach;

pub use account::{Account, Adding, Beginning, DEFAULT_TENANT, Exceeded, Figures, Left, Limits, TenantLimits};
pub use keys::{Keys, KeysError, NewKey};
pub use scope::{Scope, Scopes, UnknownScope};
pub use token::{Token, TokenHash};

/// The rules that count now. Cloning is cheap, and all clones are one.
#[derive(Clone, Default)]
pub struct Access {
    /// Replaced as a whole.
    table: Arc<RwLock<Arc<Table>>>,
}

/// Who there is, and how much each may have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// The keys; without any everybody may do everything.
    pub keys: Keys,
    /// What tenants may have.
    pub limits: TenantLimits,
}

#[derive(Default)]
struct Table {
    rules: Rules,
    /// By tenants' names; empty for those who are no tenant's.
    accounts: HashMap<Arc<str>, Arc<Account>>,
}

/// Who sends a request.
#[derive(Clone, Debug)]
pub struct Caller {
    id: Option<Arc<str>>,
    scopes: Scopes,
    reach: Reach,
    account: Option<Arc<Account>>,
}

/// Why a request is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It has no key.
    #[error("a key is needed: send the header Authorization: Bearer KEY, or x-api-key: KEY")]
    Missing,
    /// Nobody has that key.
    #[error("the key is not known here")]
    Unknown,
    /// Its time is over.
    #[error("the key has expired")]
    Expired,
}

impl Access {
    /// These rules count.
    #[must_use]
    pub fn new(rules: impl Into<Rules>) -> Self {
        let access = Self::default();
        access.replace(rules);
        access
    }

    /// Has other rules count from now on. Says whether the keys are others. What a tenant has had of its limits stays had.
    pub fn replace(&self, rules: impl Into<Rules>) -> bool {
        let rules = rules.into();
        let mut current = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let changed = current.rules.keys != rules.keys;
        let accounts = account::accounts(rules.keys.tenants(), &rules.limits, &current.accounts);
        *current = Arc::new(Table { rules, accounts });
        changed
    }

    /// All accounts, in the order of their tenants' names.
    #[must_use]
    pub fn accounts(&self) -> Vec<Arc<Account>> {
        let mut accounts: Vec<_> = self.current().accounts.values().cloned().collect();
        accounts.sort_unstable_by(|a, b| a.tenant().cmp(b.tenant()));
        accounts
    }

    /// Whether everybody may do everything, because there are no keys.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.current().rules.keys.is_empty()
    }

    /// Who sends a request with this token, at `now` in Unix seconds.
    ///
    /// # Errors
    /// When there are keys, and the token is none that counts.
    pub fn admit(&self, token: Option<&[u8]>, now: u64) -> Result<Caller, Refusal> {
        let table = self.current();
        if table.rules.keys.is_empty() {
            return Ok(Caller::anyone());
        }
        let mut caller = table.rules.keys.admit(token.ok_or(Refusal::Missing)?, now)?;
        caller.account = caller.reach.tenant().and_then(|tenant| table.accounts.get(tenant)).cloned();
        Ok(caller)
    }

    fn current(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl From<Keys> for Rules {
    /// Without limits.
    fn from(keys: Keys) -> Self {
        Self { keys, limits: TenantLimits::default() }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Access")
    }
}

impl Caller {
    /// Who comes without a key where none is needed.
    #[must_use]
    pub fn anyone() -> Self {
        Self { id: None, scopes: Scopes::all(), reach: Reach::everything(), account: None }
    }

    /// Who comes without a key, for what needs none though there are keys.
    #[must_use]
    pub fn nobody() -> Self {
        Self { id: None, scopes: Scopes::default(), reach: Reach::of(None, Arc::from([])), account: None }
    }

    /// The key's name, for the log; none where no key is needed.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Whether the key is good for this.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.has(scope)
    }

    /// Which namespaces it opens.
    #[must_use]
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// What its tenant may have and has had; the operator has none.
    #[must_use]
    pub fn account(&self) -> Option<&Arc<Account>> {
        self.account.as_ref()
    }

    /// Whether it is the operator's: with a key, and not bound to one tenant's namespaces. Only the operator names those of tenants.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.id.is_some() && self.reach.tenant().is_none()
    }
}

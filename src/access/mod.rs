//! Who may do what: API keys, what each is good for, and whose part of the cache it opens.
//!
//! ```text
//! a request's token ─► its hash ─► the key of that hash ─► not expired ─► Caller: an id for the log, scopes, a reach
//! ```
//!
//! Promises: a token is never kept, shown or logged, only its hash; keys are compared in constant time; all keys are replaced at once,
//! and a request ends under those it began with; without keys everybody may do everything. Pure but for the randomness of a new
//! token: no files, no clock, no HTTP.

mod keys;
mod scope;
mod token;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use crate::domain::Reach;

pub use keys::{Keys, KeysError, NewKey};
pub use scope::{Scope, Scopes, UnknownScope};
pub use token::{Token, TokenHash};

/// The keys that count now. Cloning is cheap, and all clones are one.
#[derive(Clone, Default)]
pub struct Access {
    /// Replaced as a whole.
    keys: Arc<RwLock<Arc<Keys>>>,
}

/// Who sends a request.
#[derive(Clone, Debug)]
pub struct Caller {
    id: Option<Arc<str>>,
    scopes: Scopes,
    reach: Reach,
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
    /// These keys count; with none at all everybody may do everything.
    #[must_use]
    pub fn new(keys: Keys) -> Self {
        Self { keys: Arc::new(RwLock::new(Arc::new(keys))) }
    }

    /// Has other keys count from now on. Says whether they are others.
    pub fn replace(&self, keys: Keys) -> bool {
        let mut current = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let changed = **current != keys;
        *current = Arc::new(keys);
        changed
    }

    /// Whether everybody may do everything, because there are no keys.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.current().is_empty()
    }

    /// Who sends a request with this token, at `now` in Unix seconds.
    ///
    /// # Errors
    /// When there are keys, and the token is none that counts.
    pub fn admit(&self, token: Option<&[u8]>, now: u64) -> Result<Caller, Refusal> {
        let keys = self.current();
        if keys.is_empty() {
            return Ok(Caller::anyone());
        }
        keys.admit(token.ok_or(Refusal::Missing)?, now)
    }

    fn current(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
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
        Self { id: None, scopes: Scopes::all(), reach: Reach::everything() }
    }

    /// Who comes without a key, for what needs none though there are keys.
    #[must_use]
    pub fn nobody() -> Self {
        Self { id: None, scopes: Scopes::default(), reach: Reach::of(None, Arc::from([])) }
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

    /// Whether it is the operator's: with a key, and not bound to one tenant's namespaces. Only the operator names those of tenants.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.id.is_some() && self.reach.tenant().is_none()
    }
}

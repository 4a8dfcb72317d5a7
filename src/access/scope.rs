//! What a key is good for.

use std::fmt;
use std::str::FromStr;

/// One thing that a key may be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Texts in, vectors out; looking up what is cached by text or key.
    Embed,
    /// Searching, and reading entries' facts.
    Search,
    /// Ending entries.
    Invalidate,
    /// Everything that concerns all tenants: configuration, models, figures.
    Admin,
}

/// Several of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

/// A word that is no scope.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no scope: there are embed, search, invalidate and admin")]
pub struct UnknownScope(String);

impl Scope {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Embed, Self::Search, Self::Invalidate, Self::Admin];

    /// Its word in files and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Search => "search",
            Self::Invalidate => "invalidate",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(word: &str) -> Result<Self, UnknownScope> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == word).ok_or_else(|| UnknownScope(word.to_owned()))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Scopes {
    /// Every one.
    #[must_use]
    pub fn all() -> Self {
        Scope::ALL.into_iter().collect()
    }

    /// Whether it is among them.
    #[must_use]
    pub fn has(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | 1 << scope as u8))
    }
}

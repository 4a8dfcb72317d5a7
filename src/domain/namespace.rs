//! A tenant's or corpus's own part of the cache: the same text in two namespaces is two entries.

use std::fmt;

/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// A name of up to 128 letters, digits and `. _ : -`; the default namespace's is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(String);

/// Why a string cannot name a namespace.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NamespaceError {
    /// Longer than 128 bytes.
    #[error("a namespace has at most {NAME_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// A character that is not a letter, a digit or one of `. _ : -`.
    #[error("a namespace is made of ASCII letters, digits and . _ : - only; {0:?} is none of them")]
    Character(char),
}

impl Namespace {
    /// Checks a name.
    ///
    /// # Errors
    /// When it is too long or has a character outside the allowed set.
    pub fn new(name: &str) -> Result<Self, NamespaceError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(NamespaceError::TooLong(name.len()));
        }
        match name.chars().find(|c| !(c.is_ascii_alphanumeric() || "._:-".contains(*c))) {
            Some(c) => Err(NamespaceError::Character(c)),
            None => Ok(Self(name.to_owned())),
        }
    }

    /// The name; empty for the default namespace.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

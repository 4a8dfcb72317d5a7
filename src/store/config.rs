//! What callers give the store and get from it.

use std::time::Duration;

use half::f16;

use crate::domain::{Key, Namespace, TokenKey};

/// What a write that has returned survives. A wrong vector is never served, whatever is chosen here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process, `kill -9` included. Power loss costs what the system had not yet written by itself
    /// (Linux: the last half minute).
    #[default]
    Process,
    /// As `Process`; and power loss costs no more than about the last such interval: a thread syncs that often.
    Interval(Duration),
    /// Power loss too: one sync before the write returns, shared by those that wait at the same time.
    Always,
}

/// How a store is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The most entries held; beyond, the least used make room. The file is that large at once, but sparse.
    pub capacity_entries: u64,
    /// What a write survives.
    pub durability: Durability,
}

impl Default for Config {
    fn default() -> Self {
        Self { capacity_entries: 1 << 20, durability: Durability::default() }
    }
}

/// One embedding to keep.
#[derive(Clone, Copy, Debug)]
pub struct NewEntry<'a> {
    /// What it is found by.
    pub key: Key,
    /// The unit vector, as long as the model's vectors are.
    pub unit: &'a [f16],
    /// The length it had; finite.
    pub norm: f32,
    /// How many tokens the text had; from 65,535 on it is kept as 65,535.
    pub tokens: u32,
    /// Whether the text was cut to fit the model.
    pub truncated: bool,
    /// Whose it is.
    pub namespace: &'a Namespace,
    /// When it ceases to be valid, in Unix seconds; never if `None`.
    pub expires: Option<u32>,
    /// The name of its token ids, if other spellings of the same tokens shall find it.
    pub token_key: Option<TokenKey>,
    /// Names it can be invalidated by.
    pub tags: &'a [String],
    /// Overwrite what is stored under the key; if false, a valid entry stays as it is.
    pub replace: bool,
    /// Whether the vector was taken over from another entry rather than computed.
    pub copied: bool,
}

impl<'a> NewEntry<'a> {
    /// A vector under a key, without tokens, tags or expiry; it does not replace.
    #[must_use]
    pub fn new(key: Key, unit: &'a [f16], norm: f32, namespace: &'a Namespace) -> Self {
        Self {
            key,
            unit,
            norm,
            tokens: 0,
            truncated: false,
            namespace,
            expires: None,
            token_key: None,
            tags: &[],
            replace: false,
            copied: false,
        }
    }
}

/// The facts of a stored embedding, besides its row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// The length the vector had before it was scaled to one.
    pub norm: f32,
    /// How many tokens the text had; 65,535 stands for that many or more.
    pub tokens: u32,
    /// Whether the text was cut to fit the model.
    pub truncated: bool,
    /// When it was written, in Unix seconds.
    pub created: u32,
    /// When it ceases to be valid, in Unix seconds.
    pub expires: Option<u32>,
    /// Whether the vector was taken over from another entry.
    pub copied: bool,
    /// Its place in the order of writes: later entries have larger numbers.
    pub sequence: u64,
    /// The number of its namespace; 0 is the default namespace.
    pub namespace: u32,
}

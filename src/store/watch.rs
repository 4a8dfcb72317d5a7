//! Who is told which entries there are, as they come and go.

use half::f16;

use super::config::Entry;
use crate::domain::Key;

/// Follows the entries of a store. Each call comes from a thread that holds the store's writer, so calls follow one another,
/// in the order of the changes; they must be quick, and must not call the store.
///
/// An entry has a place as long as it is there. A place is a small number, and is used again.
pub trait Watcher: Send + Sync {
    /// An entry can be found now, in this place: a new one, or one that was there when the watching began. Such a one may be
    /// told twice.
    fn published(&self, place: u32, key: Key, entry: Entry, row: &[f16]);

    /// What was in this place can be found no more. A replaced entry goes after the one that replaces it has come.
    fn withdrawn(&self, place: u32);
}

//! Who has how many entries: the namespaces and tags with most of them.
//!
//! Nothing is counted where entries are written, so nobody pays for this who does not ask. Of a small store all entries are
//! looked at. Of a large one some are, spread evenly; what is most frequent among them is then looked up by name in the
//! side store, which knows how many keys a tag has without counting them. So the cost is bounded whatever the store holds.

use std::collections::{HashMap, HashSet};

use super::core::Core;
use super::layout::Slot;
use super::space::Space;
use crate::domain::Key;

/// The most entries looked at.
const LOOKED_AT_MAX: usize = 16_384;

/// Slots that are tried to find so many, where some are free.
const TRIED_MAX: u32 = 4 * LOOKED_AT_MAX as u32;

/// The most entries whose tags are read.
const TAGS_OF_MAX: usize = 4096;

/// The most tags that are read of them: an entry may have many.
const TAGS_MAX: usize = 16_384;

/// How many namespaces, and how many tags, are named.
const NAMED_MAX: usize = 10;

/// How many of the tags seen most often are looked up, so that the order of those named is right.
const LOOKED_UP_MAX: usize = 4 * NAMED_MAX;

/// The namespaces and tags with most entries, the most frequent first.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Census {
    /// Entries that were looked at.
    pub looked_at: u64,
    /// Whether that was all of them, and the counts are right. Else those of namespaces are estimates, and those of tags
    /// may count some entries that are gone.
    pub exact: bool,
    /// Namespaces; the default one's name is empty.
    pub namespaces: Vec<Share>,
    /// Tags.
    pub tags: Vec<Share>,
}

/// How many entries one of them has.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Share {
    /// Its name.
    pub name: String,
    /// Its entries.
    pub entries: u64,
}

impl Core {
    /// Counts, as far as the bounds allow. What cannot be read is left out.
    pub(super) fn census(&self, now: u32) -> Census {
        let space = &*self.space;
        let entries = space.table.len();
        let all = entries <= LOOKED_AT_MAX as u64;
        let mut looked_at = 0;
        let mut namespaces: HashMap<u32, u64> = HashMap::new();
        let mut tagged: Vec<Key> = Vec::new();
        let mut look = |slot: Slot| {
            // Briefly each time, so that a writer never waits for the whole walk. Rows are not read: a damaged entry counts.
            let _reading = space.read();
            let record = space.map.record(slot);
            if space.live.get(slot) && !record.is_expired(now) && !space.condemned.has(record) {
                looked_at += 1;
                *namespaces.entry(record.namespace()).or_default() += 1;
                if record.is_tagged() {
                    tagged.push(record.key);
                }
            }
        };
        if all {
            space.live.iter().take(LOOKED_AT_MAX).for_each(&mut look)
        } else {
            spread(space).for_each(&mut look)
        }

        // Keys are digests: the first of them in their order are as good a choice as any, and lie together on disk.
        tagged.sort_unstable_by_key(|key| *key.as_bytes());
        let read_all = tagged.len() <= TAGS_OF_MAX;
        tagged.truncate(TAGS_OF_MAX);
        let (tags, tags_left) = self.side.count_tags(&tagged, TAGS_MAX).unwrap_or_else(|error| {
            tracing::warn!(%error, "tags cannot be read: none are counted");
            (HashMap::new(), 0)
        });
        let exact = all && read_all && tags_left == 0;

        let estimated = |seen: u64| if all { seen } else { scaled(seen, entries, looked_at) };
        let namespaces = namespaces.into_iter().map(|(number, seen)| Share {
            name: self.side.namespace_name(number).unwrap_or_else(|| format!("number {number}, whose name is lost")),
            entries: estimated(seen),
        });
        let tags = most(tags.into_iter().map(|(name, entries)| Share { name, entries }).collect(), LOOKED_UP_MAX);
        let tags = tags.into_iter().map(|Share { name, entries: seen }| {
            let counted = if exact { None } else { self.side.count_with_tag(&name).ok() };
            Share { entries: counted.unwrap_or(seen), name }
        });
        Census {
            looked_at,
            exact,
            namespaces: most(namespaces.collect(), NAMED_MAX),
            tags: most(tags.collect(), NAMED_MAX),
        }
    }
}

/// Live slots among those that the multiples of the golden ratio lie at: evenly spread, in step with nothing that was
/// written in turns, and each time the same, so that figures that did not change look as if they did not.
fn spread(space: &Space) -> impl Iterator<Item = Slot> {
    const GOLDEN: u32 = 0x9e37_79b9;
    let end = space.live.last().map_or(0, |last| u64::from(last) + 1);
    let place = move |step: u32| ((u64::from(step.wrapping_mul(GOLDEN)) * end) >> 32) as Slot;
    let mut seen = HashSet::with_capacity(LOOKED_AT_MAX);
    (0..TRIED_MAX).map(place).filter(move |&slot| space.live.get(slot) && seen.insert(slot)).take(LOOKED_AT_MAX)
}

/// What was seen among some, for all.
fn scaled(seen: u64, all: u64, some: u64) -> u64 {
    if some == 0 { 0 } else { (u128::from(seen) * u128::from(all) / u128::from(some)) as u64 }
}

/// Those with most entries; of equals, in the order of their names.
fn most(mut shares: Vec<Share>, count_max: usize) -> Vec<Share> {
    shares.sort_unstable_by(|a, b| b.entries.cmp(&a.entries).then_with(|| a.name.cmp(&b.name)));
    shares.truncate(count_max);
    shares
}

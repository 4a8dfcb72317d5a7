//! Invalidation: entries chosen by what they are, removed or marked stale.
//!
//! Several selectors together narrow: an entry has to meet all of them. Of several tags, keys or texts one is enough.
//! Everything here blocks for as long as the store takes, which is milliseconds for any number of entries with a tag.

use std::collections::HashSet;
use std::time::Duration;

use super::{Error, Shared};
use crate::domain::{Key, Namespace, Pattern, Reach, owner};
use crate::store::Selector;

/// Keys removed or marked at a time: writes of others get their turn in between.
const KEYS_AT_ONCE: usize = 4096;
/// From how many entries on nobody waits for them to be erased.
const CONDEMNED_MIN: usize = 8192;

/// Which entries: those that meet all that is given.
#[derive(Clone, Debug, Default)]
pub struct Invalidation {
    /// Under one of these keys.
    pub keys: Option<Vec<Key>>,
    /// Of one of these texts, with whatever prompt, in `namespace` (the default one if it is not given).
    pub texts: Option<Vec<String>>,
    /// With one of these tags.
    pub tags: Option<Vec<String>>,
    /// With a tag that matches this pattern.
    pub tag_glob: Option<Pattern>,
    /// In this namespace.
    pub namespace: Option<Namespace>,
    /// In a namespace of this tenant; empty: in one that is no tenant's. It narrows what the rest says, and says nothing itself.
    pub tenant: Option<String>,
    /// Stored longer ago than this.
    pub older_than: Option<Duration>,
    /// All there are. Nothing given and this `false` is refused.
    pub all: bool,
    /// What is done to them.
    pub mode: InvalidationMode,
    /// Only count them.
    pub dry_run: bool,
}

/// What invalidation does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InvalidationMode {
    /// Remove.
    #[default]
    Hard,
    /// Mark as stale: served as before, and computed anew when next asked for.
    Soft,
}

/// What an invalidation came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Invalidated {
    /// Entries that were chosen. Of very many with a tag this is an upper bound: some may have been gone already, or have several of the tags.
    pub matched: usize,
    /// Entries that were removed: none when they are only marked or counted. None of them is served any more; very many are erased
    /// behind.
    pub removed: usize,
    /// Entries that were marked stale.
    pub marked: usize,
    /// Whether the shared tier has taken it, so that no other machine is served from there what was meant; if not, it will be told as soon as it can
    /// be reached. `None` without a tier, and when nothing was done.
    pub published: Option<bool>,
}

impl std::ops::Add for Invalidated {
    type Output = Self;

    /// Both together, as of two models.
    fn add(self, other: Self) -> Self {
        Self {
            matched: self.matched + other.matched,
            removed: self.removed + other.removed,
            marked: self.marked + other.marked,
            published: match (self.published, other.published) {
                (Some(one), Some(other)) => Some(one && other),
                (one, other) => one.or(other),
            },
        }
    }
}

impl Invalidation {
    /// Whether nothing is said of which entries are meant.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { keys, texts, tags, tag_glob, namespace, tenant: _, older_than, all, mode: _, dry_run: _ } = self;
        let by_name = keys.is_some() || texts.is_some() || tags.is_some() || tag_glob.is_some();
        !(by_name || namespace.is_some() || older_than.is_some() || *all)
    }

    /// The same, of what is in reach: a namespace as its name leads there, and without one the tenant's own. `None` if it is of
    /// another tenant's.
    #[must_use]
    pub fn within(mut self, reach: &Reach) -> Option<Self> {
        match self.namespace.take() {
            Some(namespace) => self.namespace = Some(reach.pin(namespace)?),
            None if self.texts.is_some() && reach.tenant().is_some() => {
                self.namespace = Some(reach.pin(Namespace::default())?)
            }
            None => self.tenant = reach.tenant().map(str::to_owned),
        }
        Some(self)
    }
}

/// Chooses and removes or marks. `keys_of_texts` are the keys of the texts that are wanted, if any are.
pub(super) fn invalidate(
    shared: &Shared,
    wanted: &Invalidation,
    keys_of_texts: Option<&[Key]>,
) -> Result<Invalidated, Error> {
    if wanted.is_empty() {
        return Err(Error::EmptySelector);
    }
    // How many of a tag's entries are older than that is not known until each was looked at, and the answer is to say it.
    if wanted.older_than.is_none()
        && let Some(condemned) = condemn_many(shared, wanted)?
    {
        return Ok(condemned);
    }
    each(shared, wanted, keys_of_texts)
}

/// The same for what was invalidated elsewhere: the shared tier serves nothing until this returns, and nobody is told how many there were.
/// `matched` may count what was written since.
pub(super) fn invalidate_heard(shared: &Shared, wanted: &Invalidation) -> Result<Invalidated, Error> {
    if wanted.is_empty() {
        return Err(Error::EmptySelector);
    }
    match condemn_many(shared, wanted)? {
        Some(condemned) => Ok(condemned),
        None => each(shared, wanted, None),
    }
}

/// One entry after the other.
fn each(shared: &Shared, wanted: &Invalidation, keys_of_texts: Option<&[Key]>) -> Result<Invalidated, Error> {
    let chosen = choose(shared, wanted, keys_of_texts)?;
    let mut invalidated = Invalidated { matched: chosen.len(), ..Invalidated::default() };
    if wanted.dry_run {
        return Ok(invalidated);
    }
    for keys in chosen.chunks(KEYS_AT_ONCE) {
        match wanted.mode {
            InvalidationMode::Hard => invalidated.removed += shared.store.remove_many(keys)?,
            InvalidationMode::Soft => {
                invalidated.marked += shared.store.mark_stale(keys, shared.now())?;
                // What was put off because it was not due yet is due now.
                shared.claims.release(keys);
            }
        }
    }
    Ok(invalidated)
}

/// Of many entries that go by their tags and their age alone: they are not served from now on, and erased behind.
fn condemn_many(shared: &Shared, wanted: &Invalidation) -> Result<Option<Invalidated>, Error> {
    let Invalidation { keys, texts, tags, tag_glob, namespace, tenant, older_than: _, all: _, mode, dry_run } = wanted;
    // What is condemned is so in every namespace.
    let narrows = keys.is_some() || texts.is_some() || namespace.is_some() || tenant.is_some();
    if narrows || *dry_run || *mode == InvalidationMode::Soft {
        return Ok(None);
    }
    let mut matched = 0;
    match (tags, tag_glob) {
        (Some(tags), None) => {
            for tag in tags {
                matched += shared.store.count_tagged(tag)? as usize;
            }
        }
        (None, Some(glob)) => matched = shared.store.count_tagged_like(glob)? as usize,
        // Both narrow.
        _ => return Ok(None),
    }
    if matched < CONDEMNED_MIN {
        return Ok(None);
    }
    let before = created_before(wanted, shared.now());
    shared.store.condemn(tags.as_deref().unwrap_or_default(), tag_glob.as_ref(), before)?;
    Ok(Some(Invalidated { matched, removed: matched, ..Invalidated::default() }))
}

/// The second before which entries are meant, if any is said.
fn created_before(wanted: &Invalidation, now: u32) -> Option<u32> {
    wanted.older_than.map(|age| now.saturating_sub(u32::try_from(age.as_secs()).unwrap_or(u32::MAX)))
}

/// The keys of all entries that meet everything that is given, each once.
fn choose(shared: &Shared, wanted: &Invalidation, keys_of_texts: Option<&[Key]>) -> Result<Vec<Key>, Error> {
    let Invalidation { keys, tags, tag_glob, namespace, tenant, .. } = wanted;
    let now = shared.now();
    let created_before = created_before(wanted, now);

    // The narrowest first: what the store has an index for. What is a scan is then a check of what was found.
    let mut indexed: Vec<Vec<Key>> = Vec::new();
    for keys in keys.as_deref().into_iter().chain(keys_of_texts) {
        indexed.push(shared.store.select(&Selector::Keys(keys), now)?);
    }
    if let Some(tags) = tags {
        let mut tagged = Vec::new();
        for tag in tags {
            tagged.extend(shared.store.select(&Selector::Tag(tag), now)?);
        }
        indexed.push(tagged);
    }
    if let Some(glob) = tag_glob {
        indexed.push(shared.store.select(&Selector::TagPattern(glob), now)?);
    }
    let mut indexed = indexed.into_iter();
    let mut chosen = match (indexed.next(), namespace, created_before) {
        (Some(first), ..) => first,
        (None, Some(namespace), _) => shared.store.select(&Selector::Namespace(namespace), now)?,
        // What is left of a scan for a tenant is narrowed below.
        (None, None, Some(time)) if tenant.is_none() => {
            return Ok(shared.store.select(&Selector::CreatedBefore(time), now)?);
        }
        (None, None, None) if tenant.is_none() => return Ok(shared.store.select(&Selector::All, now)?),
        (None, None, _) => shared.store.select(&Selector::All, now)?,
    };
    for other in indexed {
        let other: HashSet<Key> = other.into_iter().collect();
        chosen.retain(|key| other.contains(key));
    }
    let mut seen = HashSet::with_capacity(chosen.len());
    chosen.retain(|key| seen.insert(*key));
    drop(seen);

    if created_before.is_none() && namespace.is_none() && tenant.is_none() {
        return Ok(chosen);
    }
    let has_name = |name: &str| {
        namespace.as_ref().is_none_or(|namespace| name == namespace.as_str())
            && tenant.as_ref().is_none_or(|tenant| owner(name) == tenant)
    };
    let named = (namespace.is_some() || tenant.is_some()).then(|| shared.store.namespaces(has_name));
    let is_meant = |number: u32| named.as_ref().is_none_or(|named| named.binary_search(&number).is_ok());
    let mut kept = Vec::with_capacity(chosen.len());
    for keys in chosen.chunks(KEYS_AT_ONCE) {
        for (key, entry) in keys.iter().zip(shared.store.contains_many(keys, now)) {
            let Some(entry) = entry else { continue };
            if created_before.is_none_or(|time| entry.created < time) && is_meant(entry.namespace) {
                kept.push(*key);
            }
        }
    }
    Ok(kept)
}

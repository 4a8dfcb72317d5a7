//! The shared tier on the path of a miss, and what other machines invalidate.
//!
//! ```text
//! missed here ─► fetch ─► there: landed, stored here ──────────────────────────────► answered `remote`
//!                  └ not there ─► lease ─► ours: computed ─► stored here, then there
//!                                   └ another's: followed ─► its record, as above; or none, and it is computed here
//! invalidated here ─► published ─► every other machine: the same, here
//! ```
//!
//! The tier can only help: whatever it does not answer in time is computed. What is brought from it keeps its tags, payload and end, and has
//! those of the request beside them, so that it is invalidated by either.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::erasure::{Eraser, Part};
use super::flight::Particulars;
use super::invalidate::{self, Invalidation, InvalidationMode};
use super::lead::Missed;
use super::{Inner, Shared};
use crate::domain::{Key, ModelVersion, Namespace};
use crate::remote::{Asked, Epoch, Flaw, Heard, Lead, Lease, Listener, Notice, Record, Tier};
use crate::store::NewEntry;

/// A second more than none: two clocks' seconds need not begin together, and what is removed too much is computed again.
const CLOCKS_APART_SECONDS: u32 = 2;

/// The tier, as several caches of a process share it.
#[derive(Clone)]
pub struct SharedTier {
    tier: Tier,
    ear: Arc<Ear>,
}

/// What is known of an entry that the shared tier has, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// How long ago it was computed; `None` if the tier's clock is not known.
    pub age: Option<u32>,
    /// How long it is still valid; `None` if for ever.
    pub ttl: Option<u32>,
}

/// Carries out what other machines invalidate, in every cache.
#[derive(Default)]
struct Ear {
    caches: RwLock<Vec<(ModelVersion, Weak<Shared>)>>,
    eraser: RwLock<Weak<Eraser>>,
}

/// What the tier has to do with a landing.
#[derive(Default)]
pub(super) enum Passage {
    /// Nothing.
    #[default]
    None,
    /// It comes from there.
    From(Box<Record>),
    /// It goes there, as computed after this epoch.
    To(Epoch, Mutex<Option<Lease>>),
}

impl SharedTier {
    /// A tier that nobody uses yet.
    #[must_use]
    pub fn new(tier: Tier) -> Self {
        Self { tier, ear: Arc::default() }
    }

    /// The tier itself.
    #[must_use]
    pub fn tier(&self) -> &Tier {
        &self.tier
    }

    /// Says that all caches that share it are there: what was invalidated elsewhere is carried out in them, now and from now on.
    pub fn begin(&self) {
        self.tier.listen(Arc::clone(&self.ear) as Arc<dyn Listener>);
    }

    /// Has an eraser carry out what other machines erase.
    pub(super) fn set_eraser(&self, eraser: &Arc<Eraser>) {
        *self.ear.eraser.write().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(eraser);
    }

    /// Has the tier keep an entry that was put into a store as of `created`, in the background, as one that is computed now. Times are Unix
    /// seconds.
    pub fn offer(&self, entry: &NewEntry<'_>, created: u32, now: u32) {
        let epoch = self.tier.epoch();
        let record = record(entry, epoch, now.saturating_sub(created), now, self.tier.now());
        self.tier.store(entry.key, record, epoch, None);
    }

    /// What the tier has of some keys, within its deadline: how old each is, and when it ends. Blocks; brings nothing here.
    fn facts(&self, asked: &Asked<'_>) -> Vec<Option<Elsewhere>> {
        let records = self.tier.fetch(asked).records;
        let now = self.tier.now();
        let facts = |record: Record| Elsewhere {
            age: now.map(|now| now.saturating_sub(record.created)),
            ttl: record.expires.zip(now).map(|(expires, now)| expires.saturating_sub(now)),
        };
        records.into_iter().map(|record| record.map(facts)).collect()
    }

    /// Has a cache hear of what is invalidated.
    pub(super) fn add(&self, model: ModelVersion, shared: &Arc<Shared>) {
        let mut caches = self.ear.caches.write().unwrap_or_else(PoisonError::into_inner);
        caches.retain(|(_, shared)| shared.strong_count() > 0);
        caches.push((model, Arc::downgrade(shared)));
    }
}

/// Where what is computed from now on goes.
pub(super) fn passage(shared: &Shared, is_shared: bool) -> Passage {
    match &shared.tier {
        Some(SharedTier { tier, .. }) if is_shared => Passage::To(tier.epoch(), Mutex::default()),
        _ => Passage::None,
    }
}

impl std::fmt::Debug for SharedTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.tier.fmt(f)
    }
}

impl Listener for Ear {
    fn invalidated(&self, heard: &[Heard], now: u32) {
        let caches = self.caches.read().unwrap_or_else(PoisonError::into_inner).clone();
        let eraser = self.eraser.read().unwrap_or_else(PoisonError::into_inner).upgrade();
        for Heard { notice, published, .. } in heard.iter().filter(|heard| heard.notice.erasure.is_some()) {
            let part = |(version, shared): &(ModelVersion, Weak<Shared>)| {
                Some(Part { version: *version, shared: shared.upgrade()? })
            };
            let parts: Vec<Part> = caches.iter().filter_map(part).collect();
            let before = published.saturating_add(CLOCKS_APART_SECONDS);
            let erased = eraser.as_ref().map(|eraser| eraser.heard(&parts, notice, now.checked_sub(before)));
            match erased {
                Some(Ok(())) => tracing::info!("another machine has erased entries"),
                Some(Err(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "what another machine has erased could not be erased here yet");
                }
                None => tracing::error!(
                    "what another machine has erased is not erased here: nobody has the folder's receipts"
                ),
            }
        }
        for (model, shared) in caches {
            let Some(shared) = shared.upgrade() else { continue };
            for Heard { notice, published, .. } in heard.iter().filter(|heard| heard.notice.erasure.is_none()) {
                if notice.model.is_some_and(|meant| meant != model) {
                    continue;
                }
                let wanted = invalidation(notice, *published, now);
                match invalidate::invalidate_heard(&shared, &wanted) {
                    Ok(invalidated) => tracing::info!(
                        matched = invalidated.matched,
                        removed = invalidated.removed,
                        soft = notice.soft,
                        "another machine has invalidated entries"
                    ),
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, "what another machine has invalidated could not be invalidated here");
                    }
                }
            }
        }
    }
}

/// What a notice means here. What was written since it was published is not meant, by this machine's clock: the tier's tells only
/// how long ago that was.
fn invalidation(notice: &Notice, published: u32, now: u32) -> Invalidation {
    let Notice { tags, tag_glob, namespace, tenant, model, keys, before, all, soft, erasure: _ } = notice;
    let before = before.unwrap_or(u32::MAX).min(published.saturating_add(CLOCKS_APART_SECONDS));
    Invalidation {
        keys: (!keys.is_empty()).then(|| keys.clone()),
        texts: None,
        tags: (!tags.is_empty()).then(|| tags.clone()),
        tag_glob: tag_glob.clone(),
        namespace: namespace.clone(),
        tenant: tenant.clone(),
        older_than: now.checked_sub(before).map(|seconds| Duration::from_secs(u64::from(seconds))),
        all: *all || model.is_some(),
        mode: if *soft { InvalidationMode::Soft } else { InvalidationMode::Hard },
        dry_run: false,
    }
}

/// Tells other machines of an invalidation. `None` without a tier; else whether it is certain that they know.
pub(super) fn publish(
    shared: &Shared,
    model: &ModelVersion,
    wanted: &Invalidation,
    of_texts: Option<&[Key]>,
) -> Option<bool> {
    let SharedTier { tier, .. } = shared.tier.as_ref()?;
    let Invalidation { keys, texts: _, tags, tag_glob, namespace, tenant, older_than, all: _, mode, dry_run } = wanted;
    // Nothing said means everything, which nobody wanted.
    if *dry_run || wanted.is_empty() || tags.as_ref().is_some_and(Vec::is_empty) {
        return None;
    }
    // By the own clock if the tier's was never heard.
    let now = tier.now().unwrap_or_else(|| shared.now());
    let ago = |age: Duration| now.saturating_sub(u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
    let notice = Notice {
        tags: tags.clone().unwrap_or_default(),
        tag_glob: tag_glob.clone(),
        namespace: namespace.clone(),
        tenant: tenant.clone(),
        model: Some(*model),
        before: older_than.map(ago),
        soft: *mode == InvalidationMode::Soft,
        ..Notice::default()
    };
    let named: Vec<Key> = match (keys, of_texts) {
        (None, None) => return Some(tier.publish(&notice)),
        // Both narrow: few keys are in both.
        (Some(keys), Some(texts)) => keys.iter().filter(|key| texts.contains(key)).copied().collect(),
        (Some(keys), None) => keys.clone(),
        (None, Some(texts)) => texts.to_vec(),
    };
    if named.is_empty() {
        return Some(true);
    }
    // Whose keys they are the servers cannot tell. The notice is enough for the records to be served no more.
    if tenant.is_none() && namespace.is_none() || of_texts.is_some() {
        tier.remove(&named);
    }
    Some(tier.publish(&Notice { keys: named, ..notice }))
}

/// Lands what the tier has, follows what another machine computes, and leaves the rest to be computed here.
pub(super) fn look(inner: &Arc<Inner>, namespace: &Namespace, missed: Vec<Missed>) -> Vec<Missed> {
    let Some(SharedTier { tier, .. }) = &inner.shared.tier else { return missed };
    let missed: Vec<Missed> = missed.into_iter().map(Missed::asks).collect();
    let keys: Vec<Key> = missed.iter().map(Missed::key).collect();
    let card = inner.embedder.card();
    let asked = Asked { model: &card.version, namespace, dims: card.dims, keys: &keys };
    let fetched = tier.fetch(&asked);
    let mut absent = Vec::new();
    for (missed, record) in missed.into_iter().zip(fetched.records) {
        match record {
            Some(record) => missed.take(record),
            None => absent.push(missed),
        }
    }
    let keys: Vec<Key> = absent.iter().map(Missed::key).collect();
    let mut left = Vec::with_capacity(absent.len());
    for (missed, lead) in absent.into_iter().zip(tier.lead(&Asked { keys: &keys, ..asked })) {
        let passage = |lease| Passage::To(fetched.epoch, Mutex::new(lease));
        match lead {
            Lead::Done(record) => missed.take(record),
            Lead::Ours(lease) => left.push(missed.with(passage(Some(lease)))),
            Lead::Unknown => left.push(missed.with(passage(None))),
            Lead::Theirs(follow) => {
                let (inner, asked) = (Arc::clone(inner), Asked { keys: &[], ..asked });
                let missed = missed.with(passage(None));
                let then = move |record: Option<Record>| match record {
                    Some(record) => missed.take(record),
                    None => super::lead::submit(&inner.embedder, vec![missed]),
                };
                tier.follow(follow, &asked, Box::new(then));
            }
        }
    }
    left
}

/// What is stored beside a vector: what its request says, and of one that the tier has brought what was said there.
pub(super) fn particulars<'a>(
    shared: &Shared,
    particulars: &'a Particulars,
    brought: Option<&Record>,
) -> Cow<'a, Particulars> {
    let Some(record) = brought else { return Cow::Borrowed(particulars) };
    let mut both = particulars.clone();
    both.tags.extend(record.tags.iter().filter(|tag| !particulars.tags.contains(tag)).cloned());
    both.payload = both.payload.or_else(|| record.payload.clone());
    let left = record.expires.zip(shared.tier.as_ref().and_then(|shared| shared.tier.now()));
    let ends = left.map(|(expires, now)| shared.now().saturating_add(expires.saturating_sub(now)));
    both.expires = [both.expires, ends].into_iter().flatten().min();
    Cow::Owned(both)
}

/// Has the tier keep what was stored here.
pub(super) fn keep(shared: &Shared, entry: &NewEntry<'_>, passage: &Passage) {
    let (Passage::To(epoch, lease), Some(SharedTier { tier, .. })) = (passage, &shared.tier) else { return };
    let lease = lease.lock().unwrap_or_else(PoisonError::into_inner).take();
    let record = record(entry, *epoch, 0, shared.now(), tier.now());
    tier.store(entry.key, record, *epoch, lease);
}

/// An entry as the tier keeps it: with the tier's times, if its clock is known.
fn record(entry: &NewEntry<'_>, epoch: Epoch, age: u32, now: u32, tier_now: Option<u32>) -> Record {
    let there = tier_now.unwrap_or(now);
    Record {
        unit: entry.unit.into(),
        norm: entry.norm,
        tokens: entry.tokens,
        truncated: entry.truncated,
        copied: entry.copied,
        pinned: entry.pinned,
        stale: entry.stale,
        refresh_ahead: entry.refresh_ahead,
        epoch,
        created: there.saturating_sub(age),
        expires: entry.expires.map(|expires| there.saturating_add(expires.saturating_sub(now))),
        token_key: entry.token_key,
        tags: entry.tags.to_vec(),
        payload: entry.payload.map(str::to_owned),
    }
}

/// What the tier has of keys that are not here. Blocks for its deadline at most.
pub(super) fn elsewhere(shared: &Shared, asked: &Asked<'_>) -> Vec<Option<Elsewhere>> {
    let is_shared = shared.policies().terms(asked.namespace.as_str(), &[]).shared;
    match &shared.tier {
        Some(tier) if is_shared => tier.facts(asked),
        _ => vec![None; asked.keys.len()],
    }
}

/// Reads the tier's figures at each scrape.
pub(super) struct TierCollector(pub(super) Tier);

impl std::fmt::Debug for TierCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TierCollector")
    }
}

impl Collector for TierCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let figures = self.0.figures();
        let gauges: [(&str, &str, u64); 5] = [
            ("remote_ready", "Whether the shared tier can be reached and is up to date", figures.ready.into()),
            ("remote_epoch", "The newest invalidation that is carried out here", figures.epoch),
            ("remote_queue_records", "Writes that wait for the shared tier", figures.queue as u64),
            ("remote_queue_bytes", "Bytes of writes that wait for the shared tier", figures.queue_bytes as u64),
            (
                "remote_notices_pending",
                "Invalidations that other machines could not be told of yet",
                figures.notices_pending as u64,
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters: [(&str, &str, u64); 22] = [
            ("remote_hits", "Keys found in the shared tier", figures.hits),
            ("remote_misses", "Keys looked for in the shared tier and not found, or not in time", figures.misses),
            ("remote_stores", "Records written to the shared tier", figures.stores),
            ("remote_dropped", "Writes that the shared tier had no room or no server for", figures.dropped),
            ("remote_refused", "Records that the shared tier's servers had no memory for", figures.refused),
            ("remote_outdated", "Records of the shared tier that had expired or were invalidated", figures.outdated),
            ("remote_skipped", "Looks that were not made because the shared tier was away", figures.skipped),
            (
                "remote_hedged",
                "Questions to the shared tier asked a second time, for the answer was late",
                figures.hedged,
            ),
            ("remote_hedge_won", "Of those the ones whose second asking was answered first", figures.hedge_won),
            ("remote_timeouts", "Operations of the shared tier that had no answer in time", figures.timeouts),
            ("remote_errors", "Operations of the shared tier that failed otherwise", figures.errors),
            ("remote_leases_ours", "Texts computed while other machines waited for them", figures.leases_ours),
            (
                "remote_leases_renewed",
                "Leases prolonged, for their texts were still being computed",
                figures.leases_renewed,
            ),
            ("remote_leases_theirs", "Texts waited for while another machine computed them", figures.leases_theirs),
            ("remote_leases_expired", "Texts waited for that the other machine did not finish", figures.leases_expired),
            ("remote_notices_sent", "Invalidations told to other machines", figures.notices_sent),
            (
                "remote_notices_unconfirmed",
                "Invalidations that no replica was known to have when they were answered",
                figures.notices_unconfirmed,
            ),
            ("remote_notices_received", "Invalidations heard from other machines", figures.notices_received),
            ("remote_notices_restored", "Invalidations that had to be told again", figures.notices_restored),
            ("remote_stream_handled", "Events of the stream that were handled", figures.stream_handled),
            ("remote_stream_refused", "Events of the stream that could not be handled", figures.stream_refused),
            ("remote_stream_retried", "Times an event of the stream was put off", figures.stream_retried),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let help = "Records of the shared tier that were not what they should be, by what was wrong";
        let mut damaged = encoder.encode_descriptor("remote_damaged", help, None, MetricType::Counter)?;
        for (flaw, count) in Flaw::ALL.iter().zip(figures.flawed) {
            let label = [("flaw", flaw.as_str())];
            ConstCounter::new(count).encode(damaged.encode_family(&label)?)?;
        }
        Ok(())
    }
}

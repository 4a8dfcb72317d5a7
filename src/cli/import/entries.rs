//! From an export of ours: everything that was known of an entry is kept, its place in the order of writes included.

use std::collections::HashSet;

use anyhow::{Context, ensure};
use half::f16;

use super::super::export;
use super::super::export::facts::{Batch, Facts};
use super::super::meter::Meter;
use super::share::Share;
use super::{Arguments, Outcome};
use crate::cache::{Ledger, Veiled};
use crate::config::Settings;
use crate::domain::{Key, Namespace};
use crate::store::{NewEntry, PAYLOAD_BYTES_MAX, Store, unix_seconds};

/// How far from one the length of a unit vector may be after rounding to f16: each value is off by at most 2^-11 of
/// itself, and so is the length; twice that, for vectors that were rounded more than once.
const LENGTH_TOLERANCE: f64 = 1.0 / 1024.0;

/// Why a row is not stored.
#[derive(Debug, PartialEq, thiserror::Error)]
enum Refusal {
    #[error("it or its vector has changed since it was exported")]
    Changed,
    #[error("its vector has a value that is not finite")]
    NotFinite,
    #[error("its vector has length {0:.4}, not 1")]
    Length(f64),
    #[error("its norm is {0}")]
    Norm(f32),
    #[error(
        "it was exported beside a running server, without its namespace, tags or payload: export again without one"
    )]
    Incomplete,
    #[error("{0}")]
    Namespace(crate::domain::NamespaceError),
    #[error("its payload has {0} bytes, there may be {PAYLOAD_BYTES_MAX}")]
    Payload(usize),
    #[error("its payload is not JSON")]
    PayloadNotJson,
}

pub(super) fn import(arguments: &Arguments, settings: &Settings) -> anyhow::Result<Outcome> {
    let mut source = export::open(&arguments.from)?;
    let manifest = source.manifest().clone();
    let (card, open) = super::open(settings)?;
    ensure!(
        manifest.fingerprint == card.version.to_string(),
        "{} holds vectors of {} (fingerprint {}), the configured model is {} (fingerprint {}): name the right one with --model",
        arguments.from.display(),
        manifest.model.as_deref().unwrap_or("a model whose name it does not say"),
        manifest.fingerprint,
        card.name,
        card.version
    );
    ensure!(
        manifest.dims == card.dims,
        "{} holds vectors of {} values, {} makes {}",
        arguments.from.display(),
        manifest.dims,
        card.name,
        card.dims
    );
    // What was erased since must not come back.
    let erased = Ledger::of(&settings.data_dir).erased_since(manifest.created);
    let erased = erased.context("what was erased since the export was made cannot be read")?;
    let into = Into { store: open()?, share: Share::begin(settings)?, erased, replace: arguments.replace };
    let mut outcome = Outcome::default();
    let mut meter = Meter::new("imported", manifest.count);
    let mut row = 0;
    let imported = loop {
        let batch = match source.next() {
            Ok(batch) if batch.facts.is_empty() => break Ok(()),
            Ok(batch) => batch,
            Err(error) => break Err(error),
        };
        into.put(&batch, manifest.dims, row, &mut outcome)?;
        row += batch.facts.len() as u64;
        meter.advance(batch.facts.len() as u64);
    };
    meter.finish();
    into.store.sync().context("the store cannot be synced")?;
    imported.with_context(|| format!("{} cannot be read after row {row}", arguments.from.display()))?;
    let info = into.store.info();
    (outcome.evicted, outcome.over_quota) = (info.evicted, info.over_quota);
    outcome.shared = into.share.finish();
    Ok(outcome)
}

/// Where entries go, and which may.
struct Into<'a> {
    store: Store,
    share: Share<'a>,
    /// What must not come back.
    erased: Veiled,
    /// Whether what is cached makes room.
    replace: bool,
}

impl Into<'_> {
    /// Stores what of a batch is right and missing.
    fn put(&self, batch: &Batch, dims: usize, first_row: u64, outcome: &mut Outcome) -> anyhow::Result<()> {
        let Self { store, share, erased, replace } = self;
        let now = unix_seconds();
        let mut wanted: Vec<(&Facts, &[f16], Namespace)> = Vec::with_capacity(batch.facts.len());
        let mut seen: HashSet<Key> = HashSet::with_capacity(batch.facts.len());
        for ((facts, row), number) in batch.facts.iter().zip(batch.rows.chunks_exact(dims)).zip(first_row..) {
            match check(facts, row) {
                Ok(_) if erased.has(&facts.key) => outcome.erased += 1,
                Err(refusal) => outcome.refuse(number, facts.key, refusal),
                Ok(_) if facts.expires.is_some_and(|expires| expires <= now) => outcome.expired += 1,
                Ok(_) if !seen.insert(facts.key) => outcome.kept += 1,
                Ok(namespace) => wanted.push((facts, row, namespace)),
            }
        }
        if !*replace {
            let keys: Vec<Key> = wanted.iter().map(|(facts, ..)| facts.key).collect();
            let cached = store.contains_many(&keys, now);
            let mut cached = cached.iter();
            wanted.retain(|_| cached.next().is_some_and(Option::is_none));
            outcome.kept += (keys.len() - wanted.len()) as u64;
        }
        // Entries are stamped with the time they are put at: those of one second go together.
        for same_second in wanted.chunk_by(|(one, ..), (next, ..)| one.created == next.created) {
            let entries: Vec<NewEntry<'_>> = same_second.iter().map(|wanted| new_entry(wanted, share)).collect();
            let created = same_second[0].0.created.min(now);
            store.put_many(&entries, created).context("the store cannot take them")?;
            share.offer(&entries, created, now);
            outcome.imported += entries.len() as u64;
        }
        Ok(())
    }
}

fn new_entry<'a>((facts, row, namespace): &'a (&'a Facts, &'a [f16], Namespace), share: &Share<'_>) -> NewEntry<'a> {
    NewEntry {
        quota: share.quota(namespace.as_str()),
        tokens: facts.tokens,
        truncated: facts.truncated,
        expires: facts.expires,
        tags: &facts.tags,
        // What is cached and shall stay was sorted out before; what has expired has to go.
        replace: true,
        copied: facts.copied,
        pinned: facts.pinned,
        refresh_ahead: facts.refresh_ahead,
        stale: facts.stale,
        payload: facts.payload.as_deref(),
        ..NewEntry::new(facts.key, row, facts.norm, namespace)
    }
}

/// Whether an entry may be stored, and in which namespace.
fn check(facts: &Facts, row: &[f16]) -> Result<Namespace, Refusal> {
    if !facts.is_as_sealed(row) {
        return Err(Refusal::Changed);
    }
    if facts.incomplete {
        return Err(Refusal::Incomplete);
    }
    if !row.iter().all(|value| value.is_finite()) {
        return Err(Refusal::NotFinite);
    }
    let length = row.iter().map(|value| value.to_f64() * value.to_f64()).sum::<f64>().sqrt();
    if (length - 1.0).abs() > LENGTH_TOLERANCE {
        return Err(Refusal::Length(length));
    }
    if !(facts.norm.is_finite() && facts.norm > 0.0) {
        return Err(Refusal::Norm(facts.norm));
    }
    if let Some(payload) = &facts.payload {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Refusal::Payload(payload.len()));
        }
        if serde_json::from_str::<serde::de::IgnoredAny>(payload).is_err() {
            return Err(Refusal::PayloadNotJson);
        }
    }
    Namespace::qualified(&facts.namespace).map_err(Refusal::Namespace)
}

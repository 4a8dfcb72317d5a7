//! Vectors that another program made with this model: a .npy file, and the texts they belong to.
//!
//! They are found afterwards as if this program had computed them: under the texts' keys in the cache's own scope,
//! normalised as it normalises. That they are this model's nobody can check but the caller.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, ensure};

use super::super::export::npy::Array;
use super::super::meter::Meter;
use super::super::warm::lines::{Format, Line, Reader};
use super::share::Share;
use super::{Arguments, Outcome};
use crate::config::Settings;
use crate::domain::{ContentHash, Embedding, Key, ModelCard, Namespace, Scope, Truncation};
use crate::store::{NewEntry, Store, unix_seconds};

/// How many texts and vectors are in memory at a time.
const ROWS_AT_ONCE: usize = 1024;

pub(super) fn import(arguments: &Arguments, texts: &Path, settings: &Settings) -> anyhow::Result<Outcome> {
    let namespace = Namespace::qualified(arguments.namespace.as_deref().unwrap_or_default())?;
    let mut vectors = Array::open(&arguments.from)?;
    let lines = || Reader::new(&[texts.to_owned()], arguments.field.as_deref().map(Format::jsonl));
    // All lines are read once before anything is stored: one too few or a bad one, and every text after it would get
    // another one's vector.
    let mut count = 0;
    for line in lines() {
        line?;
        count += 1;
    }
    ensure!(
        count == vectors.rows,
        "{} has {count} texts, {} has {} vectors: there must be one for each",
        texts.display(),
        arguments.from.display(),
        vectors.rows
    );
    let (card, open) = super::open(settings)?;
    ensure!(
        vectors.dims == card.dims,
        "{} has vectors of {} values, {} makes {}",
        arguments.from.display(),
        vectors.dims,
        card.name,
        card.dims
    );
    let scope = scope(&card, &namespace, arguments.prompt_name.as_deref())?;

    let mut import = Import {
        store: open()?,
        share: Share::begin(settings)?,
        scope,
        namespace,
        replace: arguments.replace,
        outcome: Outcome::default(),
    };
    let mut meter = Meter::new("imported", count);
    let mut lines = lines();
    let mut row = 0;
    loop {
        let values = vectors.next(ROWS_AT_ONCE)?;
        let expected = values.len() / card.dims;
        if expected == 0 {
            break;
        }
        let lines: Vec<Line> = lines.by_ref().take(expected).collect::<Result<_, _>>()?;
        ensure!(lines.len() == expected, "{} has changed while it was read", texts.display());
        import.put(&lines, &values, row)?;
        row += lines.len() as u64;
        meter.advance(lines.len() as u64);
    }
    meter.finish();
    import.store.sync().context("the store cannot be synced")?;
    let Import { store, share, mut outcome, .. } = import;
    outcome.shared = share.finish();
    (outcome.evicted, outcome.over_quota) = (store.info().evicted, store.info().over_quota);
    Ok(outcome)
}

/// The scope in which the service looks texts up that are asked for with these words.
fn scope(card: &ModelCard, namespace: &Namespace, prompt_name: Option<&str>) -> anyhow::Result<Scope> {
    let prompt = match prompt_name.or(card.default_prompt.as_deref()) {
        None => "",
        Some(name) => card.prompts.get(name).with_context(|| {
            let known: Vec<&str> = card.prompts.keys().map(String::as_str).collect();
            format!("{} has no prompt {name:?}; it has {known:?}", card.name)
        })?,
    };
    let truncation = Truncation { direction: card.truncation_direction, max_tokens: card.max_tokens };
    Ok(Scope::new(namespace, &card.version, prompt, truncation))
}

/// What all rows have in common, and what has become of them.
struct Import<'a> {
    store: Store,
    share: Share<'a>,
    scope: Scope,
    namespace: Namespace,
    replace: bool,
    outcome: Outcome,
}

impl Import<'_> {
    /// Stores the vectors of some texts, as far as they can be used and are missing.
    fn put(&mut self, lines: &[Line], values: &[f32], first_row: u64) -> anyhow::Result<()> {
        let now = unix_seconds();
        let dims = values.len() / lines.len();
        let mut wanted: Vec<(Key, Embedding)> = Vec::with_capacity(lines.len());
        let mut seen = HashSet::with_capacity(lines.len());
        for ((line, vector), row) in lines.iter().zip(values.chunks_exact(dims)).zip(first_row..) {
            let key = self.scope.key(ContentHash::of(&line.text));
            match Embedding::from_raw(vector) {
                Err(error) => self.outcome.refuse(row, &line.place, error),
                Ok(_) if !seen.insert(key) => self.outcome.kept += 1,
                Ok(embedding) => wanted.push((key, embedding)),
            }
        }
        if !self.replace {
            let keys: Vec<Key> = wanted.iter().map(|(key, _)| *key).collect();
            let cached = self.store.contains_many(&keys, now);
            let mut cached = cached.iter();
            wanted.retain(|_| cached.next().is_some_and(Option::is_none));
            self.outcome.kept += (keys.len() - wanted.len()) as u64;
        }
        let entries: Vec<NewEntry<'_>> = wanted
            .iter()
            .map(|(key, embedding)| NewEntry {
                replace: true,
                quota: self.share.quota(self.namespace.as_str()),
                ..NewEntry::new(*key, &embedding.unit, embedding.norm, &self.namespace)
            })
            .collect();
        self.store.put_many(&entries, now).context("the store cannot take them")?;
        self.share.offer(&entries, now, now);
        self.outcome.imported += entries.len() as u64;
        Ok(())
    }
}

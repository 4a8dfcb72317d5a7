//! What has been learnt of reuse, on disk: the texts that were computed, as token ids in the order in which they came; what they
//! were calibrated to; which certificates are off; whose vector answers for whom.
//!
//! A redb file a model, beside the store. It is behind: what a kill takes from it is learnt again. A file that cannot be read is
//! put aside, and all is learnt anew: until then nothing is reused.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Builder, Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::Alias;
use crate::domain::Key;
use crate::reuse::{Audit, Calibration, CertificateId};
use crate::store::shred;
use crate::store::side::{is_damage, unless_it_panics};

/// redb's own page cache.
const CACHE_BYTES: usize = 4 << 20;

type TextValue<'a> = (&'a [u8; 32], bool, &'a [u8]);
type AliasKey<'a> = (u32, &'a [u8; 32]);
type AliasValue<'a> = (&'a [u8; 32], u64);

/// By a scope's digest its number and its namespace's name.
const SCOPES: TableDefinition<'_, &[u8; 32], (u32, &str)> = TableDefinition::new("scopes v1");
/// By scope and order the texts: key, whether it was drawn, ids.
const TEXTS: TableDefinition<'_, (u32, u64), TextValue<'_>> = TableDefinition::new("texts v1");
/// By scope what it was calibrated to, as JSON.
const CALIBRATIONS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("calibrations v1");
/// By certificate its audit, as JSON.
const AUDITS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audits v1");
/// By scope and key whose vector answers for it, and what says so.
const ALIASES: TableDefinition<'_, AliasKey<'_>, AliasValue<'_>> = TableDefinition::new("aliases v1");

/// A text that was computed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Text {
    pub(super) key: Key,
    pub(super) ids: Arc<[u32]>,
    /// Whether it was computed whatever a gate may have thought of it.
    pub(super) drawn: bool,
}

/// A scope as it was left.
pub(super) struct Kept {
    pub(super) digest: [u8; 32],
    pub(super) number: u32,
    pub(super) namespace: String,
    /// In order, with the number of each.
    pub(super) texts: Vec<(u64, Text)>,
    pub(super) calibration: Option<Calibration>,
    pub(super) audits: Vec<(CertificateId, Audit)>,
    pub(super) aliases: Vec<(Key, Alias)>,
}

impl Kept {
    /// What has to be written for it to be there.
    fn into_changes(self) -> Vec<Change> {
        let Self { digest, number, namespace, texts, calibration, audits, aliases } = self;
        let mut changes = vec![Change::Scope { digest, number, namespace }];
        changes.extend(texts.into_iter().map(|(at, text)| Change::Text { scope: number, at, text }));
        changes.extend(calibration.map(|calibration| {
            let json = serde_json::to_vec(&calibration).expect("numbers can be written");
            Change::Calibration { scope: number, json }
        }));
        changes.extend(audits.into_iter().map(|(certificate, audit)| Change::Audit { certificate, audit }));
        changes.extend(aliases.into_iter().map(|(key, alias)| Change::Alias { scope: number, key, alias }));
        changes
    }
}

/// A change to be written.
pub(super) enum Change {
    Scope { digest: [u8; 32], number: u32, namespace: String },
    Text { scope: u32, at: u64, text: Text },
    Forget { scope: u32, at: u64 },
    Calibration { scope: u32, json: Vec<u8> },
    Audit { certificate: CertificateId, audit: Audit },
    Alias { scope: u32, key: Key, alias: Alias },
    NoAlias { scope: u32, key: Key },
}

impl Change {
    /// Whether it says something of one of these keys.
    fn is_about(&self, keys: &HashSet<Key>) -> bool {
        match self {
            Self::Text { text, .. } => keys.contains(&text.key),
            Self::Alias { key, alias, .. } => keys.contains(key) || keys.contains(&alias.source),
            Self::NoAlias { key, .. } => keys.contains(key),
            Self::Scope { .. } | Self::Forget { .. } | Self::Calibration { .. } | Self::Audit { .. } => false,
        }
    }
}

/// The file.
pub(super) struct Log {
    database: Database,
    path: PathBuf,
}

impl Log {
    /// Opens or makes the file. Answers with a note if a file had to be put aside.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<String>), redb::Error> {
        let of = |database| Self { database, path: path.to_owned() };
        shred::recover(path)?;
        match open(path) {
            Ok(database) => Ok((of(database), None)),
            Err(error) if !is_damage(&error) => Err(error),
            Err(error) => {
                let aside = path.with_extension("redb.damaged");
                std::fs::rename(path, &aside)?;
                let note = format!("{error}; it was put aside as {}, and reuse is learnt anew", aside.display());
                Ok((of(open(path)?), Some(note)))
            }
        }
    }

    /// Everything that is in it. What cannot be understood is left out.
    pub(super) fn read(&self) -> Result<Vec<Kept>, redb::Error> {
        unless_it_panics(|| self.read_all())
    }

    fn read_all(&self) -> Result<Vec<Kept>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let mut kept = Vec::new();
        let (texts, aliases) = (transaction.open_table(TEXTS)?, transaction.open_table(ALIASES)?);
        let (calibrations, audits) = (transaction.open_table(CALIBRATIONS)?, transaction.open_table(AUDITS)?);
        for scope in transaction.open_table(SCOPES)?.iter()? {
            let (digest, value) = scope?;
            let (number, namespace) = value.value();
            let mut scope = Kept {
                digest: *digest.value(),
                number,
                namespace: namespace.to_owned(),
                texts: Vec::new(),
                calibration: None,
                audits: Vec::new(),
                aliases: Vec::new(),
            };
            for text in texts.range((number, 0)..=(number, u64::MAX))? {
                let (at, value) = text?;
                let (key, drawn, bytes) = value.value();
                let ids = bytes.as_chunks::<4>().0.iter().map(|&id| u32::from_le_bytes(id)).collect();
                scope.texts.push((at.value().1, Text { key: Key::from_bytes(*key), ids, drawn }));
            }
            for alias in aliases.range((number, &[0; 32])..=(number, &[255; 32]))? {
                let (key, value) = alias?;
                let (source, certificate) = value.value();
                let alias = Alias { source: Key::from_bytes(*source), certificate: CertificateId(certificate) };
                scope.aliases.push((Key::from_bytes(*key.value().1), alias));
            }
            scope.calibration = calibrations.get(number)?.and_then(|json| serde_json::from_slice(json.value()).ok());
            for certificate in scope.calibration.iter().flat_map(|calibration| &calibration.certificates) {
                let audit = audits.get(certificate.id.0)?.and_then(|json| serde_json::from_slice(json.value()).ok());
                scope.audits.extend(audit.map(|audit| (certificate.id, audit)));
            }
            kept.push(scope);
        }
        Ok(kept)
    }

    /// Writes the file anew with what is in it, but for these keys' texts, and overwrites the old one: redb keeps the bytes of what was
    /// removed until their pages are used again.
    pub(super) fn rewrite(&mut self, but: &HashSet<Key>) -> Result<(), redb::Error> {
        let new = Self { database: open(&shred::begin(&self.path)?)?, path: self.path.clone() };
        let changes = self.read()?.into_iter().flat_map(Kept::into_changes);
        let changes: Vec<Change> = changes.filter(|change| !change.is_about(but)).collect();
        new.write(&changes)?;
        drop(new);
        shred::exchange(&self.path)?;
        self.database = open(&self.path)?;
        Ok(shred::finish(&self.path)?)
    }

    /// Writes changes, in order, all or none. On disk only a while later.
    pub(super) fn write(&self, changes: &[Change]) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut scopes = transaction.open_table(SCOPES)?;
            let (mut texts, mut aliases) = (transaction.open_table(TEXTS)?, transaction.open_table(ALIASES)?);
            let (mut calibrations, mut audits) =
                (transaction.open_table(CALIBRATIONS)?, transaction.open_table(AUDITS)?);
            for change in changes {
                match change {
                    Change::Scope { digest, number, namespace } => {
                        scopes.insert(digest, (*number, namespace.as_str()))?;
                    }
                    Change::Text { scope, at, text } => {
                        let bytes: Vec<u8> = text.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                        texts.insert((*scope, *at), (text.key.as_bytes(), text.drawn, bytes.as_slice()))?;
                    }
                    Change::Forget { scope, at } => {
                        texts.remove((*scope, *at))?;
                    }
                    Change::Calibration { scope, json } => {
                        calibrations.insert(scope, json.as_slice())?;
                    }
                    Change::Audit { certificate, audit } => {
                        let json = serde_json::to_vec(audit).expect("numbers can be written");
                        audits.insert(certificate.0, json.as_slice())?;
                    }
                    Change::Alias { scope, key, alias } => {
                        aliases.insert((*scope, key.as_bytes()), (alias.source.as_bytes(), alias.certificate.0))?;
                    }
                    Change::NoAlias { scope, key } => {
                        aliases.remove((*scope, key.as_bytes()))?;
                    }
                }
            }
        }
        Ok(transaction.commit()?)
    }
}

fn open(path: &Path) -> Result<Database, redb::Error> {
    unless_it_panics(|| {
        let database = Builder::new().set_cache_size(CACHE_BYTES).create(path)?;
        let transaction = database.begin_write()?;
        transaction.open_table(SCOPES)?;
        transaction.open_table(TEXTS)?;
        transaction.open_table(CALIBRATIONS)?;
        transaction.open_table(AUDITS)?;
        transaction.open_table(ALIASES)?;
        transaction.commit()?;
        Ok(database)
    })
}

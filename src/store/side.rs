//! What is not a row: namespaces' numbers, entries' tags, and which key a sequence of tokens has. In redb, one file
//! beside the spaces, four tables a model.
//!
//! Namespaces and tags are on disk before the row that needs them is published. Token keys are written behind
//! ([`super::aliases`]); losing the last of them costs a recomputation. A file that redb cannot open is put aside and
//! begun anew: entries then have no tags and no aliases, and namespaces get numbers that no entry has.

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use redb::{
    Builder, Database, MultimapTableDefinition, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::error::StoreError;
use super::file;
use super::record::NAMESPACE_MAX;
use crate::domain::{Key, Namespace};

/// redb's own page cache.
pub(super) const CACHE_BYTES: usize = 32 << 20;

type Bytes32 = &'static [u8; 32];

/// The side store's tables that are written before an answer.
pub(super) struct Side {
    pub(super) database: Database,
    pub(super) path: PathBuf,
    /// The model's short name: each model has tables of its own.
    model: String,
    namespaces: Mutex<Namespaces>,
}

struct Namespaces {
    numbers: HashMap<String, u32>,
    last: u32,
}

/// For `map_err`: a failure of the side store.
pub(super) fn failed<E: Into<redb::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Side { operation, path, source: Box::new(source.into()) }
}

impl Side {
    /// Opens or makes the side store. Answers with a note if one had to be put aside.
    pub(super) fn open(folder: &Path, model: &str) -> Result<(Self, Option<String>), StoreError> {
        let path = folder.join("side.redb");
        match open_once(&path, model) {
            Ok(side) => Ok((side, None)),
            Err(error) if is_damage(&error) => {
                let note = file::put_aside(&path, &format!("the side store cannot be read ({error})"))?;
                Ok((open_once(&path, model).map_err(failed("create", &path))?, Some(note)))
            }
            Err(error) => Err(failed("open", &path)(error)),
        }
    }

    /// The largest namespace number in use here.
    pub(super) fn last_namespace(&self) -> u32 {
        self.lock_namespaces().last
    }

    /// Makes new namespaces begin above a number that entries have, though the name behind it is lost.
    pub(super) fn reserve_namespaces(&self, number: u32) {
        let mut namespaces = self.lock_namespaces();
        namespaces.last = namespaces.last.max(number);
    }

    /// The number of a namespace; a new name is on disk when this returns.
    pub(super) fn namespace_number(&self, namespace: &Namespace) -> Result<u32, StoreError> {
        let name = namespace.as_str();
        if name.is_empty() {
            return Ok(0);
        }
        let mut namespaces = self.lock_namespaces();
        if let Some(&number) = namespaces.numbers.get(name) {
            return Ok(number);
        }
        if namespaces.last >= NAMESPACE_MAX {
            return Err(StoreError::TooManyNamespaces { name: name.to_owned() });
        }
        let number = namespaces.last + 1;
        self.commit("add a namespace", |transaction| {
            transaction.open_table(namespaces_table(&names(&self.model)))?.insert(name, number)?;
            Ok(())
        })?;
        namespaces.last = number;
        namespaces.numbers.insert(name.to_owned(), number);
        Ok(number)
    }

    /// Adds tags to keys; they are on disk when this returns. `first` runs inside the transaction, before anything.
    pub(super) fn add_tags(&self, tags: &[(Key, &[String])], first: impl FnOnce()) -> Result<(), StoreError> {
        self.commit("add tags", |transaction| {
            first();
            let names = names(&self.model);
            let mut by_key = transaction.open_table(tags_table(&names))?;
            let mut by_tag = transaction.open_multimap_table(tagged_table(&names))?;
            for (key, tags) in tags {
                let old = by_key.get(key.as_bytes())?.map(|list| parse_tags(list.value())).unwrap_or_default();
                let all: BTreeSet<&str> = old.iter().chain(*tags).map(String::as_str).collect();
                if all.len() > old.len() {
                    let list = serde_json::to_string(&all).expect("strings are always JSON");
                    by_key.insert(key.as_bytes(), list.as_str())?;
                }
                for tag in *tags {
                    by_tag.insert(tag.as_str(), key.as_bytes())?;
                }
            }
            Ok(())
        })
    }

    /// A key's tags, in order.
    pub(super) fn tags(&self, key: &Key) -> Result<Vec<String>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let names = names(&self.model);
        let table = match transaction.open_table(tags_table(&names)) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            table => table?,
        };
        Ok(table.get(key.as_bytes())?.map(|list| parse_tags(list.value())).unwrap_or_default())
    }

    /// Takes keys' tags away.
    pub(super) fn remove_tags(&self, transaction: &WriteTransaction, keys: &[Key]) -> Result<(), redb::Error> {
        let names = names(&self.model);
        let mut by_key = transaction.open_table(tags_table(&names))?;
        let mut by_tag = transaction.open_multimap_table(tagged_table(&names))?;
        for key in keys {
            let tags = by_key.remove(key.as_bytes())?.map(|list| parse_tags(list.value())).unwrap_or_default();
            for tag in tags {
                by_tag.remove(tag.as_str(), key.as_bytes())?;
            }
        }
        Ok(())
    }

    fn commit(
        &self,
        operation: &'static str,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let run = || {
            let transaction = self.database.begin_write()?;
            change(&transaction)?;
            transaction.commit()?;
            Ok(())
        };
        run().map_err(failed::<redb::Error>(operation, &self.path))
    }

    fn lock_namespaces(&self) -> std::sync::MutexGuard<'_, Namespaces> {
        // The map is changed last and in one step: a panic elsewhere leaves it whole.
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_once(path: &Path, model: &str) -> Result<Side, redb::Error> {
    // redb may panic on bytes that it did not write; nothing of ours is shared with it yet.
    let open = || -> Result<Side, redb::Error> {
        let database = Builder::new().set_cache_size(CACHE_BYTES).create(path)?;
        let mut numbers = HashMap::new();
        let transaction = database.begin_write()?;
        let names = names(model);
        for item in transaction.open_table(namespaces_table(&names))?.iter()? {
            let (name, number) = item?;
            numbers.insert(name.value().to_owned(), number.value().min(NAMESPACE_MAX));
        }
        transaction.open_table(tags_table(&names))?;
        transaction.open_multimap_table(tagged_table(&names))?;
        transaction.commit()?;
        let last = numbers.values().copied().max().unwrap_or(0);
        let namespaces = Mutex::new(Namespaces { numbers, last });
        Ok(Side { database, path: path.to_owned(), model: model.to_owned(), namespaces })
    };
    catch_unwind(AssertUnwindSafe(open))
        .unwrap_or_else(|_| Err(redb::Error::Corrupted("redb panicked while opening it".to_owned())))
}

/// Whether the file itself is at fault, rather than the disk, the permissions or another process.
fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(error) => {
            matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof)
        }
        redb::Error::Corrupted(_)
        | redb::Error::RepairAborted
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. } => true,
        _ => false,
    }
}

fn parse_tags(list: &str) -> Vec<String> {
    // A list that cannot be read is one that was damaged: the entry has no tags that we know of.
    serde_json::from_str(list).unwrap_or_default()
}

struct Names {
    namespaces: String,
    tags: String,
    tagged: String,
}

fn names(model: &str) -> Names {
    Names {
        namespaces: format!("namespaces {model}"),
        tags: format!("tags {model}"),
        tagged: format!("tagged {model}"),
    }
}

fn namespaces_table(names: &Names) -> TableDefinition<'_, &'static str, u32> {
    TableDefinition::new(&names.namespaces)
}

fn tags_table(names: &Names) -> TableDefinition<'_, Bytes32, &'static str> {
    TableDefinition::new(&names.tags)
}

fn tagged_table(names: &Names) -> MultimapTableDefinition<'_, &'static str, Bytes32> {
    MultimapTableDefinition::new(&names.tagged)
}

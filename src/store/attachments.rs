//! The side store, read by a tool: names of namespaces, tags and payloads, while no server has the folder.
//!
//! redb gives its file to one process at a time, so beside a running server there is nothing to read. What is read here
//! is not changed, with one exception: a side store that was not closed in order is repaired by redb before it can be
//! read at all, as it would be when a server next opens it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use redb::{Builder, Database, ReadOnlyDatabase, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable};

use super::disk::System;
use super::error::StoreError;
use super::file;
use super::lock::FolderLock;
use super::side::{self, Bytes32, CACHE_BYTES, Names, failed, unless_it_panics};
use crate::domain::{Key, ModelVersion};

/// What the side store knows of one model's entries. The folder is locked for as long as this lives.
pub struct Attachments {
    path: PathBuf,
    namespaces: HashMap<u32, String>,
    tags: Option<ReadOnlyTable<Bytes32, &'static str>>,
    payloads: Option<ReadOnlyTable<Bytes32, &'static str>>,
    // Dropped in this order: the lock goes last.
    _database: Option<Opened>,
    _lock: Option<FolderLock>,
}

/// Whichever way redb could be had: the tables live as long.
enum Opened {
    ReadOnly(ReadOnlyDatabase),
    Repaired(Database),
}

impl Attachments {
    /// Opens a folder's side store. A folder without one is one whose entries have no tags and no payloads.
    ///
    /// # Errors
    /// When another process has the folder ([`StoreError::InUse`]), or the side store cannot be read.
    pub fn open(folder: &Path, model: &ModelVersion) -> Result<Self, StoreError> {
        let path = side::path_in(folder);
        let lock = match FolderLock::take(folder) {
            Err(error @ StoreError::InUse { .. }) => return Err(error),
            // On a read-only medium nobody else can take it either.
            lock => lock.ok(),
        };
        let mut attachments =
            Self { path, namespaces: HashMap::new(), tags: None, payloads: None, _database: None, _lock: lock };
        if attachments.path.exists() {
            match unless_it_panics(|| attachments.read(&Names::of(&file::short_name(model)))) {
                Ok(()) => {}
                Err(redb::Error::DatabaseAlreadyOpen) => return Err(StoreError::InUse { folder: folder.to_owned() }),
                Err(error) => return Err(failed("read names", &attachments.path)(error)),
            }
        }
        Ok(attachments)
    }

    fn read(&mut self, names: &Names) -> Result<(), redb::Error> {
        let database = match open_read_only(&self.path) {
            Err(redb::Error::RepairAborted) if self._lock.is_some() => Opened::Repaired(open(&self.path)?),
            opened => Opened::ReadOnly(opened?),
        };
        let transaction = match &database {
            Opened::ReadOnly(database) => database.begin_read()?,
            Opened::Repaired(database) => database.begin_read()?,
        };
        if let Some(table) = open_table(&transaction, names.namespaces())? {
            for item in table.iter()? {
                let (name, number) = item?;
                self.namespaces.insert(number.value(), name.value().to_owned());
            }
        }
        self.tags = open_table(&transaction, names.tags())?;
        self.payloads = open_table(&transaction, names.payloads())?;
        self._database = Some(database);
        Ok(())
    }

    /// The name behind a namespace's number; empty for the default namespace.
    #[must_use]
    pub fn namespace(&self, number: u32) -> Option<&str> {
        if number == 0 { Some("") } else { self.namespaces.get(&number).map(String::as_str) }
    }

    /// An entry's tags, in order.
    ///
    /// # Errors
    /// When the side store cannot be read.
    pub fn tags(&self, key: &Key) -> Result<Vec<String>, StoreError> {
        let Some(table) = &self.tags else { return Ok(Vec::new()) };
        let tags = unless_it_panics(|| Ok(table.get(key.as_bytes())?.map(|list| side::parse_tags(list.value()))));
        Ok(tags.map_err(failed("read tags", &self.path))?.unwrap_or_default())
    }

    /// An entry's payload.
    ///
    /// # Errors
    /// When the side store cannot be read.
    pub fn payload(&self, key: &Key) -> Result<Option<String>, StoreError> {
        let Some(table) = &self.payloads else { return Ok(None) };
        unless_it_panics(|| Ok(table.get(key.as_bytes())?.map(|payload| payload.value().to_owned())))
            .map_err(failed("read payloads", &self.path))
    }
}

fn open_table<K: redb::Key + 'static, V: redb::Value + 'static>(
    transaction: &ReadTransaction,
    definition: redb::TableDefinition<'_, K, V>,
) -> Result<Option<ReadOnlyTable<K, V>>, redb::Error> {
    match transaction.open_table(definition) {
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        table => Ok(Some(table?)),
    }
}

fn open_read_only(path: &Path) -> Result<ReadOnlyDatabase, redb::Error> {
    Ok(Builder::new().set_cache_size(CACHE_BYTES).open_read_only(path)?)
}

fn open(path: &Path) -> Result<Database, redb::Error> {
    Ok(Builder::new().set_cache_size(CACHE_BYTES).open(path)?)
}

/// Whether a side store can be opened as it is; `false`: it can after a repair, which the next open does.
pub(super) fn examine(path: &Path) -> Result<bool, redb::Error> {
    match unless_it_panics(|| open_read_only(path).map(drop)) {
        Ok(()) => Ok(true),
        Err(redb::Error::RepairAborted) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Repairs a side store that nobody has open, and renames it if that cannot be done. Answers with a note then.
pub(super) fn mend(path: &Path) -> Result<Option<String>, StoreError> {
    let mended = unless_it_panics(|| {
        // Answers whether there was anything to repair.
        open(path)?.check_integrity()?;
        Ok(())
    });
    match mended {
        Ok(()) => Ok(None),
        Err(error) if side::is_damage(&error) => {
            file::put_aside(&System, path, &format!("the side store cannot be read ({error})")).map(Some)
        }
        Err(error) => Err(failed("repair", path)(error)),
    }
}

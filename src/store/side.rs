//! What is not a row: namespaces' numbers, entries' tags and payloads, and which key a sequence of tokens has. In redb,
//! one file beside the spaces, six tables a model.
//!
//! Namespaces, tags and payloads are on disk before the row that needs them is published. Token keys are written behind
//! ([`super::aliases`]); losing the last of them costs a recomputation. A file that redb cannot open is put aside and
//! begun anew: entries then have no tags and no aliases, and namespaces get numbers that no entry has. One process has the
//! file open once, whatever the number of its models.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use redb::{
    Builder, Database, MultimapTableDefinition, MultimapValue, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};

use super::condemned::Sentence;
use super::disk::Files;
use super::error::StoreError;
use super::file;
use super::record::NAMESPACE_MAX;
use super::rewrite::{self, LeftOut, Stays};
use super::shred;
use crate::domain::{Key, Namespace, Pattern};

/// redb's own page cache.
pub(super) const CACHE_BYTES: usize = 8 << 20;

/// How long after a failure the database is opened anew.
const MEND_AFTER: Duration = Duration::from_secs(1);

pub(super) type Bytes32 = &'static [u8; 32];

/// A folder's one database, shared by all its spaces.
pub(super) struct SideFile {
    database: RwLock<Option<Database>>,
    /// When redb last refused to go on, if it has since it was opened: after one error of the disk it answers no more.
    broken: Mutex<Option<Instant>>,
    files: Arc<dyn Files>,
    path: PathBuf,
    /// The models whose tables are in use.
    users: Mutex<Vec<User>>,
}

/// A model that uses the database.
struct User {
    model: String,
    namespaces: Weak<Mutex<Namespaces>>,
}

/// One model's tables of the side store that are written before an answer.
pub(super) struct Side {
    file: Arc<SideFile>,
    pub(super) path: PathBuf,
    /// Whether there was nothing about the model in it before.
    pub(super) is_new: bool,
    names: Names,
    namespaces: Arc<Mutex<Namespaces>>,
}

/// What an entry has beside its row.
pub(super) struct Attachment<'a> {
    pub(super) key: Key,
    pub(super) tags: &'a [String],
    pub(super) payload: Option<&'a str>,
    /// Whether what the key has already stays: it belongs to an entry that is there.
    pub(super) keep: bool,
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

/// Where a folder's side store is.
pub(super) fn path_in(folder: &Path) -> PathBuf {
    folder.join("side.redb")
}

impl SideFile {
    /// Opens or makes a folder's side store. Answers with a note if one had to be put aside.
    pub(super) fn open(files: &Arc<dyn Files>, folder: &Path) -> Result<(Arc<Self>, Option<String>), StoreError> {
        let path = path_in(folder);
        shred::recover(&path).map_err(StoreError::io("end the rewriting of", &path))?;
        let (database, note) = match open_database(&**files, &path) {
            Ok(database) => (database, None),
            Err(error) if is_damage(&error) => {
                let (database, note) = begin_anew(&**files, &path, &error)?;
                (database, Some(note))
            }
            Err(error) => return Err(failed("open", &path)(error)),
        };
        // Every time: a file that is there may have been made by a process that ended before it had done this.
        file::sync_folder_of(&**files, &path)?;
        let (database, files) = (RwLock::new(Some(database)), Arc::clone(files));
        let file = Self { database, broken: Mutex::default(), files, path, users: Mutex::default() };
        Ok((Arc::new(file), note))
    }

    /// Works with the database, some damage of which redb answers with a panic. After an error of the disk it is opened anew,
    /// some time later: a full disk may have room again.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        self.mend();
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let result = unless_it_panics(|| database.as_ref().ok_or(redb::Error::DatabaseClosed).and_then(work));
        if let Err(redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed) = &result {
            self.lock_broken().get_or_insert_with(Instant::now);
        }
        result
    }

    /// Changes something; it is on disk when this returns.
    fn write<T>(&self, change: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            let result = change(&transaction)?;
            transaction.commit()?;
            Ok(result)
        })
    }

    /// Opens a database that is broken anew, if that was not tried just now.
    fn mend(&self) {
        if self.lock_broken().is_none_or(|since| since.elapsed() < MEND_AFTER) {
            return;
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let mut broken = self.lock_broken();
        if broken.is_none_or(|since| since.elapsed() < MEND_AFTER) {
            return;
        }
        // The old one has the file locked; it goes first.
        close(database.take());
        match open_database(&*self.files, &self.path) {
            Ok(opened) => {
                tracing::info!(path = %self.path.display(), "the side store was opened anew");
                *database = Some(opened);
                *broken = None;
            }
            Err(_) => *broken = Some(Instant::now()),
        }
    }

    /// Writes the file anew with what stays, and overwrites the old one. Nobody reads or writes meanwhile.
    pub(super) fn rewrite(&self, stays: Stays<'_>) -> Result<LeftOut, StoreError> {
        self.mend();
        let path = &self.path;
        let io = |operation| StoreError::io(operation, path);
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let new = shred::begin(path).map_err(io("remove what was left beside"))?;
        let copied = unless_it_panics(|| {
            let from = database.as_ref().ok_or(redb::Error::DatabaseClosed)?;
            rewrite::copy(from, &open_database(&*self.files, &new)?, stays)
        });
        let left_out = copied.map_err(failed("rewrite", path))?;
        close(database.take());
        let exchanged = shred::exchange(path).map_err(io("rename the rewritten"));
        // Whichever of the two is there now.
        let opened = open_database(&*self.files, path);
        match opened {
            Ok(opened) => *database = Some(opened),
            Err(_) => *self.lock_broken() = Some(Instant::now()),
        }
        exchanged?;
        shred::finish(path).map_err(io("overwrite what was left of"))?;
        Ok(left_out)
    }

    /// Puts the file aside and begins another, with the namespaces of all who use it: only they are known without it.
    fn replace(&self, why: &redb::Error) -> Result<String, StoreError> {
        let note = {
            let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
            close(database.take());
            let (opened, note) = begin_anew(&*self.files, &self.path, why)?;
            *database = Some(opened);
            note
        };
        file::sync_folder_of(&*self.files, &self.path)?;
        for user in self.lock_users().iter() {
            let Some(namespaces) = user.namespaces.upgrade() else { continue };
            let names = Names::of(&user.model);
            let namespaces = namespaces.lock().unwrap_or_else(PoisonError::into_inner);
            self.write(|transaction| {
                make_tables(transaction, &names)?;
                let mut table = transaction.open_table(names.namespaces())?;
                for (name, number) in &namespaces.numbers {
                    table.insert(name.as_str(), number)?;
                }
                Ok(())
            })
            .map_err(failed("begin anew", &self.path))?;
        }
        Ok(note)
    }

    /// Removes what the side store knows of a model that nobody has open.
    pub(super) fn forget(&self, model: &str) -> Result<(), StoreError> {
        let names = Names::of(model);
        self.write(|transaction| {
            transaction.delete_table(names.namespaces())?;
            transaction.delete_table(names.tags())?;
            transaction.delete_multimap_table(names.tagged())?;
            transaction.delete_table(names.payloads())?;
            transaction.delete_table(names.condemned())?;
            transaction.delete_table(TableDefinition::<Bytes32, &[u8; 40]>::new(&tokens_table(model)))?;
            Ok(())
        })
        .map_err(failed("remove a model from", &self.path))
    }

    fn lock_broken(&self) -> MutexGuard<'_, Option<Instant>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_users(&self) -> MutexGuard<'_, Vec<User>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a model's table of token keys.
pub(super) fn tokens_table(model: &str) -> String {
    format!("tokens {model}")
}

impl Side {
    /// Opens or makes a model's tables. Answers with a note if the side store had to be put aside.
    pub(super) fn open(file: &Arc<SideFile>, model: &str) -> Result<(Self, Option<String>), StoreError> {
        let path = file.path.clone();
        let (opened, note) = match open_tables(file, model) {
            Ok(opened) => (opened, None),
            Err(error) if is_damage(&error) => {
                let note = file.replace(&error)?;
                (open_tables(file, model).map_err(failed("create", &path))?, Some(note))
            }
            Err(error) => return Err(failed("open", &path)(error)),
        };
        let (numbers, is_new) = opened;
        let last = numbers.values().copied().max().unwrap_or(0);
        let namespaces = Arc::new(Mutex::new(Namespaces { numbers, last }));
        let mut users = file.lock_users();
        users.retain(|user| user.namespaces.strong_count() > 0);
        users.push(User { model: model.to_owned(), namespaces: Arc::downgrade(&namespaces) });
        drop(users);
        Ok((Self { file: Arc::clone(file), path, is_new, names: Names::of(model), namespaces }, note))
    }

    /// Bytes of memory that redb's pages may take, of a file that occupies so many: what was read or written is kept until
    /// the cache is full. (redb's own count, `CacheStats::used_bytes`, overflows while others read, in 4.4.) A quarter more for
    /// the holes beside pages that come and go, which is what glibc's malloc was measured to need (`endurance::memory`).
    pub(super) fn memory_bytes(occupied: u64) -> u64 {
        let pages = occupied.min(CACHE_BYTES as u64);
        pages + pages / 4
    }

    /// Works with the database.
    pub(super) fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        self.file.with(work)
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
            transaction.open_table(self.names.namespaces())?.insert(name, number)?;
            Ok(())
        })?;
        namespaces.last = number;
        namespaces.numbers.insert(name.to_owned(), number);
        Ok(number)
    }

    /// Writes what entries have beside their rows; it is on disk when this returns. `first` runs inside the
    /// transaction, before anything.
    pub(super) fn attach(&self, attachments: &[Attachment<'_>], first: impl FnOnce()) -> Result<(), StoreError> {
        self.commit("write tags or payloads", |transaction| {
            first();
            let mut by_key = transaction.open_table(self.names.tags())?;
            let mut by_tag = transaction.open_multimap_table(self.names.tagged())?;
            let mut payloads = transaction.open_table(self.names.payloads())?;
            for attachment in attachments {
                let key = attachment.key.as_bytes();
                // Those of an entry that is gone are no longer anybody's, though they may not have been removed yet.
                let old = by_key.get(key)?.map(|list| parse_tags(list.value())).unwrap_or_default();
                let kept: &[String] = if attachment.keep { &old } else { &[] };
                let all: BTreeSet<&str> = kept.iter().chain(attachment.tags).map(String::as_str).collect();
                for tag in old.iter().filter(|tag| !all.contains(tag.as_str())) {
                    by_tag.remove(tag.as_str(), key)?;
                }
                if !all.iter().copied().eq(old.iter().map(String::as_str)) {
                    let list = serde_json::to_string(&all).expect("strings are always JSON");
                    by_key.insert(key, list.as_str())?;
                }
                for tag in attachment.tags {
                    by_tag.insert(tag.as_str(), key)?;
                }
                match attachment.payload {
                    Some(payload) => {
                        payloads.insert(key, payload)?;
                    }
                    None if !attachment.keep => {
                        payloads.remove(key)?;
                    }
                    None => {}
                }
            }
            Ok(())
        })
    }

    /// A key's tags, in order.
    pub(super) fn tags(&self, key: &Key) -> Result<Vec<String>, redb::Error> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(self.names.tags())?;
            Ok(table.get(key.as_bytes())?.map(|list| parse_tags(list.value())).unwrap_or_default())
        })
    }

    /// A key's payload.
    pub(super) fn payload(&self, key: &Key) -> Result<Option<String>, redb::Error> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(self.names.payloads())?;
            Ok(table.get(key.as_bytes())?.map(|payload| payload.value().to_owned()))
        })
    }

    /// How many keys a tag was given to. Some of their entries may be gone.
    pub(super) fn count_with_tag(&self, tag: &str) -> Result<u64, redb::Error> {
        self.with(|database| {
            let table = database.begin_read()?.open_multimap_table(self.names.tagged())?;
            Ok(table.get(tag)?.len())
        })
    }

    /// How many of the keys have which tag, after so many tags have been read; and how many keys were left then.
    pub(super) fn count_tags(
        &self,
        keys: &[Key],
        tags_max: usize,
    ) -> Result<(HashMap<String, u64>, usize), redb::Error> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(self.names.tags())?;
            let (mut counts, mut read) = (HashMap::new(), 0);
            for (place, key) in keys.iter().enumerate() {
                if read >= tags_max {
                    return Ok((counts, keys.len() - place));
                }
                let Some(list) = table.get(key.as_bytes())? else { continue };
                for tag in parse_tags(list.value()) {
                    read += 1;
                    *counts.entry(tag).or_default() += 1;
                }
            }
            Ok((counts, 0))
        })
    }

    /// What is condemned and not erased yet, by number, the oldest first. What cannot be read is nothing.
    pub(super) fn sentences(&self) -> Result<Vec<(u64, Sentence)>, StoreError> {
        let read = self.with(|database| {
            let table = database.begin_read()?.open_table(self.names.condemned())?;
            let mut sentences = Vec::new();
            for row in table.iter()? {
                let (number, sentence) = row?;
                sentences
                    .extend(serde_json::from_str(sentence.value()).ok().map(|sentence| (number.value(), sentence)));
            }
            Ok(sentences)
        });
        read.map_err(failed("read", &self.path))
    }

    /// Adds a sentence. It is on disk when this returns, under the number that is answered.
    pub(super) fn add_sentence(&self, sentence: &Sentence) -> Result<u64, StoreError> {
        let mut number = 0;
        self.commit("condemn entries", |transaction| {
            let mut table = transaction.open_table(self.names.condemned())?;
            number = table.last()?.map_or(1, |(last, _)| last.value() + 1);
            let text = serde_json::to_string(sentence).expect("strings and numbers are always JSON");
            table.insert(number, text.as_str())?;
            Ok(())
        })?;
        Ok(number)
    }

    /// Takes a sentence away that is carried out.
    pub(super) fn remove_sentence(&self, number: u64) -> Result<(), StoreError> {
        self.commit("forget condemned entries", |transaction| {
            transaction.open_table(self.names.condemned())?.remove(number)?;
            Ok(())
        })
    }

    /// The tags that keys have or had and that fit.
    pub(super) fn tags_where(&self, fits: impl Fn(&str) -> bool) -> Result<Vec<String>, redb::Error> {
        self.with(|database| {
            let table = database.begin_read()?.open_multimap_table(self.names.tagged())?;
            let mut found = Vec::new();
            for item in table.range::<&str>(..)? {
                let (tag, _) = item?;
                if fits(tag.value()) {
                    found.push(tag.value().to_owned());
                }
            }
            Ok(found)
        })
    }

    /// The keys that a tag was given to. Some of their entries may be gone.
    pub(super) fn keys_with_tag(&self, tag: &str) -> Result<Vec<Key>, redb::Error> {
        self.with(|database| {
            let table = database.begin_read()?.open_multimap_table(self.names.tagged())?;
            table.get(tag)?.map(|key| Ok(Key::from_bytes(*key?.value()))).collect()
        })
    }

    /// The keys that a tag which matches was given to, in no order, each once.
    pub(super) fn keys_with_tag_like(&self, pattern: &Pattern) -> Result<Vec<Key>, redb::Error> {
        let mut found = HashSet::new();
        self.with_tags_like(pattern, |keys| {
            for key in keys {
                found.insert(Key::from_bytes(*key?.value()));
            }
            Ok(())
        })?;
        Ok(found.into_iter().collect())
    }

    /// How many keys the tags that match were given to, each tag by itself. Some of their entries may be gone.
    pub(super) fn count_with_tag_like(&self, pattern: &Pattern) -> Result<u64, redb::Error> {
        let mut count = 0;
        self.with_tags_like(pattern, |keys| {
            count += keys.len();
            Ok(())
        })?;
        Ok(count)
    }

    /// Shows the keys of each tag that matches.
    fn with_tags_like(
        &self,
        pattern: &Pattern,
        mut show: impl FnMut(MultimapValue<'_, Bytes32>) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        let prefix = pattern.literal_prefix();
        self.with(|database| {
            let table = database.begin_read()?.open_multimap_table(self.names.tagged())?;
            for item in table.range(prefix..)? {
                let (tag, keys) = item?;
                if !tag.value().starts_with(prefix) {
                    break;
                }
                if pattern.matches(tag.value()) {
                    show(keys)?;
                }
            }
            Ok(())
        })
    }

    /// Takes away what keys had.
    pub(super) fn detach(&self, transaction: &WriteTransaction, keys: &[Key]) -> Result<(), redb::Error> {
        let mut by_key = transaction.open_table(self.names.tags())?;
        let mut by_tag = transaction.open_multimap_table(self.names.tagged())?;
        let mut payloads = transaction.open_table(self.names.payloads())?;
        for key in keys {
            let tags = by_key.remove(key.as_bytes())?.map(|list| parse_tags(list.value())).unwrap_or_default();
            for tag in tags {
                by_tag.remove(tag.as_str(), key.as_bytes())?;
            }
            payloads.remove(key.as_bytes())?;
        }
        Ok(())
    }

    /// The name behind a namespace's number.
    pub(super) fn namespace_name(&self, number: u32) -> Option<String> {
        if number == 0 {
            return Some(String::new());
        }
        let namespaces = self.lock_namespaces();
        namespaces.numbers.iter().find(|&(_, &other)| other == number).map(|(name, _)| name.clone())
    }

    /// The numbers of the namespaces that have had entries and whose names are wanted, in ascending order.
    pub(super) fn namespaces(&self, wanted: impl Fn(&str) -> bool) -> Vec<u32> {
        let namespaces = self.lock_namespaces();
        let named = namespaces.numbers.iter().filter(|(name, _)| wanted(name)).map(|(_, &number)| number);
        let mut numbers: Vec<u32> = wanted("").then_some(0).into_iter().chain(named).collect();
        numbers.sort_unstable();
        numbers
    }

    /// The number of a namespace that has had entries.
    pub(super) fn known_namespace(&self, namespace: &Namespace) -> Option<u32> {
        match namespace.as_str() {
            "" => Some(0),
            name => self.lock_namespaces().numbers.get(name).copied(),
        }
    }

    fn commit(
        &self,
        operation: &'static str,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        self.write(change).map_err(failed::<redb::Error>(operation, &self.path))
    }

    /// Changes something; it is on disk when this returns.
    pub(super) fn write<T>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        self.file.write(change)
    }

    fn lock_namespaces(&self) -> MutexGuard<'_, Namespaces> {
        // The map is changed last and in one step: a panic elsewhere leaves it whole.
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SideFile {
    fn drop(&mut self) {
        close(self.database.get_mut().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// redb may panic on pages that it did not write, also when it ends.
fn close(database: Option<Database>) {
    if catch_unwind(AssertUnwindSafe(|| drop(database))).is_err() {
        tracing::warn!(
            "redb panicked while closing the side store: it is damaged, and repaired or put aside at the next start"
        );
    }
}

/// Gives the unused pages of a side store that nobody has open back to the system.
pub(super) fn compact(path: &Path) -> Result<(), StoreError> {
    let run = || -> Result<(), redb::Error> {
        let mut database = Builder::new().set_cache_size(CACHE_BYTES).open(path)?;
        // Each round moves what it can; false: there was nothing left to move.
        while database.compact()? {}
        Ok(())
    };
    run().map_err(failed::<redb::Error>("compact", path))
}

/// redb may panic on bytes that it did not write.
fn open_database(files: &dyn Files, path: &Path) -> Result<Database, redb::Error> {
    let open = || Ok(files.open_database(Builder::new().set_cache_size(CACHE_BYTES), path)?);
    unless_it_panics(open)
}

/// Puts a file that cannot be used aside and makes an empty one.
fn begin_anew(files: &dyn Files, path: &Path, why: &redb::Error) -> Result<(Database, String), StoreError> {
    let note = file::put_aside(files, path, &format!("the side store cannot be read ({why})"))?;
    Ok((open_database(files, path).map_err(failed("create", path))?, note))
}

/// Reads a model's namespaces, and makes what tables there are none of. Answers whether there were none.
fn open_tables(file: &SideFile, model: &str) -> Result<(HashMap<String, u32>, bool), redb::Error> {
    file.write(|transaction| {
        let names = Names::of(model);
        let is_new = !transaction.list_tables()?.any(|table| redb::TableHandle::name(&table) == names.namespaces);
        make_tables(transaction, &names)?;
        let mut numbers = HashMap::new();
        for item in transaction.open_table(names.namespaces())?.iter()? {
            let (name, number) = item?;
            numbers.insert(name.value().to_owned(), number.value().min(NAMESPACE_MAX));
        }
        Ok((numbers, is_new))
    })
}

fn make_tables(transaction: &WriteTransaction, names: &Names) -> Result<(), redb::Error> {
    transaction.open_table(names.namespaces())?;
    transaction.open_table(names.tags())?;
    transaction.open_multimap_table(names.tagged())?;
    transaction.open_table(names.payloads())?;
    transaction.open_table(names.condemned())?;
    Ok(())
}

/// Work on a database, some damage of which redb answers with a panic.
pub(crate) fn unless_it_panics<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(redb::Error::Corrupted("redb panicked on what it read".to_owned())))
}

/// Whether a database is not what was written, rather than out of reach: the file itself is at fault, and not the disk, the
/// permissions or another process.
pub(crate) fn is_damage(error: &redb::Error) -> bool {
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

pub(super) fn parse_tags(list: &str) -> Vec<String> {
    // A list that cannot be read is one that was damaged: the entry has no tags that we know of.
    serde_json::from_str(list).unwrap_or_default()
}

/// The tables' names: each model has tables of its own.
pub(super) struct Names {
    namespaces: String,
    tags: String,
    tagged: String,
    payloads: String,
    condemned: String,
}

impl Names {
    pub(super) fn of(model: &str) -> Self {
        Self {
            namespaces: format!("namespaces {model}"),
            tags: format!("tags {model}"),
            tagged: format!("tagged {model}"),
            payloads: format!("payloads {model}"),
            condemned: format!("condemned {model}"),
        }
    }

    pub(super) fn namespaces(&self) -> TableDefinition<'_, &'static str, u32> {
        TableDefinition::new(&self.namespaces)
    }

    pub(super) fn tags(&self) -> TableDefinition<'_, Bytes32, &'static str> {
        TableDefinition::new(&self.tags)
    }

    fn tagged(&self) -> MultimapTableDefinition<'_, &'static str, Bytes32> {
        MultimapTableDefinition::new(&self.tagged)
    }

    pub(super) fn payloads(&self) -> TableDefinition<'_, Bytes32, &'static str> {
        TableDefinition::new(&self.payloads)
    }

    fn condemned(&self) -> TableDefinition<'_, u64, &'static str> {
        TableDefinition::new(&self.condemned)
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::System;
    use super::*;

    #[test]
    fn a_side_store_begun_anew_for_one_model_keeps_the_namespaces_of_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let files: Arc<dyn Files> = Arc::new(System);
        let open = || SideFile::open(&files, folder.path()).unwrap().0;
        let name = |name: &str| Namespace::new(name).unwrap();
        let file = open();
        let a = Side::open(&file, "a").unwrap().0;
        let numbers = ["m", "n"].map(|space| a.namespace_number(&name(space)).unwrap());
        let note = file.replace(&redb::Error::Corrupted("for a test".to_owned())).unwrap();
        assert!(note.contains("for a test"), "{note}");
        let b = Side::open(&file, "b").unwrap().0;
        assert!(b.is_new && b.last_namespace() == 0);
        let key = Key::from_bytes([1; 32]);
        let tags = ["t".to_owned()];
        a.attach(&[Attachment { key, tags: &tags, payload: None, keep: false }], || {}).unwrap();
        drop((a, b, file));
        let file = open();
        let a = Side::open(&file, "a").unwrap().0;
        assert_eq!((["m", "n"].map(|space| a.known_namespace(&name(space)).unwrap()), a.is_new), (numbers, false));
        assert_eq!(a.keys_with_tag("t").unwrap(), [key]);
        file.forget("a").unwrap();
        assert!(Side::open(&file, "a").unwrap().0.is_new);
    }
}

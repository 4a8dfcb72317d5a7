//! Token keys: which stored key a sequence of token ids has. Written behind the answer, in group commits.
//!
//! What is not yet on disk is found in memory, so nothing is missed while it waits. The waiting room is bounded: a
//! writer that finds it full waits for the next commit. While redb fails (a full disk, say), aliases are not kept, the store
//! says that it is degraded, and texts are found by their own keys as ever; it is tried again every second.
//!
//! The table is bounded too: past its limit, aliases of entries that are gone are dropped.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::{Database, ReadableDatabase, ReadableTableMetadata, TableDefinition, WriteTransaction};
use xxhash_rust::xxh3::xxh3_64;

use super::error::StoreError;
use super::side::{self, Side};
use crate::domain::{Key, TokenKey};
use crate::urgency::{BACKGROUND, stand_back};

/// The most token keys that wait to be written.
const PENDING_MAX: usize = 65_536;
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long they gather before a commit.
const GATHER: Duration = Duration::from_millis(100);

/// A key and the checksum that ties it to its token key: redb checks pages only when it repairs, and a wrong key here
/// would be a wrong vector.
type Target = [u8; 40];

/// Says whether an entry is still there.
pub(super) type IsLive = Box<dyn Fn(&Key) -> bool + Send + Sync>;

/// Token keys, on disk and on their way.
pub(super) struct Aliases {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    side: Arc<Side>,
    table: String,
    entries_max: u64,
    is_live: IsLive,
    state: Mutex<State>,
    /// There is work, or the end has come.
    work: Condvar,
    /// A commit has ended.
    committed: Condvar,
}

#[derive(Default)]
struct State {
    pending: HashMap<TokenKey, Key>,
    committing: Arc<HashMap<TokenKey, Key>>,
    /// Keys whose tags and payloads shall go.
    detached: HashSet<Key>,
    /// How much was ever taken, and how much of that is on disk.
    taken: u64,
    written: u64,
    /// Why nothing can be written at present.
    failure: Option<String>,
    /// How many wait for what they have given to be written.
    hurried: usize,
    stopped: bool,
}

impl State {
    fn is_settled(&self) -> bool {
        self.written == self.taken
    }

    /// Gives up what waits: it can't be written.
    fn fail(&mut self, side: &Side, error: &redb::Error) {
        let path = side.path.display();
        if self.failure.is_none() {
            tracing::error!(%path, %error, "the side store failed: token keys are not kept");
        }
        self.failure = Some(format!("the side store {path} failed: {error}"));
        self.pending.clear();
        self.committing = Arc::default();
        self.detached.clear();
        self.written = self.taken;
    }

    fn is_urgent(&self) -> bool {
        self.stopped || self.hurried > 0 || self.pending.len() + self.detached.len() >= PENDING_MAX / 2
    }
}

impl Aliases {
    pub(super) fn start(side: Arc<Side>, model: &str, entries_max: u64, is_live: IsLive) -> Result<Self, StoreError> {
        let path = side.path.clone();
        let shared = Arc::new(Shared {
            side,
            table: side::tokens_table(model),
            entries_max,
            is_live,
            state: Mutex::default(),
            work: Condvar::new(),
            committed: Condvar::new(),
        });
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("store-aliases".into())
            .spawn(move || {
                stand_back(BACKGROUND);
                worker.run();
            })
            .map_err(StoreError::io("start the thread that writes token keys to", &path))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes token keys to be written; waits if too many wait already.
    pub(super) fn add(&self, aliases: impl IntoIterator<Item = (TokenKey, Key)>) {
        let mut state = self.shared.lock();
        for (token_key, key) in aliases {
            while state.pending.len() >= PENDING_MAX && state.failure.is_none() {
                state = self.shared.committed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.failure.is_some() {
                return;
            }
            state.pending.insert(token_key, key);
            state.taken += 1;
        }
        self.shared.work.notify_one();
    }

    /// Takes keys whose tags and payloads shall be removed from the side store.
    pub(super) fn detach(&self, keys: Vec<Key>) {
        if keys.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        // What can't be removed now stays: nobody believes it, for no record speaks of it.
        if state.failure.is_none() {
            state.taken += 1;
            state.detached.extend(keys);
            self.shared.work.notify_one();
        }
    }

    /// Keeps the tags and payloads of keys that have come back. To be called inside a write transaction: then the thread either has
    /// removed them already or will not.
    pub(super) fn keep_attached(&self, keys: impl IntoIterator<Item = Key>) {
        let mut state = self.shared.lock();
        keys.into_iter().for_each(|key| {
            state.detached.remove(&key);
        });
    }

    /// The key that a sequence of tokens was stored under.
    pub(super) fn find(&self, token_key: &TokenKey) -> Option<Key> {
        {
            let state = self.shared.lock();
            if let Some(key) = state.pending.get(token_key).or_else(|| state.committing.get(token_key)) {
                return Some(*key);
            }
        }
        self.shared.read(token_key).unwrap_or_else(|error| {
            tracing::warn!(%error, "a token key cannot be read: taken as unknown");
            None
        })
    }

    /// Returns when everything taken so far is on disk, or will never be.
    pub(super) fn settle(&self) {
        let mut state = self.shared.lock();
        state.hurried += 1;
        let wanted = state.taken;
        self.shared.work.notify_one();
        while state.failure.is_none() && state.written < wanted {
            state = self.shared.committed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.hurried -= 1;
    }

    /// Bytes of memory for what waits: each line of a map with the room that maps leave.
    pub(super) fn memory_bytes(&self) -> u64 {
        let state = self.shared.lock();
        let lines = state.pending.capacity() + state.committing.capacity();
        let keys = state.detached.capacity();
        ((lines * size_of::<(TokenKey, Key)>() + keys * size_of::<Key>()) * 8 / 7) as u64
    }

    pub(super) fn pending(&self) -> usize {
        let state = self.shared.lock();
        state.pending.len() + state.committing.len()
    }

    /// Why token keys are not written at present.
    pub(super) fn failure(&self) -> Option<String> {
        self.shared.lock().failure.clone()
    }
}

impl Drop for Aliases {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.work.notify_all();
        if let Some(thread) = self.thread.take() {
            // The thread catches redb's panics, and has none of its own to tell of.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The maps are changed by single calls: a panic elsewhere leaves them whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            let mut state = self.lock();
            if state.stopped && (state.failure.is_some() || state.is_settled()) {
                return;
            }
            if state.failure.is_some() {
                let waited = self.work.wait_timeout_while(state, RETRY, |state| !state.stopped);
                if waited.unwrap_or_else(PoisonError::into_inner).0.stopped {
                    return;
                }
            } else if state.is_settled() {
                drop(self.work.wait(state).unwrap_or_else(PoisonError::into_inner));
                continue;
            } else {
                let waited = self.work.wait_timeout_while(state, GATHER, |state| !state.is_urgent());
                drop(waited.unwrap_or_else(PoisonError::into_inner));
            }
            let result = self.commit();
            state = self.lock();
            match result {
                Ok(()) if state.failure.take().is_some() => {
                    tracing::info!(path = %self.side.path.display(), "the side store can be written again");
                }
                Ok(()) => {}
                Err(error) => state.fail(&self.side, &error),
            }
            drop(state);
            self.committed.notify_all();
        }
    }

    fn commit(&self) -> Result<(), redb::Error> {
        let covers = self.side.write(|transaction| self.write(transaction))?;
        let mut state = self.lock();
        state.committing = Arc::default();
        state.written = covers;
        Ok(())
    }

    /// Writes what waits. Answers with the number of the last that was taken.
    fn write(&self, transaction: &WriteTransaction) -> Result<u64, redb::Error> {
        // The transaction first, the batch second: whoever holds a transaction can still take keys out of the batch.
        let (batch, detached, covers) = {
            let mut state = self.lock();
            state.committing = Arc::new(std::mem::take(&mut state.pending));
            (Arc::clone(&state.committing), std::mem::take(&mut state.detached), state.taken)
        };
        {
            let mut table = transaction.open_table(self.definition())?;
            // Of an entry that is gone by now nothing is to be left.
            for (token_key, key) in batch.iter().filter(|(_, key)| (self.is_live)(key)) {
                table.insert(token_key.as_bytes(), &target(token_key, key))?;
            }
            if table.len()? > self.entries_max {
                table.retain(|_, target| key_of(target).is_some_and(|key| (self.is_live)(&key)))?;
            }
            // Many spellings of few entries: the rest goes by the order of their hashes, which is by chance.
            let mut excess = table.len()?.saturating_sub(self.entries_max);
            if excess > 0 {
                table.retain(|_, _| {
                    let keep = excess == 0;
                    excess = excess.saturating_sub(1);
                    keep
                })?;
            }
        }
        if !detached.is_empty() {
            self.side.detach(transaction, &Vec::from_iter(detached))?;
        }
        Ok(covers)
    }

    fn read(&self, token_key: &TokenKey) -> Result<Option<Key>, redb::Error> {
        self.side.with(|database| self.read_from(database, token_key))
    }

    fn read_from(&self, database: &Database, token_key: &TokenKey) -> Result<Option<Key>, redb::Error> {
        let transaction = database.begin_read()?;
        let table = match transaction.open_table(self.definition()) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        let found = table.get(token_key.as_bytes())?;
        Ok(found.and_then(|found| {
            let key = key_of(found.value())?;
            (target(token_key, &key) == *found.value()).then_some(key)
        }))
    }

    fn definition(&self) -> TableDefinition<'_, &'static [u8; 32], &'static Target> {
        TableDefinition::new(&self.table)
    }
}

fn target(token_key: &TokenKey, key: &Key) -> Target {
    let mut both = [0; 64];
    both[..32].copy_from_slice(token_key.as_bytes());
    both[32..].copy_from_slice(key.as_bytes());
    let mut target = [0; 40];
    target[..32].copy_from_slice(key.as_bytes());
    target[32..].copy_from_slice(&xxh3_64(&both).to_le_bytes());
    target
}

fn key_of(target: &Target) -> Option<Key> {
    target[..32].try_into().ok().map(Key::from_bytes)
}

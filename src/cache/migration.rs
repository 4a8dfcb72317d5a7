//! A shadow migration: what is asked of one model is also embedded under another, in the background, until the other can
//! take over.
//!
//! ```text
//! request ─► A answers ─► observed: does B have it? ─ yes ─► counted as covered
//!                                                  └ no ──► last in, first out ─► B, a few at a time, when both are quiet
//! ```
//!
//! Promises: A's answers wait for nothing of B; the queue is bounded and what it drops is counted; an entry of B has its
//! entry of A's namespace, tags, payload, pin and end of life. Texts are not stored, so only what is asked for, or
//! given by a list, can be embedded again.
//! Never removes anything, and never decides who answers: that is the catalogue's.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{Notify, Semaphore};

use super::{Answer, Cache, Error, Inputs, Payload, Request};
use crate::domain::{Key, Lane, Namespace, Status, TruncationDirection};
use crate::store::Entry;

/// The most texts that wait to be embedded under the other model, and the most bytes of them.
const QUEUE_TEXTS_MAX: usize = 16_384;
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// How many texts are given to the other model at a time: few, so that one who asks waits for little.
const BATCH_TEXTS: usize = 64;

/// How many requests may be under observation at a time; more are not observed.
const OBSERVERS_MAX: usize = 64;

/// How long a batch waits for both models to be quiet before it goes all the same, and how often it looks.
const QUIET_WITHIN: Duration = Duration::from_secs(1);
const QUIET_POLL: Duration = Duration::from_millis(5);

/// Of how many of the last hits the covered share is told.
const RECENT_HITS: usize = 10_000;

/// Over how long the rate is told.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// A migration that runs until it is stopped.
pub struct Migration {
    from: Cache,
    to: Cache,
    state: Mutex<State>,
    arrived: Notify,
    observers: Arc<Semaphore>,
    stopped: AtomicBool,
    started: Instant,
    observed: AtomicU64,
    unobserved: AtomicU64,
    present: AtomicU64,
    done: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

#[derive(Default)]
struct State {
    /// The newest at the back.
    queue: VecDeque<Wish>,
    /// Those that wait, and those that are being embedded.
    queued: HashSet<Key>,
    queued_bytes: usize,
    /// Of each of the last hits whether the other model had it.
    recent: VecDeque<bool>,
    recent_covered: usize,
    /// How many were done when, for the rate.
    paces: VecDeque<(Instant, u64)>,
    failure: Option<String>,
}

/// How far a migration is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// The model that answers.
    pub from: String,
    /// The model that is being filled.
    pub to: String,
    /// Entries of the one.
    pub entries_from: u64,
    /// Entries of the other.
    pub entries_to: u64,
    /// Texts that were asked for and looked at.
    pub observed: u64,
    /// Texts embedded under the other since the start.
    pub done: u64,
    /// Texts that the other had already when they were asked for.
    pub present: u64,
    /// Texts that wait.
    pub queued: usize,
    /// Texts that found no room to wait, the oldest first, or were not looked at because too much was asked at once.
    pub dropped: u64,
    /// Texts that the other could not embed.
    pub failed: u64,
    /// Why the last of them could not.
    pub failure: Option<String>,
    /// How many of the answering model's last hits are counted in `covered`.
    pub recent_hits: usize,
    /// Share of them that the other model had when they were asked for; `None` before the first.
    pub covered: Option<f64>,
    /// Texts embedded under the other in a second, of the last minute.
    pub texts_per_second: f64,
    /// How long it has been running.
    pub running_seconds: u64,
}

/// What came of texts that were given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Embedded {
    /// How many there were.
    pub texts: usize,
    /// Those that the other model had already.
    pub cached: usize,
    /// Those that it has now.
    pub computed: usize,
    /// Those that it could not embed.
    pub failed: usize,
}

/// A text to be embedded under the other model, and what its entry is to have.
struct Wish {
    /// Under the other model.
    key: Key,
    /// Under this one.
    key_from: Key,
    text: String,
    common: Common,
    payload: Option<String>,
}

/// What texts that are embedded together have in common.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Common {
    namespace: String,
    prompt_name: Option<String>,
    direction: Option<TruncationDirection>,
    tags: Vec<String>,
    expires: Option<u32>,
    pinned: bool,
}

/// Texts that are embedded together, and the payload of each.
#[derive(Default)]
struct Group {
    texts: Vec<Cow<'static, str>>,
    payloads: Vec<Option<String>>,
}

/// What a request asked, owned: it may be gone.
struct Asked {
    texts: Vec<String>,
    namespace: Namespace,
    prompt_name: Option<String>,
    direction: Option<TruncationDirection>,
}

impl Asked {
    fn request<'a>(&'a self, texts: &'a [Cow<'a, str>]) -> Request<'a> {
        Request {
            namespace: self.namespace.clone(),
            prompt_name: self.prompt_name.as_deref(),
            direction: self.direction,
            ..Request::new(Inputs::Texts(texts))
        }
    }

    fn wish(&self, index: usize, key: Key, entry: Option<&Entry>, from: &Cache, key_from: &Key) -> Wish {
        Wish {
            key,
            key_from: *key_from,
            text: self.texts[index].clone(),
            payload: entry.and_then(|_| from.payload(key_from)),
            common: Common {
                namespace: self.namespace.as_str().to_owned(),
                prompt_name: self.prompt_name.clone(),
                direction: self.direction,
                tags: entry.map(|_| from.tags(key_from)).unwrap_or_default(),
                expires: entry.and_then(|entry| entry.expires),
                pinned: entry.is_some_and(|entry| entry.pinned),
            },
        }
    }
}

impl Migration {
    /// Begins one. Needs a Tokio runtime.
    pub(super) fn start(from: Cache, to: Cache) -> Arc<Self> {
        let migration = Arc::new(Self {
            from,
            to,
            state: Mutex::default(),
            arrived: Notify::new(),
            observers: Arc::new(Semaphore::new(OBSERVERS_MAX)),
            stopped: AtomicBool::new(false),
            started: Instant::now(),
            observed: AtomicU64::new(0),
            unobserved: AtomicU64::new(0),
            present: AtomicU64::new(0),
            done: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        tokio::spawn(Arc::clone(&migration).run());
        migration
    }

    /// Ends it: what waits is dropped, what is under way is finished.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Relaxed);
        let mut state = self.lock();
        state.queue.clear();
        state.queued.clear();
        state.queued_bytes = 0;
        drop(state);
        self.arrived.notify_one();
    }

    /// The model that answers.
    #[must_use]
    pub fn from(&self) -> &Cache {
        &self.from
    }

    /// The model that is being filled.
    #[must_use]
    pub fn to(&self) -> &Cache {
        &self.to
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let (from, to) = (self.from.stats(), self.to.stats());
        let state = self.lock();
        let rate = || {
            let (then, before) = state.paces.iter().find(|(then, _)| then.elapsed() <= RATE_WINDOW)?;
            let seconds = then.elapsed().as_secs_f64();
            (seconds > 0.0).then(|| (self.done.load(Relaxed) - before) as f64 / seconds)
        };
        Progress {
            from: from.model,
            to: to.model,
            entries_from: from.store.entries,
            entries_to: to.store.entries,
            observed: self.observed.load(Relaxed),
            done: self.done.load(Relaxed),
            present: self.present.load(Relaxed),
            queued: state.queue.len(),
            dropped: self.dropped.load(Relaxed) + self.unobserved.load(Relaxed),
            failed: self.failed.load(Relaxed),
            failure: state.failure.clone(),
            recent_hits: state.recent.len(),
            covered: (!state.recent.is_empty()).then(|| state.recent_covered as f64 / state.recent.len() as f64),
            texts_per_second: rate().unwrap_or(0.0),
            running_seconds: self.started.elapsed().as_secs(),
        }
    }

    /// Takes note of what was answered. Copies the texts, and waits for nothing.
    pub fn observe(self: &Arc<Self>, asked: &Request<'_>, answer: &Answer) {
        // Token ids are one model's own, and what was not cached is not to be.
        let Inputs::Texts(texts) = asked.inputs else { return };
        if answer.freshness.bypassed || self.stopped.load(Relaxed) {
            return;
        }
        let Ok(permit) = Arc::clone(&self.observers).try_acquire_owned() else {
            self.unobserved.fetch_add(texts.len() as u64, Relaxed);
            return;
        };
        let asked = owned(asked, texts);
        let items: Vec<(Key, bool)> =
            answer.items.iter().map(|item| (item.key, matches!(item.status, Status::Hit | Status::TokenHit))).collect();
        let migration = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            migration.look(&asked, &items);
            drop(permit);
        });
    }

    /// Embeds texts under the other model now, with what their entries under this one have; those that have none are new.
    ///
    /// # Errors
    /// When neither model can be asked like that. Single texts that fail are counted.
    pub async fn embed(self: &Arc<Self>, asked: &Request<'_>) -> Result<Embedded, Error> {
        let Inputs::Texts(texts) = asked.inputs else { return Ok(Embedded::default()) };
        let keys = self.to.keys(asked)?;
        let keys_from = self.from.keys(asked)?;
        let (migration, asked) = (Arc::clone(self), owned(asked, texts));
        let wishing = tokio::task::spawn_blocking(move || {
            let there = migration.to.lookup(&keys);
            let entries = migration.from.lookup(&keys_from);
            let missing = (0..keys.len()).filter(|&index| there[index].is_none());
            let wish = |index: usize| {
                asked.wish(index, keys[index], entries[index].as_ref(), &migration.from, &keys_from[index])
            };
            (keys.len(), missing.map(wish).collect::<Vec<Wish>>())
        });
        let (texts, wishes) = wishing.await.expect("looking up does not panic");
        let missing = wishes.len();
        let (mut computed, mut failed) = (0, 0);
        for wishes in chunks(wishes) {
            let outcome = self.grant(wishes).await;
            computed += outcome.0;
            failed += outcome.1;
        }
        Ok(Embedded { texts, cached: texts - missing, computed, failed })
    }

    /// Counts what the other model has of an answer, and queues what it has not. Blocking.
    fn look(&self, asked: &Asked, items: &[(Key, bool)]) {
        let texts: Vec<Cow<'_, str>> = asked.texts.iter().map(|text| Cow::from(text.as_str())).collect();
        let keys = match self.to.keys(&asked.request(&texts)) {
            Ok(keys) => keys,
            Err(error) => return self.fail(texts.len(), &error),
        };
        let there = self.to.lookup(&keys);
        let missing: Vec<usize> = (0..keys.len()).filter(|&index| there[index].is_none()).collect();
        let keys_from: Vec<Key> = missing.iter().map(|&index| items[index].0).collect();
        let entries = self.from.lookup(&keys_from);
        let wishes: Vec<Wish> = missing
            .iter()
            .zip(&keys_from)
            .zip(entries)
            // What is not stored here is not to be there.
            .filter_map(|((&index, key_from), entry)| {
                Some(asked.wish(index, keys[index], Some(&entry?), &self.from, key_from))
            })
            .collect();
        self.observed.fetch_add(keys.len() as u64, Relaxed);
        self.present.fetch_add((keys.len() - missing.len()) as u64, Relaxed);

        let mut state = self.lock();
        for (there, (_, was_hit)) in there.iter().zip(items) {
            if *was_hit {
                state.remember(there.is_some());
            }
        }
        if self.stopped.load(Relaxed) {
            return;
        }
        let dropped: usize = wishes.into_iter().map(|wish| state.push(wish)).sum();
        drop(state);
        self.dropped.fetch_add(dropped as u64, Relaxed);
        self.arrived.notify_one();
    }

    /// Embeds what waits, the newest first, until it is stopped.
    async fn run(self: Arc<Self>) {
        while !self.stopped.load(Relaxed) {
            let wishes = self.lock().take(BATCH_TEXTS);
            if wishes.is_empty() {
                self.arrived.notified().await;
                continue;
            }
            self.wait_for_quiet().await;
            let keys: Vec<Key> = wishes.iter().map(|wish| wish.key).collect();
            // A list may have brought some meanwhile; and what was invalidated or erased here while it waited is not to be there.
            let keys_from: Vec<Key> = wishes.iter().map(|wish| wish.key_from).collect();
            let (there, here) = (self.to.lookup(&keys), self.from.lookup(&keys_from));
            let wanted = wishes.into_iter().zip(there.iter().zip(&here));
            let wanted = wanted.filter(|(_, (there, here))| there.is_none() && here.is_some()).map(|(wish, _)| wish);
            self.grant(wanted.collect()).await;
            self.lock().release(&keys);
        }
    }

    /// Those who wait for an answer come first; but not for ever.
    async fn wait_for_quiet(&self) {
        let began = Instant::now();
        let is_quiet = || self.from.queued() == 0 && self.to.queued() == 0;
        while !is_quiet() && began.elapsed() < QUIET_WITHIN && !self.stopped.load(Relaxed) {
            tokio::time::sleep(QUIET_POLL).await;
        }
    }

    /// Embeds a few texts under the other model. Answers how many were, and how many could not be.
    async fn grant(&self, wishes: Vec<Wish>) -> (usize, usize) {
        let mut groups: BTreeMap<Common, Group> = BTreeMap::new();
        for wish in wishes {
            let group = groups.entry(wish.common).or_default();
            group.texts.push(wish.text.into());
            group.payloads.push(wish.payload);
        }
        let (mut computed, mut failed) = (0, 0);
        for (common, Group { texts, payloads }) in &groups {
            match self.embed_group(common, texts, payloads).await {
                Ok(()) => computed += texts.len(),
                // One by one, so that a text that cannot be embedded costs only itself.
                Err(_) if texts.len() > 1 => {
                    for (text, payload) in texts.iter().zip(payloads) {
                        match self.embed_group(common, std::slice::from_ref(text), std::slice::from_ref(payload)).await
                        {
                            Ok(()) => computed += 1,
                            Err(error) => {
                                failed += 1;
                                self.fail(1, &error);
                            }
                        }
                    }
                }
                Err(error) => {
                    failed += 1;
                    self.fail(1, &error);
                }
            }
        }
        let done = self.done.fetch_add(computed as u64, Relaxed) + computed as u64;
        self.lock().pace(done);
        (computed, failed)
    }

    async fn embed_group(
        &self,
        common: &Common,
        texts: &[Cow<'_, str>],
        payloads: &[Option<String>],
    ) -> Result<(), Error> {
        loop {
            let now = self.to.inner.shared.now();
            let ttl = match common.expires {
                // It has ended meanwhile: nothing is to be kept.
                Some(expires) if expires <= now => return Ok(()),
                expires => expires.map(|expires| Duration::from_secs((expires - now).into())),
            };
            // Nobody waits for this one.
            let request = Request {
                namespace: Namespace::qualified(&common.namespace).expect("it was one before"),
                prompt_name: common.prompt_name.as_deref(),
                direction: common.direction,
                lane: Lane::WarmUp,
                ttl,
                tags: &common.tags,
                payload: Payload::Each(payloads),
                pinned: Some(common.pinned),
                ..Request::new(Inputs::Texts(texts))
            };
            match self.to.embed(request).await {
                Err(Error::QueueFull { retry_after, .. }) if !self.stopped.load(Relaxed) => {
                    tokio::time::sleep(retry_after).await;
                }
                outcome => return outcome.map(drop),
            }
        }
    }

    fn fail(&self, texts: usize, error: &Error) {
        self.failed.fetch_add(texts as u64, Relaxed);
        let (from, to) = (&self.from.card().name, &self.to.card().name);
        let mut state = self.lock();
        if state.failure.is_none() {
            tracing::warn!(from, to, %error, "a text cannot be migrated; more are only counted");
        }
        state.failure = Some(error.to_string());
    }

    /// Every change of the state is whole before anything can panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Queues a text as the newest. Answers how many others had to go for it, or it itself.
    fn push(&mut self, wish: Wish) -> usize {
        if wish.text.len() > QUEUE_BYTES_MAX {
            return 1;
        }
        if !self.queued.insert(wish.key) {
            return 0;
        }
        self.queued_bytes += wish.text.len();
        self.queue.push_back(wish);
        let mut dropped = 0;
        while self.queue.len() > QUEUE_TEXTS_MAX || self.queued_bytes > QUEUE_BYTES_MAX {
            let Some(oldest) = self.queue.pop_front() else { break };
            self.queued_bytes -= oldest.text.len();
            self.release(&[oldest.key]);
            dropped += 1;
        }
        dropped
    }

    /// The newest, not queued again until they are released.
    fn take(&mut self, count: usize) -> Vec<Wish> {
        let wishes: Vec<Wish> = (0..count).map_while(|_| self.queue.pop_back()).collect();
        self.queued_bytes -= wishes.iter().map(|wish| wish.text.len()).sum::<usize>();
        wishes
    }

    fn release(&mut self, keys: &[Key]) {
        for key in keys {
            self.queued.remove(key);
        }
    }

    fn remember(&mut self, covered: bool) {
        if self.recent.len() == RECENT_HITS && self.recent.pop_front() == Some(true) {
            self.recent_covered -= 1;
        }
        self.recent.push_back(covered);
        self.recent_covered += usize::from(covered);
    }

    fn pace(&mut self, done: u64) {
        while self.paces.front().is_some_and(|(then, _)| then.elapsed() > RATE_WINDOW) {
            self.paces.pop_front();
        }
        // A second apart is close enough.
        if self.paces.back().is_none_or(|(then, _)| then.elapsed() > Duration::from_secs(1)) {
            self.paces.push_back((Instant::now(), done));
        }
    }
}

fn owned(asked: &Request<'_>, texts: &[Cow<'_, str>]) -> Asked {
    Asked {
        texts: texts.iter().map(ToString::to_string).collect(),
        namespace: asked.namespace.clone(),
        prompt_name: asked.prompt_name.map(str::to_owned),
        direction: asked.direction,
    }
}

fn chunks(wishes: Vec<Wish>) -> impl Iterator<Item = Vec<Wish>> {
    let mut rest = wishes.into_iter();
    std::iter::from_fn(move || {
        let chunk: Vec<Wish> = rest.by_ref().take(BATCH_TEXTS).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(number: u8, bytes: usize) -> Wish {
        let common = Common {
            namespace: String::new(),
            prompt_name: None,
            direction: None,
            tags: Vec::new(),
            expires: None,
            pinned: false,
        };
        let key = Key::from_bytes([number; 32]);
        Wish { key, key_from: key, text: "x".repeat(bytes), common, payload: None }
    }

    #[test]
    fn the_newest_goes_first_a_text_waits_once_and_the_oldest_make_room() {
        let mut state = State::default();
        assert_eq!((state.push(wish(1, 8)), state.push(wish(2, 8)), state.push(wish(1, 8))), (0, 0, 0));
        assert_eq!(state.take(1).iter().map(|wish| wish.key).collect::<Vec<_>>(), [Key::from_bytes([2; 32])]);
        assert_eq!(state.push(wish(3, QUEUE_BYTES_MAX - 4)), 1);
        assert_eq!((state.queue.len(), state.queued_bytes), (1, QUEUE_BYTES_MAX - 4));
        assert_eq!(state.push(wish(4, QUEUE_BYTES_MAX + 1)), 1);
        assert_eq!((state.take(9).len(), state.queued_bytes, state.queued.len()), (1, 0, 2));
        assert_eq!((state.push(wish(3, 8)), state.queue.len()), (0, 0));
        state.release(&[2, 3].map(|number| Key::from_bytes([number; 32])));
        assert_eq!((state.push(wish(3, 8)), state.queue.len()), (0, 1));
    }

    #[test]
    fn the_covered_share_is_of_the_last_hits() {
        let mut state = State::default();
        (0..RECENT_HITS).for_each(|_| state.remember(false));
        (0..RECENT_HITS / 2).for_each(|_| state.remember(true));
        assert_eq!((state.recent.len(), state.recent_covered), (RECENT_HITS, RECENT_HITS / 2));
        (0..RECENT_HITS).for_each(|_| state.remember(false));
        assert_eq!(state.recent_covered, 0);
    }
}

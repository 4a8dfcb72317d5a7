//! Entries that are gone already, though their slots are not erased yet.
//!
//! ```text
//! condemn ─► side store: these tags, up to this sequence number ─► every read asks ─┐
//!                                                                                   ├─► sweep: erases, some at a time ─► forgotten
//! open ────► what the last run had not swept ───────────────────────────────────────┘
//! ```
//!
//! To erase a million entries takes seconds; to stop serving them takes one write. What is put under a condemned entry's key has a
//! later sequence number, and is served. While nothing is condemned a read pays for one flag.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use super::core::Core;
use super::error::StoreError;
use super::record::Record;
use super::side::{Side, failed};
use crate::domain::Pattern;
use crate::urgency::{BACKGROUND, stand_back};

/// Entries erased at a time: writes get their turn in between.
const ERASED_AT_ONCE: usize = 4096;

/// What is condemned: entries with one of the tags or one that matches, written up to a sequence number, and before a moment if one is
/// given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Sentence {
    pub(super) tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pattern: Option<Pattern>,
    pub(super) until: u64,
    /// In Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<u32>,
}

impl Sentence {
    /// Whether it means what was written then.
    fn reaches(&self, record: &Record) -> bool {
        record.sequence() <= self.until && self.before.is_none_or(|time| record.created < time)
    }

    fn names(&self, tag: &String) -> bool {
        self.tags.contains(tag) || self.pattern.as_ref().is_some_and(|pattern| pattern.matches(tag))
    }
}

/// What is condemned in one space.
#[derive(Default)]
pub(super) struct Condemned {
    any: AtomicBool,
    /// By the numbers they have in the side store.
    sentences: RwLock<Vec<(u64, Sentence)>>,
    side: OnceLock<Arc<Side>>,
}

impl Condemned {
    /// Takes up what the side store has.
    pub(super) fn begin(&self, side: &Arc<Side>) -> Result<(), StoreError> {
        let sentences = side.sentences()?;
        // It is begun once.
        let _ = self.side.set(Arc::clone(side));
        self.change(|all| *all = sentences);
        Ok(())
    }

    /// The last sequence number that a sentence reaches. Entries to come are to have later ones.
    pub(super) fn last_sequence(&self) -> u64 {
        let sentences = self.sentences.read().unwrap_or_else(PoisonError::into_inner);
        sentences.iter().map(|(_, sentence)| sentence.until).max().unwrap_or(0)
    }

    fn change(&self, change: impl FnOnce(&mut Vec<(u64, Sentence)>)) {
        let mut sentences = self.sentences.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut sentences);
        self.any.store(!sentences.is_empty(), Ordering::SeqCst);
    }

    /// The sentence that has waited longest.
    fn first(&self) -> Option<(u64, Sentence)> {
        self.sentences.read().unwrap_or_else(PoisonError::into_inner).first().cloned()
    }

    /// Whether anything is condemned.
    #[inline]
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::SeqCst)
    }

    /// Whether an entry is condemned.
    #[inline]
    pub(super) fn has(&self, record: &Record) -> bool {
        self.any() && record.is_tagged() && self.judges(record)
    }

    /// An entry whose tags cannot be read is taken to be meant: it costs a computation.
    #[cold]
    fn judges(&self, record: &Record) -> bool {
        let sentences = self.sentences.read().unwrap_or_else(PoisonError::into_inner);
        let mut reaching = sentences.iter().filter(|(_, sentence)| sentence.reaches(record)).peekable();
        if reaching.peek().is_none() {
            return false;
        }
        let Some(Ok(tags)) = self.side.get().map(|side| side.tags(&record.key)) else { return true };
        reaching.any(|(_, sentence)| tags.iter().any(|tag| sentence.names(tag)))
    }
}

/// The thread that erases what is condemned. It is there while there is something to erase.
pub(super) struct Sweeper {
    core: Arc<Core>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Sweeper {
    /// Goes on with what is condemned already.
    pub(super) fn start(core: &Arc<Core>) -> Self {
        let sweeper = Self { core: Arc::clone(core), stop: Arc::default(), thread: Mutex::default() };
        if sweeper.core.space.condemned.any() {
            sweeper.wake(&mut sweeper.lock());
        }
        sweeper
    }

    /// Condemns all entries there are with one of the tags or one that matches, of those written before a moment if one is given. When this
    /// returns none of them is served, now or after a restart.
    pub(super) fn condemn(
        &self,
        tags: &[String],
        pattern: Option<&Pattern>,
        before: Option<u32>,
    ) -> Result<(), StoreError> {
        let mut thread = self.lock();
        let Core { space, side, .. } = &*self.core;
        let until = self.core.figures().last_sequence;
        let sentence = Sentence { tags: tags.to_vec(), pattern: pattern.cloned(), until, before };
        let number = side.add_sentence(&sentence)?;
        space.condemned.change(|all| all.push((number, sentence)));
        self.wake(&mut thread);
        Ok(())
    }

    /// Returns when all that is condemned is erased.
    ///
    /// # Errors
    /// When something could not be.
    pub(super) fn settle(&self) -> Result<(), StoreError> {
        let mut thread = self.lock();
        if thread.is_none() && !self.core.space.condemned.any() {
            return Ok(());
        }
        self.wake(&mut thread);
        // A panic there was said there.
        let _ = thread.take().map(JoinHandle::join);
        if self.core.space.condemned.any() {
            return Err(StoreError::NotSwept { path: self.core.space.path.clone() });
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins another thread after the last, which may be about to end.
    fn wake(&self, thread: &mut Option<JoinHandle<()>>) {
        let (core, stop, before) = (Arc::clone(&self.core), Arc::clone(&self.stop), thread.take());
        let run = move || {
            stand_back(BACKGROUND);
            // A panic there was said there.
            let _ = before.map(JoinHandle::join);
            while let Some((number, sentence)) = core.space.condemned.first() {
                match sweep(&core, &sentence, &stop) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(
                            error,
                            "invalidated entries could not be erased: they are not served all the same"
                        );
                        return;
                    }
                }
                // First here, then on disk: a number that is free there may be another sentence's at once. And on disk not before what
                // was erased is gone from there.
                core.space.condemned.change(|all| all.retain(|(other, _)| *other != number));
                if let Err(error) = core.syncer.settle().and_then(|()| core.side.remove_sentence(number)) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "what was erased will be looked for again at the next start");
                }
            }
        };
        match std::thread::Builder::new().name("store-sweep".into()).spawn(run) {
            Ok(handle) => *thread = Some(handle),
            Err(error) => tracing::warn!(%error, "invalidated entries are erased later, and not served until then"),
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that erases invalidated entries had panicked");
        }
    }
}

/// Erases what a sentence means. `false`: it was told to stop before the end.
fn sweep(core: &Core, sentence: &Sentence, stop: &AtomicBool) -> Result<bool, StoreError> {
    let by_tag = sentence.tags.iter().map(|tag| core.side.keys_with_tag(tag));
    let by_pattern = sentence.pattern.iter().map(|pattern| core.side.keys_with_tag_like(pattern));
    for tagged in by_tag.chain(by_pattern) {
        let tagged = tagged.map_err(failed("read tags", &core.side.path))?;
        for keys in tagged.chunks(ERASED_AT_ONCE) {
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            core.remove_where(keys, |record| sentence.reaches(record))?;
        }
    }
    Ok(true)
}

//! Which models' weights are in memory: loaded when a batch needs them, dropped when nobody has asked for a while or
//! another model needs the room.
//!
//! ```text
//! absent ─ a batch comes: room is made (the least recently used go), files are read ─► loaded ─ batch after batch
//!    ▲                                                                                    │
//!    └──────────── idle for too long (the janitor), or another needs the room ◄───────────┘
//! ```
//!
//! Promises: weights in memory never exceed the bound, but for what a load needs on its way; no engine is dropped while it
//! computes; weights read again are those read first, or an error; a loaded engine computes whoever else is being loaded.
//! Never decides what is computed when.
//!
//! Locks: `admission` is held by whoever loads or drops, a slot's `engine` by whoever computes. Taken in this order and never
//! the other way round: who computes does not wait for admission.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::{Engine, EngineError, Model, Tokenizer};
use crate::domain::ModelCard;

/// A model without what computes.
pub struct Described {
    /// Its facts.
    pub card: ModelCard,
    /// What reads texts.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// How to get what computes.
    pub weights: EngineSource,
}

/// How to get an engine.
pub struct EngineSource(Source);

enum Source {
    /// It is here, and stays: it has no weights in this process's memory.
    Ready(Box<dyn Engine>),
    /// It can be loaded, any number of times.
    Loadable { bytes: u64, read: Option<Vec<u8>>, load: Box<Loading> },
}

/// Builds an engine: from bytes that were just read, if there are any, else from the files.
type Loading = dyn Fn(Option<Vec<u8>>) -> Result<Box<dyn Engine>, EngineError> + Send + Sync;

impl EngineSource {
    /// An engine whose weights take so many bytes, built by `load`; from `read` if it is loaded at once.
    #[must_use]
    pub fn new(bytes: u64, read: Option<Vec<u8>>, load: Box<Loading>) -> Self {
        Self(Source::Loadable { bytes, read, load })
    }
}

impl From<Model> for Described {
    /// A model that is ready already, and stays so.
    fn from(Model { card, tokenizer, engine }: Model) -> Self {
        Self { card, tokenizer, weights: EngineSource(Source::Ready(engine)) }
    }
}

impl Described {
    /// Loads it, to stay.
    ///
    /// # Errors
    /// When the weights are not what the model's files say.
    pub fn load(self) -> Result<Model, EngineError> {
        let engine = match self.weights.0 {
            Source::Ready(engine) => engine,
            Source::Loadable { read, load, .. } => load(read)?,
        };
        Ok(Model { card: self.card, tokenizer: self.tokenizer, engine })
    }
}

/// The models of a process whose weights share a bound of memory.
pub struct Residents {
    shared: Arc<Shared>,
}

struct Shared {
    bytes_max: Option<u64>,
    /// Held by whoever loads or drops an engine.
    admission: Mutex<Vec<Arc<Slot>>>,
    /// The thread that drops what is idle, once there is something to be dropped.
    janitor: Mutex<Option<Thread>>,
    started: Instant,
}

struct Slot {
    name: String,
    bytes: u64,
    idle: Option<Duration>,
    load: Box<Loading>,
    engine: Mutex<Option<Box<dyn Engine>>>,
    /// Whether `engine` holds one, for those who only look.
    loaded: AtomicBool,
    /// When it last computed or was loaded, in milliseconds since the start.
    used_ms: AtomicU64,
    loads: AtomicU64,
    unloads: AtomicU64,
}

/// A model's weights, whether or not they are in memory.
#[derive(Clone)]
pub struct Residency {
    slot: Arc<Slot>,
    shared: Weak<Shared>,
}

impl std::fmt::Debug for Residency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Residency").field("model", &self.slot.name).field("loaded", &self.is_loaded()).finish()
    }
}

impl Residency {
    /// Whether they are in memory.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.slot.loaded.load(Relaxed)
    }

    /// Their size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.slot.bytes
    }

    /// How often they were loaded.
    #[must_use]
    pub fn loads(&self) -> u64 {
        self.slot.loads.load(Relaxed)
    }

    /// How often they were dropped.
    #[must_use]
    pub fn unloads(&self) -> u64 {
        self.slot.unloads.load(Relaxed)
    }

    /// Loads them if they are not in memory. Blocks for as long as that takes.
    ///
    /// # Errors
    /// When they cannot be loaded.
    pub fn load(&self) -> Result<(), EngineError> {
        match self.shared.upgrade() {
            Some(shared) if !self.is_loaded() => shared.load(&self.slot, None).map(drop),
            _ => Ok(()),
        }
    }
}

impl Residents {
    /// No models yet. Their weights may take so many bytes together, by the size of their files; any number if `None`.
    #[must_use]
    pub fn new(bytes_max: Option<u64>) -> Self {
        let (admission, janitor) = (Mutex::default(), Mutex::default());
        Self { shared: Arc::new(Shared { bytes_max, admission, janitor, started: Instant::now() }) }
    }

    /// Adds a model whose weights are loaded when they are first needed, and dropped when it has not computed for `idle`.
    ///
    /// # Errors
    /// When its weights alone are more than there is room for.
    pub fn add(&self, described: Described, idle: Option<Duration>) -> Result<Model, EngineError> {
        self.add_slot(described, idle).map(|(model, ..)| model)
    }

    /// As [`Residents::add`], loaded now.
    ///
    /// # Errors
    /// As [`Residents::add`], and when the weights cannot be loaded.
    pub fn add_loaded(&self, described: Described, idle: Option<Duration>) -> Result<Model, EngineError> {
        let (model, slot, read) = self.add_slot(described, idle)?;
        if let Some(slot) = slot {
            drop(self.shared.load(&slot, read)?);
        }
        Ok(model)
    }

    /// The model, its slot if it needs one, and what was read of its weights already.
    #[expect(clippy::type_complexity, reason = "three things, used twice, side by side")]
    fn add_slot(
        &self,
        described: Described,
        idle: Option<Duration>,
    ) -> Result<(Model, Option<Arc<Slot>>, Option<Vec<u8>>), EngineError> {
        let Described { card, tokenizer, weights } = described;
        let (bytes, read, load) = match weights.0 {
            Source::Ready(engine) => return Ok((Model { card, tokenizer, engine }, None, None)),
            Source::Loadable { bytes, read, load } => (bytes, read, load),
        };
        if let Some(bytes_max) = self.shared.bytes_max.filter(|max| bytes > *max) {
            return Err(EngineError::TooLarge { name: card.name, bytes, bytes_max });
        }
        let slot = Arc::new(Slot {
            name: card.name.clone(),
            bytes,
            idle,
            load,
            engine: Mutex::default(),
            loaded: AtomicBool::new(false),
            used_ms: AtomicU64::new(0),
            loads: AtomicU64::new(0),
            unloads: AtomicU64::new(0),
        });
        self.shared.admit().push(Arc::clone(&slot));
        if idle.is_some() {
            self.shared.start_janitor();
        }
        let engine = Resident { shared: Arc::clone(&self.shared), slot: Arc::clone(&slot) };
        Ok((Model { card, tokenizer, engine: Box::new(engine) }, Some(slot), read))
    }
}

type Loaded<'a> = MutexGuard<'a, Option<Box<dyn Engine>>>;

impl Slot {
    /// The engine was built before, so a panic in it left nothing half done: see [`Engine`].
    fn lock(&self) -> Loaded<'_> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock(&self) -> Option<Loaded<'_>> {
        match self.engine.try_lock() {
            Ok(engine) => Some(engine),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Drops the engine. Only with admission.
    fn unload(&self, mut engine: Loaded<'_>, why: &'static str) {
        let started = Instant::now();
        if engine.take().is_some() {
            self.loaded.store(false, Relaxed);
            self.unloads.fetch_add(1, Relaxed);
            let took_ms = started.elapsed().as_millis() as u64;
            tracing::info!(model = self.name, bytes = self.bytes, took_ms, why, "a model's weights were dropped");
        }
    }
}

impl Shared {
    /// A panic while loading leaves the list as it was.
    fn admit(&self) -> MutexGuard<'_, Vec<Arc<Slot>>> {
        self.admission.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// The slot's engine, loaded, and nobody else's until the guard goes. Room is made first.
    fn load<'a>(&self, slot: &'a Slot, read: Option<Vec<u8>>) -> Result<Loaded<'a>, EngineError> {
        let slots = self.admit();
        // Nobody loads this one now; and who computes with it will be done.
        let engine = slot.lock();
        if engine.is_some() {
            return Ok(engine);
        }
        drop(engine);
        if let Some(bytes_max) = self.bytes_max {
            self.make_room(&slots, slot, bytes_max);
        }
        let started = Instant::now();
        let loaded = (slot.load)(read)?;
        slot.used_ms.store(self.now_ms(), Relaxed);
        slot.loaded.store(true, Relaxed);
        slot.loads.fetch_add(1, Relaxed);
        let took_ms = started.elapsed().as_millis() as u64;
        tracing::info!(model = slot.name, bytes = slot.bytes, took_ms, "a model's weights were loaded");
        let mut engine = slot.lock();
        *engine = Some(loaded);
        drop(slots);
        self.wake_janitor();
        Ok(engine)
    }

    /// Drops the least recently used until `wanted` fits: one that does not compute just now if there is one.
    fn make_room(&self, slots: &[Arc<Slot>], wanted: &Slot, bytes_max: u64) {
        loop {
            let mut loaded: Vec<&Arc<Slot>> = slots.iter().filter(|slot| slot.loaded.load(Relaxed)).collect();
            let bytes: u64 = loaded.iter().map(|slot| slot.bytes).sum();
            if bytes.saturating_add(wanted.bytes) <= bytes_max {
                return;
            }
            loaded.sort_by_key(|slot| slot.used_ms.load(Relaxed));
            let free = loaded.iter().find_map(|slot| Some((slot, slot.try_lock()?)));
            // All compute: the first of them is done after its batch.
            let chosen = free.or_else(|| loaded.first().map(|slot| (slot, slot.lock())));
            let Some((slot, engine)) = chosen else { return };
            slot.unload(engine, "another model needs the room");
        }
    }

    /// Drops what has been idle for long enough. Answers when to look again, if anything is left that may become idle.
    fn drop_idle(&self) -> Option<Duration> {
        let slots = self.admit();
        let now = self.now_ms();
        let mut next = None::<Duration>;
        for slot in slots.iter().filter(|slot| slot.loaded.load(Relaxed)) {
            let Some(idle) = slot.idle else { continue };
            let since = Duration::from_millis(now.saturating_sub(slot.used_ms.load(Relaxed)));
            let left = match slot.try_lock() {
                Some(engine) if since >= idle => {
                    slot.unload(engine, "it was idle");
                    continue;
                }
                Some(_) => idle - since,
                // It computes: it is not idle before that long after now.
                None => idle,
            };
            next = Some(next.map_or(left, |next| next.min(left)));
        }
        next
    }

    fn start_janitor(self: &Arc<Self>) {
        let mut janitor = self.janitor.lock().unwrap_or_else(PoisonError::into_inner);
        if janitor.is_some() {
            return;
        }
        let shared = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name("vecmemo-models".to_owned()).spawn(move || {
            while let Some(next) = shared.upgrade().map(|shared| shared.drop_idle()) {
                match next {
                    // A moment more: what is due then shall be due.
                    Some(left) => std::thread::park_timeout(left + Duration::from_millis(1)),
                    None => std::thread::park(),
                }
            }
        });
        match thread {
            Ok(thread) => *janitor = Some(thread.thread().clone()),
            Err(error) => tracing::error!(%error, "no thread can be started: idle models stay in memory"),
        }
    }

    fn wake_janitor(&self) {
        if let Some(janitor) = &*self.janitor.lock().unwrap_or_else(PoisonError::into_inner) {
            janitor.unpark();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // It finds nobody there, and ends.
        self.wake_janitor();
    }
}

/// An engine that is loaded when it is asked.
struct Resident {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
}

impl Engine for Resident {
    fn kernel(&self) -> String {
        self.slot
            .try_lock()
            .and_then(|engine| Some(engine.as_ref()?.kernel()))
            .unwrap_or_else(|| "not loaded".to_owned())
    }

    fn embed(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let mut engine = self.slot.lock();
        if engine.is_none() {
            drop(engine);
            engine = self.shared.load(&self.slot, None)?;
        }
        let engine = engine.as_mut().expect("it was just loaded, and nobody else has the guard");
        let outcome = engine.embed(batch);
        self.slot.used_ms.store(self.shared.now_ms(), Relaxed);
        outcome
    }

    fn residency(&self) -> Option<Residency> {
        Some(Residency { slot: Arc::clone(&self.slot), shared: Arc::downgrade(&self.shared) })
    }
}

impl Drop for Resident {
    /// A model that is served no more makes room.
    fn drop(&mut self) {
        let mut slots = self.shared.admit();
        slots.retain(|slot| !Arc::ptr_eq(slot, &self.slot));
        self.slot.unload(self.slot.lock(), "it is served no more");
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake;
    use super::*;
    use std::sync::mpsc::channel;

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A model of `dims` whose weights are said to be so large.
    fn described(name: &str, dims: usize, bytes: u64) -> Described {
        let Model { mut card, tokenizer, .. } = fake::model(dims);
        card.name = name.to_owned();
        let load = move |_| Ok(Box::new(fake::FakeEngine { dims }) as Box<dyn Engine>);
        Described { card, tokenizer, weights: EngineSource::new(bytes, None, Box::new(load)) }
    }

    fn residency(model: &Model) -> Residency {
        model.engine.residency().unwrap()
    }

    fn until(what: &str, happened: impl Fn() -> bool) {
        let started = Instant::now();
        while !happened() {
            assert!(started.elapsed() < PATIENCE, "{what} does not happen");
            std::thread::yield_now();
        }
    }

    #[test]
    fn weights_are_loaded_at_the_first_batch_and_dropped_when_idle_and_loaded_again() {
        let residents = Residents::new(None);
        let mut model = residents.add(described("a", 4, 10), Some(Duration::from_millis(20))).unwrap();
        let residency = residency(&model);
        assert!(!residency.is_loaded());
        let first = model.engine.embed(&[&[1, 2, 3]]).unwrap();
        assert_eq!(residency.loads(), 1);
        until("the unloading", || !residency.is_loaded());
        assert_eq!(model.engine.embed(&[&[1, 2, 3]]).unwrap(), first);
        assert_eq!((residency.loads(), residency.unloads() >= 1), (2, true));
    }

    #[test]
    fn without_an_idle_time_weights_stay() {
        let residents = Residents::new(None);
        let stays = residents.add_loaded(described("stays", 4, 10), None).unwrap();
        let mut goes = residents.add(described("goes", 4, 10), Some(Duration::from_millis(5))).unwrap();
        goes.engine.embed(&[&[1]]).unwrap();
        until("the unloading", || !residency(&goes).is_loaded());
        assert!(residency(&stays).is_loaded());
    }

    #[test]
    fn the_least_recently_used_make_room_and_the_bound_is_kept() {
        let residents = Residents::new(Some(25));
        let mut models: Vec<Model> =
            ["a", "b", "c"].map(|name| residents.add(described(name, 4, 10), None).unwrap()).into();
        let loaded = |models: &[Model]| models.iter().map(|model| residency(model).is_loaded()).collect::<Vec<_>>();
        let embed = |models: &mut [Model], index: usize| {
            // So that each use has a millisecond of its own.
            until("a millisecond", {
                let before = residents.shared.now_ms();
                let shared = &residents.shared;
                move || shared.now_ms() > before
            });
            models[index].engine.embed(&[&[1]]).unwrap();
        };
        embed(&mut models, 0);
        embed(&mut models, 1);
        assert_eq!(loaded(&models), [true, true, false]);
        embed(&mut models, 0);
        embed(&mut models, 2);
        assert_eq!(loaded(&models), [true, false, true]);
        embed(&mut models, 1);
        assert_eq!(loaded(&models), [false, true, true]);
    }

    #[test]
    fn a_model_larger_than_the_bound_is_refused_by_name() {
        let Err(error) = Residents::new(Some(9)).add(described("big", 4, 10), None) else { panic!("it fits") };
        assert_eq!(
            error.to_string(),
            "the weights of big are 10 bytes, models_memory_bytes_max allows 9: raise it, or serve a smaller model"
        );
    }

    #[test]
    fn models_that_do_not_fit_together_take_turns_whoever_asks_at_once() {
        let residents = Residents::new(Some(10));
        let models = ["a", "b", "c"].map(|name| residents.add(described(name, 4, 10), None).unwrap());
        let (done, all_done) = channel();
        for mut model in models {
            let done = done.clone();
            std::thread::spawn(move || {
                let vectors: Vec<_> = (0..50).map(|id| model.engine.embed(&[&[id]]).unwrap()).collect();
                done.send((vectors, model)).unwrap();
            });
        }
        let outcomes: Vec<_> = (0..3).map(|_| all_done.recv_timeout(PATIENCE).unwrap()).collect();
        assert!(outcomes.windows(2).all(|pair| pair[0].0 == pair[1].0));
        let loaded = outcomes.iter().filter(|(_, model)| residency(model).is_loaded()).count();
        assert_eq!(loaded, 1);
    }

    #[test]
    fn a_model_that_cannot_be_loaded_says_why_at_every_batch_and_leaves_room() {
        let residents = Residents::new(Some(10));
        let mut broken = described("broken", 4, 10);
        let load = |_| Err(EngineError::Tokenizer("no such weights".to_owned()));
        broken.weights = EngineSource::new(10, None, Box::new(load));
        let mut broken = residents.add(broken, None).unwrap();
        let mut sound = residents.add(described("sound", 4, 10), None).unwrap();
        for _ in 0..2 {
            assert!(broken.engine.embed(&[&[1]]).unwrap_err().to_string().contains("no such weights"));
            sound.engine.embed(&[&[1]]).unwrap();
        }
        assert_eq!(residency(&broken).loads(), 0);
    }
}

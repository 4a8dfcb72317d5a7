//! What the tests share: a cache around a model that does as it is told, on a temporary folder.

pub mod golden;
pub mod server;
pub mod upstream;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use vecmemo::batch::{self, Embedder};
use vecmemo::cache::{self, Answer, Cache, Error, Inputs, Request};
use vecmemo::domain::ModelCard;
use vecmemo::engine::{Engine, EngineError, Model, fake};
use vecmemo::store::{self, Store, StoreError};

pub const DIMS: usize = 16;

/// Longer than anything here takes: a test that waits this long hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

type Behaviour = Box<dyn FnMut(&[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> + Send>;

/// An engine that counts the texts it computes and does what the test says.
pub struct Scripted {
    behaviour: Behaviour,
    computed: Arc<AtomicUsize>,
}

impl Engine for Scripted {
    fn embed(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.computed.fetch_add(batch.len(), Ordering::SeqCst);
        (self.behaviour)(batch)
    }
}

/// A vector that depends on every id and its place.
pub fn vector_of(ids: &[u32]) -> Vec<f32> {
    let value = |dim: usize| {
        let sum: usize = ids.iter().enumerate().map(|(at, &id)| (id as usize + 7 * at + 13) * (dim + 3) % 1009).sum();
        (sum % 1009) as f32 - 500.5
    };
    (0..DIMS).map(value).collect()
}

pub fn vectors_of(batch: &[&[u32]]) -> Vec<Vec<f32>> {
    batch.iter().map(|ids| vector_of(ids)).collect()
}

/// A cache and what a test needs to know of it.
pub struct Rig {
    pub cache: Cache,
    pub folder: Arc<tempfile::TempDir>,
    computed: Arc<AtomicUsize>,
}

impl Rig {
    /// A cache whose model computes [`vector_of`].
    pub fn new() -> Self {
        Self::with(batch::Config::default(), |batch| Ok(vectors_of(batch)))
    }

    pub fn with(
        config: batch::Config,
        behaviour: impl FnMut(&[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> + Send + 'static,
    ) -> Self {
        Self::on(Arc::new(tempfile::tempdir().unwrap()), config, behaviour)
    }

    /// On a folder that may hold a store already.
    pub fn on(
        folder: Arc<tempfile::TempDir>,
        config: batch::Config,
        behaviour: impl FnMut(&[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> + Send + 'static,
    ) -> Self {
        Self::kept(folder, config, cache::Config::default(), behaviour)
    }

    /// As `on`, with policies.
    pub fn kept(
        folder: Arc<tempfile::TempDir>,
        config: batch::Config,
        kept: cache::Config,
        behaviour: impl FnMut(&[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> + Send + 'static,
    ) -> Self {
        let computed = Arc::new(AtomicUsize::new(0));
        let engine = Scripted { behaviour: Box::new(behaviour), computed: Arc::clone(&computed) };
        let model = Model { engine: Box::new(engine), ..fake::model(DIMS) };
        let small = store::Config { capacity_entries: 4096, ..store::Config::default() };
        let store = open(folder.path(), &model.card, &small);
        Self { cache: Cache::with(store, Embedder::start(model, config), kept), folder, computed }
    }

    /// A cache whose model waits, before each batch, for a word from the returned gate.
    pub fn gated(config: batch::Config) -> (Self, Gate) {
        let (open, opened) = channel::<()>();
        let (arrive, arrived) = channel();
        let rig = Self::with(config, move |batch| {
            // The test may have ended without looking, or without opening.
            let _ = arrive.send(batch.len());
            let _ = opened.recv();
            Ok(vectors_of(batch))
        });
        (rig, Gate { open, arrived })
    }

    /// How many texts the model has computed.
    pub fn computed(&self) -> usize {
        self.computed.load(Ordering::SeqCst)
    }

    /// A client of its own that asks for one text.
    pub fn ask(&self, text: &'static str) -> tokio::task::JoinHandle<Result<Answer, Error>> {
        let cache = self.cache.clone();
        tokio::spawn(async move { embed(&cache, &[text]).await })
    }

    pub async fn embed(&self, texts: &[&str]) -> Result<Answer, Error> {
        embed(&self.cache, texts).await
    }
}

/// Holds the model back.
pub struct Gate {
    open: Sender<()>,
    arrived: Receiver<usize>,
}

impl Gate {
    /// Lets `batches` batches pass.
    pub fn open(&self, batches: usize) {
        for _ in 0..batches {
            // The engine may be gone.
            let _ = self.open.send(());
        }
    }

    /// Waits until a batch stands before the gate, and says how many texts it has.
    pub fn wait(&self) -> usize {
        self.arrived.recv_timeout(PATIENCE).expect("a batch reaches the engine")
    }
}

pub async fn embed(cache: &Cache, texts: &[&str]) -> Result<Answer, Error> {
    let texts: Vec<_> = texts.iter().map(|&text| text.into()).collect();
    let answer = cache.embed(Request::new(Inputs::Texts(&texts)));
    tokio::time::timeout(PATIENCE, answer).await.expect("a request ends")
}

/// A model's store, once the cache before has let go of it.
pub fn open(folder: &Path, card: &ModelCard, config: &store::Config) -> Store {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Store::open(folder, &card.version, card.dims, config) {
            // A thread that led a call of the cache before may not have ended yet.
            Err(StoreError::InUse { .. }) if Instant::now() < deadline => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

/// Waits for something that another thread is about to do.
pub async fn until(mut happened: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !happened() {
            tokio::task::yield_now().await;
        }
    });
    waited.await.expect("it happens");
}

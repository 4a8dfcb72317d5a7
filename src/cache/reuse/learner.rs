//! The thread that learns: writes down what was computed, has it calibrated when there is enough, forgets what is gone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::log::{Change, Kept, Log, Text};
use super::{Alias, Erased, Event, Field, Shared, distil, lock};
use crate::batch::Embedder;
use crate::domain::{Key, Namespace};
use crate::reuse::{Audit, Calibration, CertificateId, Matcher, Miss, Options, Table, calibrate};
use crate::store::Store;
use crate::urgency::{BACKGROUND, stand_back};

/// How long changes wait to be written together.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// How many are written together at most.
const CHANGES_MAX: usize = 1024;
/// How often texts whose entries are gone are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
/// How many drawn texts a first calibration waits for.
const FIRST_TEXTS: usize = 2000;
/// By what share of a certificate's time a new one is made.
const RENEW_SHARE: f64 = 0.75;
/// Rows that are read at a time.
const READ_ROWS: usize = 1024;

/// The thread. Dropping it ends it.
pub(in crate::cache) struct Learner {
    events: Sender<Event>,
    thread: Option<JoinHandle<()>>,
}

/// A calibration that is done.
pub(super) struct Calibrated {
    digest: [u8; 32],
    result: Result<Matcher, String>,
    /// Texts from this one on are not in the matcher yet.
    next: u64,
    /// Whether it was read from disk.
    kept: bool,
    table: Option<Arc<Table>>,
    reply: Option<SyncSender<Result<(), String>>>,
}

/// Where what is learnt is, beside the entries that it was learnt from: it goes with them.
pub(super) fn log_path(store: &Store) -> PathBuf {
    store.derived().join("reuse.redb")
}

fn table_path(store: &Store) -> PathBuf {
    store.derived().join("tokens.safetensors")
}

impl Learner {
    pub(in crate::cache) fn start(shared: Arc<Shared>, embedder: Embedder) -> Self {
        let (events, received) = channel();
        // The only place where they are set.
        let _ = shared.reuse.events.set(events.clone());
        let own = events.clone();
        let thread = std::thread::Builder::new()
            .name("vecmemo-reuse".to_owned())
            .spawn(move || State::new(shared, embedder, own).run(&received));
        let thread = thread.inspect_err(|error| tracing::error!(%error, "nothing is learnt of reuse: no thread")).ok();
        Self { events, thread }
    }
}

impl Drop for Learner {
    fn drop(&mut self) {
        let _ = self.events.send(Event::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread knows.
struct State {
    shared: Arc<Shared>,
    embedder: Embedder,
    events: Sender<Event>,
    log: Option<Log>,
    scopes: HashMap<[u8; 32], Scope>,
    table: Option<Arc<Table>>,
    changes: Vec<Change>,
    /// Audits to be written as they are by then.
    audited: HashMap<CertificateId, Arc<Mutex<Audit>>>,
    /// One at a time.
    calibrating: bool,
    /// How many threads have copies of texts, and what was erased since the first of them began.
    copies: usize,
    erased: HashSet<Key>,
}

/// A field's texts, as they came.
struct Scope {
    number: u32,
    field: Arc<Field>,
    texts: BTreeMap<u64, Text>,
    by_key: HashMap<Key, u64>,
    next: u64,
    /// Texts before this one have had time to be stored.
    settled: u64,
    /// How many drawn texts there were at the last calibration, or its failure.
    calibrated_at: usize,
    waiting: Option<SyncSender<Result<(), String>>>,
}

impl Scope {
    fn new(number: u32, field: Arc<Field>) -> Self {
        let (texts, by_key) = (BTreeMap::new(), HashMap::new());
        Self { number, field, texts, by_key, next: 0, settled: 0, calibrated_at: 0, waiting: None }
    }

    fn drawn(&self) -> usize {
        self.texts.values().filter(|text| text.drawn).count()
    }

    /// Forgets the other aliases. Answers the changes to be written.
    fn keep_aliases(&self, keep: impl Fn(&Alias) -> bool) -> Vec<Change> {
        self.keep_aliases_where(|_, alias| keep(alias))
    }

    /// The same by text.
    fn keep_aliases_where(&self, keep: impl Fn(&Key, &Alias) -> bool) -> Vec<Change> {
        let mut aliases = self.field.aliases_mut();
        let forgotten = aliases.extract_if(|key, alias| !keep(key, alias));
        forgotten.map(|(key, _)| Change::NoAlias { scope: self.number, key }).collect()
    }
}

impl State {
    fn new(shared: Arc<Shared>, embedder: Embedder, events: Sender<Event>) -> Self {
        let mut state = Self {
            shared,
            embedder,
            events,
            log: None,
            scopes: HashMap::new(),
            table: None,
            changes: Vec::new(),
            audited: HashMap::new(),
            calibrating: false,
            copies: 0,
            erased: HashSet::new(),
        };
        state.open();
        state
    }

    fn run(mut self, received: &Receiver<Event>) {
        let (mut pruned, mut written) = (Instant::now(), Instant::now());
        loop {
            match received.recv_timeout(WRITE_EVERY) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.changes.len() >= CHANGES_MAX || written.elapsed() >= WRITE_EVERY {
                self.write();
                self.calibrate_what_is_due();
                written = Instant::now();
            }
            if pruned.elapsed() >= PRUNE_EVERY {
                self.prune();
                pruned = Instant::now();
            }
        }
        while let Ok(event) = received.try_recv() {
            if !matches!(event, Event::Calibrate { .. } | Event::Stop) {
                self.take(event);
            }
        }
        self.write();
    }

    /// Takes up what was left.
    fn open(&mut self) {
        let made = std::fs::create_dir_all(self.shared.store.derived()).map_err(redb::Error::Io);
        match made.and_then(|()| Log::open(&log_path(&self.shared.store))) {
            Ok((log, note)) => {
                if let Some(note) = note {
                    tracing::warn!(note, "what was learnt of reuse cannot be read");
                }
                match log.read() {
                    Ok(kept) => kept.into_iter().for_each(|kept| self.take_up(kept)),
                    Err(error) => tracing::warn!(%error, "what was learnt of reuse cannot be read; it is learnt anew"),
                }
                self.log = Some(log);
            }
            Err(error) => tracing::warn!(%error, "what is learnt of reuse is not kept: its file cannot be opened"),
        }
    }

    fn take_up(&mut self, kept: Kept) {
        let Ok(namespace) = Namespace::qualified(&kept.namespace) else { return };
        let field = self.shared.reuse.field(kept.digest, &namespace);
        let mut scope = Scope::new(kept.number, Arc::clone(&field));
        for (at, text) in kept.texts {
            scope.by_key.insert(text.key, at);
            scope.texts.insert(at, text);
            scope.next = at + 1;
        }
        scope.settled = scope.next;
        field.texts.store(scope.texts.len(), Relaxed);
        field.aliases_mut().extend(kept.aliases);
        let audits = kept.audits.into_iter().map(|(id, audit)| (id, Arc::new(Mutex::new(audit))));
        field.audits.write().unwrap_or_else(PoisonError::into_inner).extend(audits);
        self.scopes.insert(kept.digest, scope);
        if let Some(calibration) = kept.calibration {
            self.calibrate(kept.digest, Some(calibration));
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Learnt { digest, namespace, text } => {
                self.shared.reuse.pending.fetch_sub(1, Relaxed);
                self.learn(digest, &namespace, text);
            }
            Event::Aliased { digest, key, alias } => {
                if let Some(scope) = self.scopes.get(&digest) {
                    self.changes.push(Change::Alias { scope: scope.number, key, alias });
                }
            }
            Event::Unaliased { digest, key } => {
                if let Some(scope) = self.scopes.get(&digest) {
                    self.changes.push(Change::NoAlias { scope: scope.number, key });
                }
            }
            Event::Audited { certificate, audit } => _ = self.audited.insert(certificate, audit),
            Event::Calibrate { digest, namespace, reply } => {
                self.scope(digest, &namespace).waiting = Some(reply);
                self.calibrate_what_is_due();
            }
            Event::Calibrated(calibrated) => self.install(*calibrated),
            Event::Erase { keys, reply } => {
                // Who asked may have given up.
                let _ = reply.send(self.erase(&keys));
            }
            Event::Stop => {}
        }
    }

    /// Forgets texts, and writes the file anew without them.
    fn erase(&mut self, keys: &HashSet<Key>) -> Result<Erased, String> {
        let mut erased = Erased::default();
        for scope in self.scopes.values_mut() {
            let matcher = scope.field.matcher();
            for key in keys {
                // A calibration that is being made may have given it to a matcher that it is not in here.
                if let Some(matcher) = &matcher {
                    matcher.neighbours().remove(key);
                }
                let Some(at) = scope.by_key.remove(key) else { continue };
                scope.texts.remove(&at);
                erased.texts += 1;
                self.changes.push(Change::Forget { scope: scope.number, at });
            }
            scope.field.texts.store(scope.texts.len(), Relaxed);
            let gone = scope.keep_aliases_where(|key, alias| !keys.contains(key) && !keys.contains(&alias.source));
            erased.aliases += gone.len();
            self.changes.extend(gone);
        }
        if self.copies > 0 {
            self.erased.extend(keys);
        }
        self.prune();
        self.write();
        match &mut self.log {
            // Whether or not what was forgotten could be written down just now.
            Some(log) => log.rewrite(keys).map(|()| erased).map_err(|error| error.to_string()),
            // Its file could not be opened: what is in it is not to be known.
            None => Err("what was learnt of reuse cannot be opened".to_owned()),
        }
    }

    fn scope(&mut self, digest: [u8; 32], namespace: &Namespace) -> &mut Scope {
        let number = self.scopes.values().map(|scope| scope.number + 1).max().unwrap_or(0);
        let (shared, changes) = (&self.shared, &mut self.changes);
        self.scopes.entry(digest).or_insert_with(|| {
            changes.push(Change::Scope { digest, number, namespace: namespace.as_str().to_owned() });
            Scope::new(number, shared.reuse.field(digest, namespace))
        })
    }

    fn learn(&mut self, digest: [u8; 32], namespace: &Namespace, text: Text) {
        let texts_max = self.shared.reuse.config.texts_max;
        let scope = self.scope(digest, namespace);
        if scope.by_key.contains_key(&text.key) {
            return;
        }
        let (number, at) = (scope.number, scope.next);
        scope.next += 1;
        scope.by_key.insert(text.key, at);
        let matcher = scope.field.matcher();
        if let Some(matcher) = &matcher {
            matcher.add(text.key, &text.ids);
        }
        scope.texts.insert(at, text.clone());
        let mut forgotten = Vec::new();
        while scope.texts.len() > texts_max {
            let Some((at, text)) = scope.texts.pop_first() else { break };
            scope.by_key.remove(&text.key);
            if let Some(matcher) = &matcher {
                matcher.neighbours().remove(&text.key);
            }
            forgotten.push(Change::Forget { scope: number, at });
        }
        scope.field.texts.store(scope.texts.len(), Relaxed);
        self.changes.push(Change::Text { scope: number, at, text });
        self.changes.append(&mut forgotten);
        self.shared.reuse.counts.learnt.fetch_add(1, Relaxed);
    }

    fn write(&mut self) {
        let audited = self.audited.drain();
        self.changes
            .extend(audited.map(|(certificate, audit)| Change::Audit { certificate, audit: lock(&audit).clone() }));
        if self.changes.is_empty() {
            return;
        }
        if let Some(log) = &self.log
            && let Err(error) = log.write(&self.changes)
        {
            tracing::warn!(%error, "what was learnt of reuse cannot be kept");
        }
        self.changes.clear();
    }

    /// Forgets texts whose entries are gone: they can be no source, and their words are not to stay.
    fn prune(&mut self) {
        let now = self.shared.now();
        for scope in self.scopes.values_mut() {
            let old: Vec<(u64, Key)> = scope.texts.range(..scope.settled).map(|(&at, text)| (at, text.key)).collect();
            let matcher = scope.field.matcher();
            for block in old.chunks(READ_ROWS) {
                let keys: Vec<Key> = block.iter().map(|&(_, key)| key).collect();
                let entries = self.shared.store.contains_many(&keys, now);
                for (&(at, key), _) in block.iter().zip(entries).filter(|(_, entry)| entry.is_none()) {
                    scope.texts.remove(&at);
                    scope.by_key.remove(&key);
                    if let Some(matcher) = &matcher {
                        matcher.neighbours().remove(&key);
                    }
                    self.changes.push(Change::Forget { scope: scope.number, at });
                }
            }
            scope.settled = scope.next;
            scope.field.texts.store(scope.texts.len(), Relaxed);
            self.changes.extend(scope.keep_aliases(|alias| scope.by_key.contains_key(&alias.source)));
        }
    }

    fn calibrate_what_is_due(&mut self) {
        if self.calibrating {
            return;
        }
        let now = self.shared.now();
        let due = self.scopes.iter().find(|(_, scope)| scope.waiting.is_some() || is_due(scope, now));
        if let Some((&digest, _)) = due {
            self.calibrate(digest, None);
        }
    }

    /// Begins a calibration, or takes one up that was kept, on a thread of its own, which holds nothing of the cache but the
    /// embedder.
    fn calibrate(&mut self, digest: [u8; 32], kept: Option<Calibration>) {
        let misses = if kept.is_none() { self.misses(digest) } else { Vec::new() };
        let Some(scope) = self.scopes.get_mut(&digest) else { return };
        let (next, reply) = (scope.next, scope.waiting.take());
        scope.calibrated_at = scope.drawn().max(1);
        let texts: Vec<Text> = scope.texts.values().cloned().collect();
        let config = &self.shared.reuse.config;
        let options = Options {
            vetoes: config.vetoes,
            valid_seconds: u32::try_from(config.valid.as_secs()).unwrap_or(u32::MAX),
            now: self.shared.now(),
        };
        let (embedder, path) = (self.embedder.clone(), table_path(&self.shared.store));
        let (table, events, is_kept) = (self.table.clone(), self.events.clone(), kept.is_some());
        self.calibrating |= !is_kept;
        let work = move || {
            stand_back(BACKGROUND);
            let table = table.map_or_else(|| distil::table(&embedder, &path).map(Arc::new), Ok);
            let pieces = vocabulary(&embedder);
            drop(embedder);
            let result = table.clone().and_then(|table| {
                let pieces = pieces?;
                let calibration = match kept {
                    Some(calibration) => calibration,
                    None => calibrate(&table, &pieces, &misses, options).map_err(|error| error.to_string())?,
                };
                let matcher = Matcher::new(table, &pieces, calibration);
                matcher.ok_or_else(|| "it was made with another table of token vectors".to_owned())
            });
            if let Ok(matcher) = &result {
                texts.iter().for_each(|text| matcher.add(text.key, &text.ids));
            }
            let done = Calibrated { digest, result, next, kept: is_kept, table: table.ok(), reply };
            // The cache may have been closed meanwhile.
            let _ = events.send(Event::Calibrated(Box::new(done)));
        };
        if let Err(error) = std::thread::Builder::new().name("vecmemo-calibrate".to_owned()).spawn(work) {
            tracing::error!(%error, "nothing is calibrated: no thread");
            self.calibrating = false;
        } else {
            self.copies += 1;
        }
    }

    /// A scope's texts whose vectors are stored.
    fn misses(&self, digest: [u8; 32]) -> Vec<Miss> {
        let Some(scope) = self.scopes.get(&digest) else { return Vec::new() };
        let (shared, now) = (&self.shared, self.shared.now());
        let mut misses = Vec::with_capacity(scope.texts.len());
        let texts: Vec<&Text> = scope.texts.values().collect();
        for block in texts.chunks(READ_ROWS) {
            let keys: Vec<Key> = block.iter().map(|text| text.key).collect();
            let mut rows = vec![None; block.len()];
            if shared.store.peek_many(&keys, now, |index, _, row| rows[index] = Some(row.to_vec())).is_err() {
                continue;
            }
            for (text, unit) in block.iter().zip(rows) {
                let (key, ids, drawn) = (text.key, Arc::clone(&text.ids), text.drawn);
                misses.extend(unit.map(|unit| Miss { key, ids, unit, drawn }));
            }
        }
        misses
    }

    fn install(&mut self, calibrated: Calibrated) {
        let Calibrated { digest, result, next, kept, table, reply } = calibrated;
        self.calibrating &= kept;
        self.copies = self.copies.saturating_sub(1);
        let erased = if self.copies == 0 { std::mem::take(&mut self.erased) } else { self.erased.clone() };
        self.table = table.or(self.table.take());
        let Some(scope) = self.scopes.get_mut(&digest) else { return };
        let namespace = scope.field.namespace.as_str().to_owned();
        let outcome = match result {
            Err(error) => {
                tracing::warn!(namespace, error, "reuse could not be calibrated");
                Err(error)
            }
            Ok(matcher) => {
                erased.iter().for_each(|key| matcher.neighbours().remove(key));
                scope.texts.range(next..).for_each(|(_, text)| matcher.add(text.key, &text.ids));
                let calibration = matcher.calibration();
                tracing::info!(
                    namespace,
                    pairs = calibration.pairs,
                    certificates = calibration.certificates.len(),
                    kept,
                    "reuse is calibrated"
                );
                let mut audits = scope.field.audits.write().unwrap_or_else(PoisonError::into_inner);
                audits.retain(|id, _| calibration.certificates.iter().any(|certificate| certificate.id == *id));
                for one in &calibration.certificates {
                    // One that cannot be audited is off.
                    if let Ok(audit) = Audit::new(one.min_similarity, f64::from(one.max_violation)) {
                        audits.entry(one.id).or_insert_with(|| Arc::new(Mutex::new(audit)));
                    }
                }
                drop(audits);
                if !kept {
                    let json = serde_json::to_vec(calibration).expect("numbers can be written");
                    self.changes.push(Change::Calibration { scope: scope.number, json });
                    let known = |alias: &Alias| calibration.certificates.iter().any(|one| one.id == alias.certificate);
                    self.changes.extend(scope.keep_aliases(known));
                }
                *scope.field.matcher.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(matcher));
                Ok(())
            }
        };
        self.write();
        if let Some(reply) = reply {
            let _ = reply.send(outcome);
        }
    }
}

/// Whether a scope has learnt enough for a first calibration, half as much again since the last, or its certificates end soon
/// or are off.
fn is_due(scope: &Scope, now: u32) -> bool {
    let drawn = scope.drawn();
    if drawn < FIRST_TEXTS {
        return false;
    }
    if drawn > scope.calibrated_at + scope.calibrated_at / 2 {
        return true;
    }
    let Some(matcher) = scope.field.matcher() else { return false };
    let Calibration { certificates, .. } = matcher.calibration();
    let grown = drawn >= scope.calibrated_at + FIRST_TEXTS / 2;
    let ending = certificates.iter().any(|one| {
        let life = f64::from(one.expires.saturating_sub(one.made));
        f64::from(now.saturating_sub(one.made)) >= RENEW_SHARE * life
    });
    grown && (ending || certificates.iter().any(|one| scope.field.is_off(one.id)))
}

/// The pieces of text that a model's tokens stand for.
fn vocabulary(embedder: &Embedder) -> Result<Vec<String>, String> {
    let pieces: Vec<String> =
        (0..embedder.vocabulary_size()).map(|id| embedder.piece(id as u32).unwrap_or_default()).collect();
    if pieces.iter().all(String::is_empty) {
        return Err("the model's tokenizer does not say what its tokens stand for".to_owned());
    }
    Ok(pieces)
}

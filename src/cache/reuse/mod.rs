//! Reuse on the path of a miss: a near-duplicate's vector, where the caller allows it and it was shown to be near enough.
//!
//! ```text
//! missing texts ─► ids ─► alias ───────────────────────────► reused        learner thread: what was computed, in order
//!                   └─► field's matcher ─ will do ─► alias ─► reused           │ enough of it
//!                          │                          └ drawn ─► audited       ▼
//!                          └ will not ─► as any miss, and learnt ────────► calibrated (table, map, gate, certificates)
//! ```
//!
//! A *field* is what is learnt of by itself: a namespace's texts under one prompt and truncation. Nothing is learnt of a field
//! before a caller asks for reuse in it.
//!
//! Promises: who does not ask for reuse is never answered with another text's vector; a reused vector is stored for nobody, only
//! whose it is, and is never a source; a hit goes before it, and the same ids under another key too; what cannot be shown to be
//! within its bound is computed. A miss waits for its ids and for one search, for nothing else.

mod audit;
mod distil;
mod learner;
mod log;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use half::f16;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::lead::{self, Errand, Input};
use super::{Error, Shared};
use crate::batch::Embedder;
use crate::domain::{Embedding, Key, Namespace, Tokens};
use crate::reuse::{Audit, Certificate, CertificateId, Matcher, Refusal, Terms, bin};

pub(super) use audit::{Audited, audit};
pub(super) use learner::Learner;

use crate::store::{Store, shred};
use log::Text;

/// How many texts may wait to be learnt; more are not.
const PENDING_MAX: usize = 65_536;

/// How reuse is learnt.
#[derive(Clone, Debug)]
pub struct Config {
    /// The most texts of a namespace that are learnt from and may be a source, the latest ones. About a kilobyte of memory each.
    pub texts_max: usize,
    /// How long a certificate counts.
    pub valid: Duration,
    /// Whether texts that differ in a negation, a number or the order of words are never reused, whatever the gate says.
    pub vetoes: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { texts_max: 100_000, valid: Duration::from_secs(30 * 86_400), vetoes: true }
    }
}

/// An input that was answered with another text's vector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reused {
    /// Which input.
    pub index: usize,
    /// Whose vector it is.
    pub source: Key,
    /// The floor of the cosine between it and the text's own.
    pub min_similarity: f32,
    /// The share of reused vectors that may be below the floor.
    pub max_violation: f32,
    /// How sure that is, 0 to 1.
    pub confidence: f64,
    /// What says so.
    pub certificate: CertificateId,
}

/// Whose vector answers for a text, and what says so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Alias {
    source: Key,
    certificate: CertificateId,
}

/// What is known of reuse in a model's cache.
pub(super) struct Reuse {
    config: Config,
    fields: RwLock<HashMap<[u8; 32], Arc<Field>>>,
    /// To the learner, once it runs.
    events: OnceLock<Sender<Event>>,
    pending: AtomicUsize,
    counts: Counts,
}

/// What was done so far.
#[derive(Default)]
struct Counts {
    reused: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
    learnt: AtomicU64,
    dropped: AtomicU64,
    audits: AtomicU64,
    violations: AtomicU64,
    audits_failed: AtomicU64,
    suspended: AtomicU64,
}

/// A namespace's texts under one prompt and truncation.
struct Field {
    namespace: Namespace,
    matcher: RwLock<Option<Arc<Matcher>>>,
    audits: RwLock<HashMap<CertificateId, Arc<Mutex<Audit>>>>,
    aliases: RwLock<HashMap<Key, Alias>>,
    texts: AtomicUsize,
}

/// What the learner is told.
enum Event {
    Learnt { digest: [u8; 32], namespace: Namespace, text: Text },
    Aliased { digest: [u8; 32], key: Key, alias: Alias },
    Unaliased { digest: [u8; 32], key: Key },
    Audited { certificate: CertificateId, audit: Arc<Mutex<Audit>> },
    Calibrate { digest: [u8; 32], namespace: Namespace, reply: SyncSender<Result<(), String>> },
    Calibrated(Box<learner::Calibrated>),
    Erase { keys: Arc<HashSet<Key>>, reply: SyncSender<Result<Erased, String>> },
    Stop,
}

/// What was forgotten of texts that are erased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Erased {
    /// Texts that were learnt.
    pub(super) texts: usize,
    /// Texts that were answered with one of these vectors, or are one of these and were answered with another's.
    pub(super) aliases: usize,
}

/// What became of a request's texts.
pub(super) struct Attempt {
    pub(super) tried: Vec<Tried>,
    /// Where the time went.
    pub(super) tokenize: Duration,
    pub(super) search: Duration,
}

/// What became of a text.
pub(super) struct Tried {
    pub(super) index: usize,
    pub(super) tokens: Tokens,
    /// A vector, or why there is none; `None` for a text whose own vector is stored under another key.
    pub(super) outcome: Result<Found, Option<Refusal>>,
}

/// A text for which reuse is allowed.
struct Asked<'a> {
    index: usize,
    key: Key,
    ids: &'a [u32],
}

/// A vector that will do.
pub(super) struct Found {
    pub(super) reused: Reused,
    pub(super) embedding: Embedding,
    /// Whether the text's own is to be computed too.
    pub(super) drawn: bool,
}

impl Field {
    fn new(namespace: Namespace) -> Self {
        let (matcher, audits, aliases) = (RwLock::default(), RwLock::default(), RwLock::default());
        Self { namespace, matcher, audits, aliases, texts: AtomicUsize::new(0) }
    }

    fn matcher(&self) -> Option<Arc<Matcher>> {
        self.matcher.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn audit(&self, certificate: CertificateId) -> Option<Arc<Mutex<Audit>>> {
        self.audits.read().unwrap_or_else(PoisonError::into_inner).get(&certificate).cloned()
    }

    fn alias(&self, key: &Key) -> Option<Alias> {
        self.aliases.read().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    fn aliases_mut(&self) -> RwLockWriteGuard<'_, HashMap<Key, Alias>> {
        self.aliases.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_off(&self, certificate: CertificateId) -> bool {
        self.audit(certificate).is_none_or(|audit| lock(&audit).is_off())
    }

    /// Whether a text is one of those that are computed whatever a gate thinks of them, so that what is known of the
    /// certificate stays true.
    fn draws(&self, key: &Key, certificate: CertificateId) -> bool {
        let share = self.audit(certificate).map_or(1.0, |audit| lock(&audit).share());
        // A text is drawn or not however often it is asked for.
        let drawn = xxh3_64_with_seed(key.as_bytes(), certificate.0) >> 11;
        (drawn as f64) < share * (1u64 << 53) as f64
    }
}

impl Reuse {
    pub(super) fn new(config: Config) -> Self {
        let (fields, events, counts) = (RwLock::default(), OnceLock::new(), Counts::default());
        Self { config, fields, events, pending: AtomicUsize::new(0), counts }
    }

    /// The field of a scope, made if need be.
    fn field(&self, digest: [u8; 32], namespace: &Namespace) -> Arc<Field> {
        if let Some(field) = self.fields.read().unwrap_or_else(PoisonError::into_inner).get(&digest) {
            return Arc::clone(field);
        }
        let mut fields = self.fields.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(fields.entry(digest).or_insert_with(|| Arc::new(Field::new(namespace.clone()))))
    }

    fn tell(&self, event: Event) {
        if let Some(events) = self.events.get() {
            // Nobody listens any more while the cache is being closed.
            let _ = events.send(event);
        }
    }

    fn learn(&self, digest: [u8; 32], namespace: &Namespace, text: Text) {
        if self.pending.load(Relaxed) >= PENDING_MAX {
            self.counts.dropped.fetch_add(1, Relaxed);
            return;
        }
        self.pending.fetch_add(1, Relaxed);
        self.tell(Event::Learnt { digest, namespace: namespace.clone(), text });
    }

    /// Has what a field has learnt calibrated now, and waits for it.
    ///
    /// # Errors
    /// When there is too little, or it cannot be done.
    fn calibrate(&self, digest: [u8; 32], namespace: &Namespace) -> Result<(), String> {
        let (reply, answer) = sync_channel(1);
        self.tell(Event::Calibrate { digest, namespace: namespace.clone(), reply });
        answer.recv().unwrap_or_else(|_| Err("the cache is being closed".to_owned()))
    }

    /// Forgets these keys' texts, and those whose entries are gone, in memory and on disk; waits for it.
    ///
    /// # Errors
    /// When what is on disk cannot be written anew.
    pub(super) fn erase(&self, keys: Arc<HashSet<Key>>) -> Result<Erased, String> {
        if self.events.get().is_none() {
            // Nothing was ever learnt.
            return Ok(Erased::default());
        }
        let (reply, answer) = sync_channel(1);
        self.tell(Event::Erase { keys, reply });
        answer.recv().unwrap_or_else(|_| Err("the cache is being closed".to_owned()))
    }

    /// The figures so far.
    pub(super) fn figures(&self) -> ReuseFigures {
        let fields = self.fields.read().unwrap_or_else(PoisonError::into_inner);
        let counts = &self.counts;
        ReuseFigures {
            reused: counts.reused.load(Relaxed),
            refused: lock(&counts.refused).clone(),
            learnt: counts.learnt.load(Relaxed),
            dropped: counts.dropped.load(Relaxed),
            audits: counts.audits.load(Relaxed),
            audits_failed: counts.audits_failed.load(Relaxed),
            violations: counts.violations.load(Relaxed),
            suspended: counts.suspended.load(Relaxed),
            fields: fields.values().map(|field| FieldFigures::of(field)).collect(),
        }
    }
}

/// Tries to answer texts with others' vectors. Blocks for the tokenizer and a search a text. `None` if the tokenizer fails.
pub(super) fn attempt(
    shared: &Shared,
    embedder: &Embedder,
    errand: &Errand,
    namespace: &Namespace,
    terms: Terms,
    texts: Vec<(usize, Key, Input)>,
) -> Option<Attempt> {
    let started = Instant::now();
    let inputs: Vec<&Input> = texts.iter().map(|(_, _, input)| input).collect();
    let tokens = lead::tokenize(embedder, &inputs, errand).ok()?;
    let tokenize = started.elapsed();
    let reuse = &shared.reuse;
    let digest = errand.scope.digest();
    let field = reuse.field(digest, namespace);
    let matcher = field.matcher();
    let now = shared.now();
    let try_one = |(&(index, key, _), tokens): (&(usize, Key, Input), Tokens)| {
        if shared.store.find_by_tokens(&errand.scope.token_key(&tokens.ids)).is_some() {
            return Tried { index, tokens, outcome: Err(None) };
        }
        let asked = Asked { index, key, ids: &tokens.ids };
        let outcome = find(shared, &field, matcher.as_deref(), digest, terms, &asked, now);
        // Everything that will be computed is learnt from.
        let drawn = match &outcome {
            Ok(found) => found.drawn.then_some(true),
            Err((Refusal::Short, _)) => None,
            Err((_, certificate)) => Some(certificate.is_none_or(|certificate| field.draws(&key, certificate))),
        };
        if let Some(drawn) = drawn {
            reuse.learn(digest, namespace, Text { key, ids: tokens.ids.as_ref().into(), drawn });
        }
        match &outcome {
            Ok(_) => _ = reuse.counts.reused.fetch_add(1, Relaxed),
            Err((refusal, _)) => *lock(&reuse.counts.refused).entry(refusal.as_str()).or_default() += 1,
        }
        Tried { index, tokens, outcome: outcome.map_err(|(refusal, _)| Some(refusal)) }
    };
    let tried = texts.iter().zip(tokens).map(try_one).collect();
    Some(Attempt { tried, tokenize, search: started.elapsed().saturating_sub(tokenize) })
}

/// Whose vector will do for a text; else why none, and which certificate was looked at.
fn find(
    shared: &Shared,
    field: &Field,
    matcher: Option<&Matcher>,
    digest: [u8; 32],
    terms: Terms,
    asked: &Asked<'_>,
    now: u32,
) -> Result<Found, (Refusal, Option<CertificateId>)> {
    if bin(asked.ids.len()).is_none() {
        return Err((Refusal::Short, None));
    }
    let Some(matcher) = matcher else { return Err((Refusal::Uncertified, None)) };
    if let Some(alias) = field.alias(&asked.key) {
        let certificates = &matcher.calibration().certificates;
        let certificate = certificates.iter().find(|one| one.id == alias.certificate);
        let serves = |one: &&Certificate| one.serves(asked.ids.len(), terms, now) && !field.is_off(one.id);
        if let Some(certificate) = certificate.filter(serves)
            && let Some(embedding) = source(shared, &alias.source, now)
        {
            return Ok(Found { reused: Reused::new(asked.index, alias.source, certificate), embedding, drawn: false });
        }
        // Of another calibration, or for other terms: it is judged again.
        if certificate.is_none() && field.aliases_mut().remove(&asked.key).is_some() {
            shared.reuse.tell(Event::Unaliased { digest, key: asked.key });
        }
    }
    let is_off = |certificate| field.is_off(certificate);
    let matched = matcher.find(asked.ids, terms, now, &is_off)?;
    let certificate = matched.certificate;
    let Some(embedding) = source(shared, &matched.source, now) else {
        // It was evicted, or is about to be stored.
        return Err((Refusal::Distant, Some(certificate.id)));
    };
    let drawn = field.draws(&asked.key, certificate.id);
    let alias = Alias { source: matched.source, certificate: certificate.id };
    field.aliases_mut().insert(asked.key, alias);
    shared.reuse.tell(Event::Aliased { digest, key: asked.key, alias });
    Ok(Found { reused: Reused::new(asked.index, matched.source, certificate), embedding, drawn })
}

/// A source's vector, if it is there and not marked stale.
fn source(shared: &Shared, key: &Key, now: u32) -> Option<Embedding> {
    shared.read(
        &[*key],
        now,
        None,
        |found| *found = None,
        |found, _, entry, row: &[f16]| {
            *found = (!entry.stale).then(|| Embedding { unit: row.into(), norm: entry.norm });
        },
    )
}

impl Reused {
    fn new(index: usize, source: Key, certificate: &Certificate) -> Self {
        Self {
            index,
            source,
            min_similarity: certificate.min_similarity,
            max_violation: certificate.max_violation,
            confidence: certificate.confidence,
            certificate: certificate.id,
        }
    }
}

/// What reuse has done, for people and programs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ReuseFigures {
    /// Inputs answered with another text's vector.
    pub reused: u64,
    /// Inputs for which reuse was asked for and that were computed, by why.
    pub refused: BTreeMap<&'static str, u64>,
    /// Texts learnt from.
    pub learnt: u64,
    /// Texts that came too fast to be learnt from.
    pub dropped: u64,
    /// Reused vectors that were compared with the text's own.
    pub audits: u64,
    /// Reused vectors that were to be, and were not, because the text's own could not be computed.
    pub audits_failed: u64,
    /// Reused vectors that were below their floor.
    pub violations: u64,
    /// Certificates that their audits have switched off.
    pub suspended: u64,
    /// The namespaces in which it was asked for, each prompt by itself.
    pub fields: Vec<FieldFigures>,
}

/// A namespace's texts under one prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FieldFigures {
    /// The namespace.
    pub namespace: String,
    /// Texts that are learnt from.
    pub texts: u64,
    /// Texts that are answered with another's vector.
    pub aliases: u64,
    /// When it was calibrated, in Unix seconds.
    pub calibrated: Option<u32>,
    /// What was shown.
    pub certificates: Vec<CertificateFigures>,
}

/// A certificate and what its audits have found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CertificateFigures {
    /// The certificate.
    #[serde(flatten)]
    pub certificate: Certificate,
    /// Audited answers.
    pub audits: u64,
    /// Of those, how many were below the floor.
    pub audit_violations: u64,
    /// The evidence against the certificate; from 20 on it is switched off.
    pub e_value: f64,
    /// Whether it is switched off.
    pub suspended: bool,
    /// The share of answers that are audited now.
    pub audit_share: f64,
    /// The median of the audited answers' true cosines.
    pub similarity_p50: Option<f32>,
    /// The cosine that one of a hundred audited answers is below.
    pub similarity_p1: Option<f32>,
}

impl FieldFigures {
    fn of(field: &Field) -> Self {
        let matcher = field.matcher();
        let calibration = matcher.as_ref().map(|matcher| matcher.calibration());
        let certificates = calibration.iter().flat_map(|calibration| &calibration.certificates);
        Self {
            namespace: field.namespace.as_str().to_owned(),
            texts: field.texts.load(Relaxed) as u64,
            aliases: field.aliases.read().unwrap_or_else(PoisonError::into_inner).len() as u64,
            calibrated: calibration.map(|calibration| calibration.made),
            certificates: certificates.map(|certificate| CertificateFigures::of(field, certificate)).collect(),
        }
    }
}

impl CertificateFigures {
    fn of(field: &Field, certificate: &Certificate) -> Self {
        let audit = field.audit(certificate.id);
        let audit = audit.as_deref().map(lock);
        let audit = audit.as_deref();
        Self {
            certificate: certificate.clone(),
            audits: audit.map_or(0, Audit::audits),
            audit_violations: audit.map_or(0, Audit::violations),
            e_value: audit.map_or(1.0, Audit::evidence),
            suspended: audit.is_none_or(Audit::is_off),
            audit_share: audit.map_or(0.0, Audit::share),
            similarity_p50: audit.and_then(|audit| audit.quantile(0.5)),
            similarity_p1: audit.and_then(|audit| audit.quantile(0.01)),
        }
    }
}

/// Starts the learner of a cache that has learnt before.
pub(super) fn has_learnt(store: &Store) -> bool {
    let path = learner::log_path(store);
    if let Err(error) = shred::recover(&path) {
        tracing::warn!(%error, path = %path.display(), "what was left of rewriting it could not be removed");
    }
    path.exists()
}

/// Has texts that are stored learnt from, in their order.
pub(super) fn learn(
    shared: &Shared,
    embedder: &Embedder,
    errand: &Errand,
    namespace: &Namespace,
    texts: Vec<(Key, Input)>,
) -> Result<(), String> {
    let inputs: Vec<&Input> = texts.iter().map(|(_, input)| input).collect();
    let tokens = lead::tokenize(embedder, &inputs, errand)?;
    for ((key, _), tokens) in texts.iter().zip(tokens) {
        if bin(tokens.ids.len()).is_some() {
            let text = Text { key: *key, ids: tokens.ids.into(), drawn: true };
            shared.reuse.learn(errand.scope.digest(), namespace, text);
        }
    }
    Ok(())
}

/// Calibrates what has been learnt of an errand's field. Blocks for as long as that takes: the first time also for the
/// distilling of the model's tokens.
pub(super) fn calibrate(shared: &Shared, errand: &Errand, namespace: &Namespace) -> Result<FieldFigures, Error> {
    let digest = errand.scope.digest();
    shared.reuse.calibrate(digest, namespace).map_err(Error::Calibration)?;
    Ok(FieldFigures::of(&shared.reuse.field(digest, namespace)))
}

/// Starts the learner, if none runs.
pub(super) fn start(shared: &Arc<Shared>, embedder: &Embedder, learner: &OnceLock<Learner>) {
    learner.get_or_init(|| Learner::start(Arc::clone(shared), embedder.clone()));
}

/// A panic cannot leave what is locked half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

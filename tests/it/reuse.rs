//! Near-duplicates' vectors: who gets them, within which error, and what ends it.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vecmemo::batch::{self, Embedder};
use vecmemo::cache::{
    Answer, Cache, Catalogue, Erasure, Inputs, Mode, Named, Refusal, Request, ReuseFigures, ReuseTerms,
};
use vecmemo::domain::{Namespace, Status};
use vecmemo::engine::{Engine, EngineError, Model, fake};
use vecmemo::store::{self, Folder};

use crate::support::{self, PATIENCE, until};

const DIMS: usize = 48;

/// A text's vector is the sum of its tokens', some of which weigh more; a switch turns all later vectors a little, each another way.
struct Bag {
    computed: Arc<AtomicUsize>,
    drifted: Arc<AtomicBool>,
}

/// Numbers from −0.5 to 0.5 that the seed decides.
fn draws(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }
}

impl Engine for Bag {
    fn embed(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.computed.fetch_add(batch.len(), Ordering::SeqCst);
        let turned = self.drifted.load(Ordering::SeqCst) && batch.iter().all(|ids| ids.len() > 8);
        let vector = |ids: &&[u32]| {
            let mut sum = vec![0.0; DIMS];
            for &id in *ids {
                let mut draw = draws(u64::from(id));
                let weight = 1.0 + 4.0 * draw().max(0.0);
                sum.iter_mut().for_each(|value| *value += weight * draw());
            }
            if turned {
                let mut draw = draws(ids.iter().fold(7, |seed, &id| seed.wrapping_mul(31).wrapping_add(u64::from(id))));
                sum.iter_mut().for_each(|value| *value += 8.0 * draw());
            }
            sum
        };
        Ok(batch.iter().map(vector).collect())
    }
}

/// A cache around such a model.
struct Rig {
    cache: Cache,
    computed: Arc<AtomicUsize>,
    drifted: Arc<AtomicBool>,
}

impl Rig {
    fn on(folder: &Path) -> Self {
        Self::with(|model| support::open(folder, &model.card, &store::Config::default()))
    }

    fn with(open: impl FnOnce(&Model) -> store::Store) -> Self {
        let (computed, drifted) = (Arc::default(), Arc::default());
        let engine = Bag { computed: Arc::clone(&computed), drifted: Arc::clone(&drifted) };
        let model = Model { engine: Box::new(engine), ..fake::model(DIMS) };
        let store = open(&model);
        let cache = Cache::new(store, Embedder::start(model, batch::Config::default()));
        Self { cache, computed, drifted }
    }

    fn figures(&self) -> ReuseFigures {
        self.cache.stats().reuse
    }

    async fn ask(&self, texts: &[String], change: impl FnOnce(&mut Request<'_>)) -> Answer {
        let texts: Vec<Cow<'_, str>> = texts.iter().map(|text| Cow::Borrowed(text.as_str())).collect();
        let mut request = Request::new(Inputs::Texts(&texts));
        change(&mut request);
        let answer = self.cache.embed(request);
        tokio::time::timeout(PATIENCE, answer).await.expect("a request ends").unwrap()
    }

    async fn reuse(&self, texts: &[String], terms: ReuseTerms) -> Answer {
        self.ask(texts, |request| request.reuse = Some(terms)).await
    }

    /// What the texts' own vectors are.
    async fn own(&self, texts: &[String]) -> Answer {
        self.ask(texts, |request| request.mode = Mode::Bypass).await
    }

    /// Learns from texts as they come, and calibrates.
    async fn calibrated(self, traffic: &[String]) -> Self {
        for texts in traffic.chunks(256) {
            let answer = self.reuse(texts, TERMS).await;
            assert_eq!(answer.not_reused, Some(Refusal::Uncertified));
        }
        let cache = self.cache.clone();
        let field = tokio::task::spawn_blocking(move || cache.calibrate(&Namespace::default(), None)).await.unwrap();
        let field = field.unwrap();
        assert!(field.certificates.iter().any(|one| one.certificate.meets(TERMS)), "{field:?}");
        self
    }
}

const TERMS: ReuseTerms = ReuseTerms { min_similarity: 0.95, max_violation: 0.05 };

fn words(draw: &mut impl FnMut() -> f32, count: usize) -> Vec<String> {
    (0..count).map(|_| format!("w{}", ((draw() + 0.5) * 4000.0) as u32)).collect()
}

/// Texts, each followed by edited ones of itself, in an order in which they may come: `bases` × 6.
fn traffic(seed: u64, bases: usize) -> Vec<String> {
    let mut draw = draws(seed);
    let mut all = Vec::new();
    for _ in 0..bases {
        let length = 70 + ((draw() + 0.5) * 50.0) as usize;
        let base = words(&mut draw, length);
        all.push(base.join(" "));
        for edits in [1, 2, 4, 10, 25] {
            let mut edited = base.clone();
            for _ in 0..edits {
                let at = ((draw() + 0.5) * (edited.len() - 1) as f32) as usize;
                edited[at] = words(&mut draw, 1).remove(0);
            }
            all.push(edited.join(" "));
        }
    }
    all
}

fn cosine(a: &[half::f16], b: &[half::f16]) -> f64 {
    let dot = |a: &[half::f16], b: &[half::f16]| a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[tokio::test(flavor = "multi_thread")]
async fn near_duplicates_are_reused_within_their_bound_and_only_for_those_who_ask() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::on(folder.path()).calibrated(&traffic(1, 500)).await;
    let later = traffic(2, 120);
    let (bases, edited): (Vec<_>, Vec<_>) = later.iter().cloned().enumerate().partition(|(at, _)| at % 6 == 0);
    let strip = |texts: Vec<(usize, String)>| texts.into_iter().map(|(_, text)| text).collect::<Vec<_>>();
    let (bases, edited) = (strip(bases), strip(edited));
    let seen = rig.reuse(&bases, TERMS).await;
    assert_eq!(seen.count(Status::Computed), bases.len(), "what is like nothing is computed");

    let answer = rig.reuse(&edited, TERMS).await;
    let reused = answer.count(Status::Reused);
    assert_eq!(reused, answer.reused.len());
    assert!(reused * 3 >= edited.len(), "{reused} of {} were reused", edited.len());
    let own = rig.own(&edited).await;
    let mut violations = 0;
    for one in &answer.reused {
        assert!(one.min_similarity >= TERMS.min_similarity && one.max_violation <= TERMS.max_violation);
        let source = rig.cache.get(&one.source).expect("the source is cached");
        assert_eq!(&*source.unit, answer.unit(one.index), "it is the source's vector");
        violations += usize::from(cosine(answer.unit(one.index), own.unit(one.index)) < f64::from(one.min_similarity));
    }
    // The bound and three standard errors.
    let bound = 0.05 + 3.0 * (0.05 * 0.95 / reused as f64).sqrt();
    assert!(violations as f64 <= bound * reused as f64, "{violations} of {reused} are below the floor");

    // All reused answers are audited at first, and then have their own vectors.
    until(|| rig.figures().audits >= reused as u64).await;
    let figures = rig.figures();
    assert_eq!((figures.reused, figures.violations), (reused as u64, violations as u64), "{figures:?}");
    let again = rig.ask(&edited, |_| ()).await;
    assert_eq!(again.count(Status::Hit), edited.len());
    for index in 0..edited.len() {
        assert_eq!(again.unit(index), own.unit(index), "who does not ask has the text's own vector");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_ask_is_never_answered_with_anothers_vector() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::on(folder.path()).calibrated(&traffic(1, 500)).await;
    let later = traffic(3, 40);
    rig.reuse(&later, TERMS).await;
    let fresh = traffic(3, 60).split_off(later.len());
    let before = rig.computed.load(Ordering::SeqCst);
    let answer = rig.ask(&fresh, |_| ()).await;
    assert_eq!((answer.count(Status::Computed), answer.not_reused), (fresh.len(), None));
    assert!(rig.computed.load(Ordering::SeqCst) >= before + fresh.len());

    // Another namespace's promise, a stricter one, and texts that are too short are none's.
    let others = traffic(4, 20);
    let foreign = rig.ask(&others, |request| {
        request.reuse = Some(TERMS);
        request.namespace = Namespace::new("foreign").unwrap();
    });
    assert_eq!(foreign.await.not_reused, Some(Refusal::Uncertified));
    let strict = ReuseTerms { min_similarity: 0.999, max_violation: 0.05 };
    assert_eq!(rig.reuse(&traffic(5, 2), strict).await.not_reused, Some(Refusal::Uncertified));
    let short = rig.reuse(&["a few words only".to_owned()], TERMS).await;
    assert_eq!((short.not_reused, short.count(Status::Computed)), (Some(Refusal::Short), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_learnt_is_there_after_a_restart_and_a_damaged_file_is_learnt_anew() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::on(folder.path()).calibrated(&traffic(1, 500)).await;
    let certificates: Vec<_> = rig.figures().fields[0].certificates.iter().map(|one| one.certificate.id).collect();
    rig.cache.drain().await.unwrap();
    drop(rig);

    let rig = Rig::on(folder.path());
    until(|| rig.figures().fields.first().is_some_and(|field| field.calibrated.is_some())).await;
    let kept: Vec<_> = rig.figures().fields[0].certificates.iter().map(|one| one.certificate.id).collect();
    assert_eq!(kept, certificates);
    let later = traffic(1, 520).split_off(3000);
    let bases: Vec<String> = later.iter().step_by(6).cloned().collect();
    rig.reuse(&bases, TERMS).await;
    assert!(rig.reuse(&later, TERMS).await.count(Status::Reused) > 10);
    drop(rig);

    let derived = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let log = derived.map(|path| path.join("reuse.redb")).find(|path| path.exists());
    let log = log.expect("what was learnt is on disk");
    std::fs::write(&log, b"no database").unwrap();
    let rig = Rig::on(folder.path());
    let answer = rig.reuse(&traffic(6, 2), TERMS).await;
    assert_eq!(answer.not_reused, Some(Refusal::Uncertified), "nothing is known any more");
    // The learner opens the file on its own thread.
    until(|| log.with_extension("redb.damaged").exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_whose_audits_fail_is_switched_off_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::on(folder.path()).calibrated(&traffic(1, 500)).await;
    let later = traffic(7, 300);
    rig.reuse(&later.iter().step_by(6).cloned().collect::<Vec<_>>(), TERMS).await;
    rig.drifted.store(true, Ordering::SeqCst);
    let mut reused = 0;
    let mut suspended = false;
    for texts in later.chunks(24) {
        let answer = rig.reuse(texts, TERMS).await;
        reused += answer.count(Status::Reused);
        suspended |= answer.not_reused == Some(Refusal::Suspended);
        until(|| rig.figures().audits + rig.figures().audits_failed >= reused as u64 || rig.figures().suspended > 0)
            .await;
    }
    let figures = rig.figures();
    assert!(suspended && figures.suspended > 0, "{figures:?}");
    assert!(figures.violations > 0 && reused <= 150, "{reused} were reused before it was noticed");
    let off = figures.fields[0].certificates.iter().filter(|one| one.suspended).count();
    assert!(off > 0);
    rig.cache.drain().await.unwrap();
    drop(rig);

    let rig = Rig::on(folder.path());
    until(|| rig.figures().fields.first().is_some_and(|field| field.calibrated.is_some())).await;
    let still = rig.figures().fields[0].certificates.iter().filter(|one| one.suspended).count();
    assert_eq!(still, off, "a restart forgives nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vector_whose_source_is_gone_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::on(folder.path()).calibrated(&traffic(1, 500)).await;
    let later = traffic(8, 60);
    let bases: Vec<String> = later.iter().step_by(6).cloned().collect();
    let seen = rig.reuse(&bases, TERMS).await;
    let keys: Vec<_> = seen.items.iter().map(|item| item.key).collect();
    rig.cache.remove(&keys).unwrap();
    let edited: Vec<String> =
        later.iter().enumerate().filter(|(at, _)| at % 6 == 1).map(|(_, text)| text.clone()).collect();
    let answer = rig.reuse(&edited, TERMS).await;
    let gone: Vec<_> = answer.reused.iter().filter(|one| keys.contains(&one.source)).collect();
    assert!(gone.is_empty(), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_little_traffic_is_no_calibration_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::on(folder.path());
    rig.reuse(&traffic(1, 20), TERMS).await;
    let cache = rig.cache.clone();
    let refused = tokio::task::spawn_blocking(move || cache.calibrate(&Namespace::default(), None)).await.unwrap();
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("119 texts") && message.contains("500 are needed"), "{message}");
}

/// Which files below a folder have these bytes.
fn files_with(folder: &Path, wanted: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, wanted));
        } else if std::fs::read(&path).unwrap().windows(wanted.len()).any(|window| window == wanted) {
            found.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_learnt_of_an_erased_text_is_in_no_file_and_what_was_certified_stands() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::on(folder.path()).calibrated(&traffic(1, 500)).await;
    let certificates = rig.figures().fields[0].certificates.len();
    let bases: Vec<String> = traffic(9, 3).into_iter().step_by(6).collect();
    let seen = rig.reuse(&bases, TERMS).await;
    let [erased, stays, _] = [0, 1, 2].map(|index| seen.items[index].key);
    rig.cache.drain().await.unwrap();
    drop(rig);

    // The folder of a cache that was dropped is held until its threads have ended.
    let mut held = Folder::hold(folder.path());
    until(|| {
        if held.is_err() {
            held = Folder::hold(folder.path());
        }
        held.is_ok()
    })
    .await;
    let held = held.unwrap();
    let rig = Rig::with(|model| held.open(&model.card.version, DIMS, &store::Config::default()).unwrap());
    let catalogue = Catalogue::kept_in(held, vec![rig.cache.clone()]).unwrap();
    until(|| rig.figures().fields.first().is_some_and(|field| field.calibrated.is_some())).await;
    let texts = rig.figures().fields[0].texts;
    let ids: Vec<u8> =
        rig.cache.inspect(&bases[0], "", true).unwrap().iter().flat_map(|token| token.id.to_le_bytes()).collect();
    let learnt = "reuse.redb".to_owned();
    assert!(files_with(folder.path(), erased.as_bytes()).contains(&learnt));
    assert!(files_with(folder.path(), &ids).contains(&learnt));

    let erasure = Erasure { named: Named::Keys(vec![erased]), model: None, copies: false, by: None, reason: None };
    let erasing = catalogue.clone();
    let receipt = tokio::task::spawn_blocking(move || erasing.erase(&erasure)).await.unwrap().unwrap();
    assert_eq!((receipt.erased.entries, receipt.erased.reuse_texts), (1, 1), "{receipt:?}");
    assert_eq!(files_with(folder.path(), erased.as_bytes()), Vec::<String>::new());
    assert_eq!(files_with(folder.path(), &ids), Vec::<String>::new());
    assert!(files_with(folder.path(), stays.as_bytes()).contains(&learnt));
    let field = rig.figures().fields.remove(0);
    assert_eq!((field.certificates.len(), field.texts), (certificates, texts - 1));
    rig.cache.drain().await.unwrap();
    drop((rig, catalogue));

    let rig = Rig::on(folder.path());
    until(|| rig.figures().fields.first().is_some_and(|field| field.calibrated.is_some())).await;
    assert_eq!(rig.figures().fields[0].certificates.len(), certificates);
    assert_eq!(files_with(folder.path(), erased.as_bytes()), Vec::<String>::new());
}

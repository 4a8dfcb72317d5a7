//! A tag of very many entries, invalidated: how long that takes, and that none of them is served after it.

use std::time::{Duration, Instant};

use half::f16;
use vecmemo::batch::{self, Embedder};
use vecmemo::cache::{self, Cache, Invalidated, Invalidation, SharedTier};
use vecmemo::domain::{Key, Namespace, Pattern};
use vecmemo::engine::fake;
use vecmemo::remote::{self, Asked, Memory, Notice, Tier};
use vecmemo::store::{self, NewEntry};

use super::long;
use crate::support::{DIMS, open};

/// What the long form, on a machine of its own, may take.
const AT_MOST: Duration = Duration::from_millis(50);

fn key(number: u32) -> Key {
    let mut hasher = [0; 32];
    // Spread as digests are.
    let spread = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hasher[..8].copy_from_slice(&spread.to_le_bytes());
    hasher[8..12].copy_from_slice(&number.to_le_bytes());
    Key::from_bytes(hasher)
}

/// A cache of very many entries with a tag each, `all:N`, another with the tag written a minute later, and one without.
struct Tagged {
    cache: Cache,
    numbers: Vec<u32>,
    /// When they were written, in Unix seconds.
    created: u32,
    _folder: tempfile::TempDir,
}

impl Tagged {
    fn new(tags: u32, tier: Option<SharedTier>) -> Self {
        let entries = if long() { 1_000_000 } else { 30_000 };
        let folder = tempfile::tempdir().unwrap();
        let model = fake::model(DIMS);
        let config = store::Config { capacity_entries: u64::from(entries) + 8, ..store::Config::default() };
        let store = open(folder.path(), &model.card, &config);
        let (namespace, unit) = (Namespace::default(), [f16::from_f32(0.5); DIMS]);
        let named: Vec<Vec<String>> = (0..tags).map(|tag| vec![format!("all:{tag}")]).collect();
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as u32;
        let numbers: Vec<u32> = (0..entries).collect();
        let entry = |number: u32| {
            let tags = &named[(number % tags) as usize];
            NewEntry { tags, ..NewEntry::new(key(number), &unit, 1.0, &namespace) }
        };
        for numbers in numbers.chunks(50_000) {
            store.put_many(&numbers.iter().map(|&number| entry(number)).collect::<Vec<_>>(), now).unwrap();
        }
        store.put_many(&[NewEntry::new(key(entries), &unit, 1.0, &namespace)], now).unwrap();
        store.put_many(&[NewEntry { tags: &named[0], ..entry(entries + 1) }], now + 60).unwrap();
        let config = cache::Config { tier, ..cache::Config::default() };
        let cache = Cache::with(store, Embedder::start(model, batch::Config::default()), config);
        Self { cache, numbers, created: now, _folder: folder }
    }

    fn served(&self, numbers: &[u32]) -> usize {
        let keys: Vec<Key> = numbers.iter().map(|&number| key(number)).collect();
        self.cache.lookup(&keys).into_iter().flatten().count()
    }

    /// That none is served, what is to stay is, and how long it takes until no more than that is there.
    fn is_gone(&self, what: &str, began: Instant, took: Duration, stay: &[u32]) {
        let all = self.numbers.len();
        let looked = Instant::now();
        assert_eq!(self.served(&self.numbers[..10_000]), 0);
        let look = looked.elapsed() / 10_000;
        assert_eq!((self.served(&self.numbers[all - 10_000..]), self.served(stay)), (0, stay.len()));
        let deadline = Instant::now() + Duration::from_secs(600);
        while self.cache.stats().store.entries > stay.len() as u64 {
            assert!(Instant::now() < deadline, "{} are left", self.cache.stats().store.entries);
            std::thread::sleep(Duration::from_millis(5));
        }
        let swept = began.elapsed();
        assert_eq!(self.served(stay), stay.len());
        println!(
            "{all} entries of {what}: gone in {took:.1?}, erased in {swept:.1?}; a look meanwhile took {look:.1?}"
        );
        assert!(!long() || took < AT_MOST, "{took:?}");
    }
}

#[test]
fn a_tag_of_very_many_entries_is_gone_in_milliseconds() {
    let tagged = Tagged::new(1, None);
    let all = tagged.numbers.len();
    let began = Instant::now();
    let wanted = Invalidation { tags: Some(vec!["all:0".to_owned()]), ..Invalidation::default() };
    let invalidated = tagged.cache.invalidate(&wanted).unwrap();
    let took = began.elapsed();
    assert_eq!(invalidated, Invalidated { matched: all + 1, removed: all + 1, ..Invalidated::default() });
    tagged.is_gone("a tag", began, took, &[all as u32]);
}

#[test]
fn a_pattern_of_very_many_entries_is_gone_in_milliseconds() {
    let tagged = Tagged::new(1000, None);
    let all = tagged.numbers.len();
    let began = Instant::now();
    let wanted = Invalidation { tag_glob: Some(Pattern::new("a*:*")), ..Invalidation::default() };
    let invalidated = tagged.cache.invalidate(&wanted).unwrap();
    let took = began.elapsed();
    assert_eq!(invalidated, Invalidated { matched: all + 1, removed: all + 1, ..Invalidated::default() });
    tagged.is_gone("a pattern of 1,000 tags", began, took, &[all as u32]);
}

/// The tier serves nothing until what another machine has invalidated is gone here: this is how long.
#[test]
fn a_tag_of_very_many_entries_is_gone_in_milliseconds_where_another_machine_has_invalidated_it() {
    let memory = Memory::default();
    let config = remote::Config { deadline: Duration::from_secs(30), ..remote::Config::default() };
    let [here, there] = [0, 1].map(|_| Tier::in_memory(&memory, config.clone()).unwrap());
    let shared = SharedTier::new(here.clone());
    let tagged = Tagged::new(1, Some(shared.clone()));
    shared.begin();
    let all = tagged.numbers.len() as u32;
    let (model, namespace) = (tagged.cache.card().version, Namespace::default());
    let asked = Asked { model: &model, namespace: &namespace, dims: DIMS, keys: &[key(0)] };
    let deadline = Instant::now() + Duration::from_secs(60);
    // Told when it is past, the moment is one here as well.
    let is_past = || there.now().is_some_and(|now| now > tagged.created + 1);
    while !(here.figures().ready && there.figures().ready && is_past()) {
        assert!(Instant::now() < deadline, "the tier is not ready");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (tags, before) = (vec!["all:0".to_owned()], Some(tagged.created + 1));
    let notice = Notice { tags, model: Some(model), before, ..Notice::default() };
    assert!(there.publish(&notice));
    let began = Instant::now();
    // What is asked of the tier from now on waits until it is carried out here.
    assert_eq!(here.fetch(&asked).records, [None]);
    let took = began.elapsed();
    tagged.is_gone("a tag, invalidated elsewhere", began, took, &[all, all + 1]);
}

//! A tag of very many entries, invalidated: how long that takes, and that none of them is served after it.

use std::time::{Duration, Instant};

use half::f16;
use vecmemo::batch::{self, Embedder};
use vecmemo::cache::{Cache, Invalidated, Invalidation};
use vecmemo::domain::{Key, Namespace};
use vecmemo::engine::fake;
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

#[test]
fn a_tag_of_very_many_entries_is_gone_in_milliseconds() {
    let entries = if long() { 1_000_000 } else { 30_000 };
    let folder = tempfile::tempdir().unwrap();
    let model = fake::model(DIMS);
    let config = store::Config { capacity_entries: u64::from(entries) + 8, ..store::Config::default() };
    let store = open(folder.path(), &model.card, &config);
    let (namespace, unit) = (Namespace::default(), [f16::from_f32(0.5); DIMS]);
    let tags = ["all".to_owned()];
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as u32;
    let numbers: Vec<u32> = (0..entries).collect();
    for numbers in numbers.chunks(50_000) {
        let entry = |&number: &u32| NewEntry { tags: &tags, ..NewEntry::new(key(number), &unit, 1.0, &namespace) };
        store.put_many(&numbers.iter().map(entry).collect::<Vec<_>>(), now).unwrap();
    }
    store.put_many(&[NewEntry::new(key(entries), &unit, 1.0, &namespace)], now).unwrap();
    let cache = Cache::new(store, Embedder::start(model, batch::Config::default()));

    let began = Instant::now();
    let wanted = Invalidation { tags: Some(tags.to_vec()), ..Invalidation::default() };
    let invalidated = cache.invalidate(&wanted).unwrap();
    let took = began.elapsed();
    let all = entries as usize;
    assert_eq!(invalidated, Invalidated { matched: all, removed: all, ..Invalidated::default() });
    let served = |numbers: &[u32]| {
        let keys: Vec<Key> = numbers.iter().map(|&number| key(number)).collect();
        cache.lookup(&keys).into_iter().flatten().count()
    };
    let looked = Instant::now();
    assert_eq!(served(&numbers[..10_000]), 0);
    let look = looked.elapsed() / 10_000;
    assert_eq!((served(&numbers[all - 10_000..]), served(&[entries])), (0, 1));
    let deadline = Instant::now() + Duration::from_secs(600);
    while cache.stats().store.entries > 1 {
        assert!(Instant::now() < deadline, "{} are left", cache.stats().store.entries);
        std::thread::sleep(Duration::from_millis(5));
    }
    let swept = began.elapsed();
    println!("{entries} entries of a tag: gone in {took:.1?}, erased in {swept:.1?}; a look meanwhile took {look:.1?}");
    assert!(!long() || took < AT_MOST, "{took:?}");
}

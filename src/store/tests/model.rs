//! Random operations of every kind, with reopening, crashing and resizing between them, against a `HashMap`.
//!
//! The capacity is above what the operations use, so nothing is evicted and the model is exact.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::domain::Pattern;

const NUMBERS: u32 = 24;
/// Free slots for the longest put beside all entries, so that none is evicted.
const CAPACITIES: std::ops::Range<usize> = 40..90;
const NAMESPACES: [&str; 3] = ["", "tenant", "other"];
const TAGS: [&str; 4] = ["a", "ab", "b/c", "d"];
const PATTERNS: [&str; 4] = ["a*", "*", "b/?", "x*"];

#[derive(Clone, Debug)]
struct Given {
    number: u32,
    edition: u32,
    replace: bool,
    expires: Option<u32>,
    flags: u32,
    namespace: usize,
    tags: Vec<String>,
    payload: Option<String>,
}

impl Given {
    fn flag(&self, bit: u32) -> bool {
        self.flags & 1 << bit != 0
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Put(Vec<Given>),
    Remove(Vec<u32>),
    MarkStale(Vec<u32>),
    Clear,
    Wait(u32),
    Sweep,
    Scrub(usize),
    Sync,
    Reopen,
    Crash,
    Resize(u64),
}

impl Operation {
    /// The one that this number stands for. `seconds_from` is the time that lifetimes are counted from.
    fn of(number: u64, seconds_from: u32) -> Self {
        let random = &mut Random::new(number);
        let numbers = |random: &mut Random| -> Vec<u32> {
            (0..=random.below(6)).map(|_| random.below(NUMBERS as usize) as u32).collect()
        };
        match random.below(200) {
            0..90 => {
                let attached = random.one_in(6);
                let given = |_| Given {
                    number: random.below(NUMBERS as usize) as u32,
                    edition: random.below(1 << 20) as u32,
                    replace: random.one_in(2),
                    expires: random.one_in(3).then(|| seconds_from + 1 + random.below(20) as u32),
                    flags: random.below(32) as u32,
                    namespace: random.below(NAMESPACES.len()),
                    tags: match attached {
                        true => (0..random.below(3)).map(|_| TAGS[random.below(TAGS.len())].to_owned()).collect(),
                        false => Vec::new(),
                    },
                    payload: (attached && random.one_in(3)).then(|| format!("[{}]", random.below(1000))),
                };
                Self::Put((0..1 + number as usize % 12).map(given).collect())
            }
            90..130 => Self::Remove(numbers(random)),
            130..155 => Self::MarkStale(numbers(random)),
            155 => Self::Clear,
            156..180 => Self::Wait(random.below(10) as u32),
            180..188 => Self::Sweep,
            188..194 => Self::Scrub(random.below(40)),
            194 => Self::Sync,
            195..197 => Self::Reopen,
            197..199 => Self::Crash,
            _ => Self::Resize((CAPACITIES.start + random.below(CAPACITIES.len())) as u64),
        }
    }
}

/// An entry as the store should have it.
#[derive(Clone, Debug)]
struct Held {
    given: Given,
    created: u32,
    stale: bool,
    tags: BTreeSet<String>,
    payload: Option<String>,
}

impl Held {
    fn is_valid(&self, now: u32) -> bool {
        self.given.expires.is_none_or(|expires| expires > now)
    }

    /// What is given beside a row is added to what is there.
    fn attach(&mut self, given: &Given) {
        self.tags.extend(given.tags.iter().cloned());
        self.payload = given.payload.clone().or(self.payload.take());
    }

    fn entry(&self, number: u32) -> (u32, Vec<f16>, Facts) {
        let given = &self.given;
        let facts = Facts {
            norm: given.edition as f32,
            created: self.created,
            expires: given.expires,
            flags: [given.flag(0), given.flag(1), given.flag(2), given.flag(3), self.stale],
            namespace: NAMESPACES[given.namespace].to_owned(),
        };
        (number, row(number, given.edition), facts)
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Facts {
    norm: f32,
    created: u32,
    expires: Option<u32>,
    flags: [bool; 5],
    namespace: String,
}

/// The store and what it should hold.
struct Pair {
    folder: tempfile::TempDir,
    store: Option<Store>,
    capacity: u64,
    now: u32,
    held: BTreeMap<u32, Held>,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self { folder: quick_folder(), store: None, capacity: 64, now: NOW, held: BTreeMap::new() };
        pair.reopen();
        pair
    }

    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(open(self.folder.path(), self.capacity));
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// Does it to both, and compares what they answer.
    fn apply(&mut self, operation: Operation) {
        let now = self.now;
        let keys = |numbers: &[u32]| numbers.iter().map(|&n| key(n)).collect::<Vec<_>>();
        let distinct = |numbers: Vec<u32>| numbers.into_iter().collect::<BTreeSet<_>>();
        match operation {
            Operation::Put(given) => self.put(&given),
            Operation::Remove(numbers) => {
                let removed = self.store().remove_many(&keys(&numbers)).unwrap();
                let expected = distinct(numbers).iter().filter(|n| self.held.remove(n).is_some()).count();
                assert_eq!(removed, expected);
            }
            Operation::MarkStale(numbers) => {
                let marked = self.store().mark_stale(&keys(&numbers), now).unwrap();
                let mut expected = 0;
                for number in distinct(numbers) {
                    if let Some(held) = self.held.get_mut(&number).filter(|held| held.is_valid(now) && !held.stale) {
                        held.stale = true;
                        expected += 1;
                    }
                }
                assert_eq!(marked, expected);
            }
            Operation::Clear => {
                assert_eq!(self.store().clear().unwrap(), self.held.len());
                self.held.clear();
            }
            Operation::Wait(seconds) => self.now += seconds,
            Operation::Sweep => {
                let swept = self.store().sweep_expired(now).unwrap();
                let before = self.held.len();
                self.held.retain(|_, held| held.is_valid(now));
                assert_eq!(swept, before - self.held.len());
            }
            Operation::Scrub(entries_max) => assert_eq!(self.store().scrub(entries_max).damaged, 0),
            Operation::Sync => self.store().sync().unwrap(),
            Operation::Reopen => self.reopen(),
            Operation::Crash => {
                // Not in the middle of what the thread behind does: the power-loss tests do that.
                self.store().core.aliases.settle();
                let copy = crashed_copy(self.folder.path());
                self.store = None;
                self.folder = copy;
                self.reopen();
            }
            Operation::Resize(capacity) => {
                self.capacity = capacity;
                self.reopen();
            }
        }
    }

    fn put(&mut self, given: &[Given]) {
        let rows: Vec<_> = given.iter().map(|given| row(given.number, given.edition)).collect();
        let namespaces: Vec<_> = NAMESPACES.iter().map(|name| Namespace::new(name).unwrap()).collect();
        let entries: Vec<_> = given
            .iter()
            .zip(&rows)
            .map(|(given, row)| NewEntry {
                replace: given.replace,
                expires: given.expires,
                truncated: given.flag(0),
                copied: given.flag(1),
                pinned: given.flag(2),
                refresh_ahead: given.flag(3),
                stale: given.flag(4),
                tags: &given.tags,
                payload: given.payload.as_deref(),
                ..NewEntry::new(key(given.number), row, given.edition as f32, &namespaces[given.namespace])
            })
            .collect();
        self.store().put_many(&entries, self.now).unwrap();

        let mut written = HashSet::new();
        for given in given {
            let valid = self.held.get(&given.number).filter(|held| held.is_valid(self.now)).cloned();
            let attached = |held: &Held| (!held.tags.is_empty(), held.payload.is_some());
            // The first of a call stays, and so does what is there, unless it has to be written anew to say that it has
            // tags or a payload.
            let stays = match &valid {
                None => written.contains(&given.number),
                Some(held) => {
                    let (tagged, with_payload) = attached(held);
                    !given.replace
                        && (written.contains(&given.number)
                            || tagged >= !given.tags.is_empty() && with_payload >= given.payload.is_some())
                }
            };
            let mut held = match (valid, stays) {
                (Some(held), true) => held,
                (old, _) => {
                    written.insert(given.number);
                    let (tags, payload) = old.map(|old| (old.tags, old.payload)).unwrap_or_default();
                    Held { given: given.clone(), created: self.now, stale: given.flag(4), tags, payload }
                }
            };
            held.attach(given);
            self.held.insert(given.number, held);
        }
    }

    /// Compares all that can be asked.
    fn compare(&self, random: &mut Random) {
        let (store, now) = (self.store(), self.now);
        let valid: BTreeMap<u32, &Held> =
            self.held.iter().filter(|(_, held)| held.is_valid(now)).map(|(&n, held)| (n, held)).collect();
        let expected: Vec<_> = valid.iter().map(|(&n, held)| held.entry(n)).collect();
        let by_key: HashMap<Key, u32> = (0..NUMBERS).map(|n| (key(n), n)).collect();
        let facts = |entry: &Entry| Facts {
            norm: entry.norm,
            created: entry.created,
            expires: entry.expires,
            flags: [entry.truncated, entry.copied, entry.pinned, entry.refresh_ahead, entry.stale],
            namespace: store.namespace_name(entry.namespace).unwrap(),
        };

        let keys: Vec<Key> = (0..NUMBERS).map(key).collect();
        let mut found = Vec::new();
        store
            .get_many(&keys, now, |index, entry, row| found.push((index as u32, row.to_vec(), facts(&entry))))
            .unwrap();
        found.sort_by_key(|(n, ..)| *n);
        assert_eq!(found, expected);
        let contained = store.contains_many(&keys, now).iter().filter(|entry| entry.is_some()).count();
        assert_eq!(contained, valid.len());

        // The rest is asked less often: it takes longer.
        if !random.one_in(8) {
            return;
        }
        for (&n, held) in &valid {
            assert_eq!(store.tags(&key(n)), held.tags.iter().cloned().collect::<Vec<_>>(), "number {n}");
            assert_eq!(store.payload(&key(n)), held.payload, "number {n}");
        }
        let mut scanned = Vec::new();
        let mut cursor = Cursor::default();
        let limit = 1 + random.below(9);
        loop {
            let show = |key: Key, entry: Entry, row: &[f16]| scanned.push((by_key[&key], row.to_vec(), facts(&entry)));
            if store.scan(&mut cursor, now, limit, show).unwrap() == 0 {
                break;
            }
        }
        scanned.sort_by_key(|(n, ..)| *n);
        assert_eq!(scanned, expected, "scanned {limit} at a time");

        let select = |selector: Selector<'_>| -> Vec<u32> {
            let mut numbers: Vec<u32> = store.select(&selector, now).unwrap().iter().map(|key| by_key[key]).collect();
            numbers.sort_unstable();
            numbers
        };
        let that = |wanted: &dyn Fn(&Held) -> bool| {
            valid.iter().filter(|(_, held)| wanted(held)).map(|(&n, _)| n).collect::<Vec<_>>()
        };
        assert_eq!(select(Selector::All), that(&|_| true));
        let twice = [key(3), key(5), key(3), key(NUMBERS + 1)];
        let some: Vec<u32> = [3, 5].into_iter().filter(|n| valid.contains_key(n)).collect();
        assert_eq!(select(Selector::Keys(&twice)), some);
        for tag in TAGS {
            assert_eq!(select(Selector::Tag(tag)), that(&|held| held.tags.contains(tag)), "tag {tag}");
        }
        for text in PATTERNS {
            let pattern = Pattern::new(text);
            let fits = |held: &Held| held.tags.iter().any(|tag| pattern.matches(tag));
            assert_eq!(select(Selector::TagPattern(&pattern)), that(&fits), "tags like {text}");
        }
        for (number, name) in NAMESPACES.iter().enumerate() {
            let namespace = Namespace::new(name).unwrap();
            assert_eq!(select(Selector::Namespace(&namespace)), that(&|held| held.given.namespace == number), "{name}");
        }
        let time = now - random.below(30) as u32;
        assert_eq!(select(Selector::CreatedBefore(time)), that(&|held| held.created < time));

        let info = store.info();
        assert_eq!(info.entries, self.held.len() as u64, "expired ones not swept are counted");
        assert_eq!(info.pinned, self.held.values().filter(|held| held.given.flag(2)).count() as u64);
        assert_eq!((info.quarantined, info.evicted, info.write_errors), (0, 0, 0));
        assert_eq!((info.degraded, info.put_aside), (None, Vec::new()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_agrees_with_a_hash_map(operations in prop::collection::vec(any::<u64>(), 1..60)) {
        let mut pair = Pair::new();
        let mut random = Random::new(operations.len() as u64);
        for number in operations {
            pair.apply(Operation::of(number, pair.now));
            pair.compare(&mut random);
        }
    }
}

#[test]
fn it_still_agrees_after_very_many_operations() {
    let operations = if long() { 1_000_000 } else { 3_000 };
    let seed = if long() { u64::from(std::process::id()) } else { 1 };
    println!("seed {seed}");
    let mut pair = Pair::new();
    let mut random = Random::new(seed);
    for _ in 0..operations {
        let number = random.next();
        pair.apply(Operation::of(number, pair.now));
        pair.compare(&mut random);
    }
    println!("{operations} operations, {} entries at the end", pair.held.len());
}

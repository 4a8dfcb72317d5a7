//! Random operations, with reopening, crashing and resizing between them, against a `HashMap`.
//!
//! The capacity is above what the operations use, so nothing is evicted and the model is exact.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Operation {
    Put { numbers: Vec<(u8, bool)>, edition: u32, lifetime: Option<u8> },
    Remove(Vec<u8>),
    Wait(u8),
    Reopen,
    Crash,
    Resize(u8),
}

fn operation() -> impl Strategy<Value = Operation> {
    let number = 0_u8..24;
    prop_oneof![
        6 => (prop::collection::vec((number.clone(), any::<bool>()), 1..12), 0_u32..40, prop::option::of(1_u8..20))
            .prop_map(|(numbers, edition, lifetime)| Operation::Put { numbers, edition, lifetime }),
        3 => prop::collection::vec(number, 1..6).prop_map(Operation::Remove),
        2 => (1_u8..10).prop_map(Operation::Wait),
        1 => Just(Operation::Reopen),
        1 => Just(Operation::Crash),
        1 => (40_u8..90).prop_map(Operation::Resize),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_agrees_with_a_hash_map(operations in prop::collection::vec(operation(), 1..40)) {
        let mut folder = tempfile::tempdir().unwrap();
        let mut capacity = 64;
        let mut now = NOW;
        let mut store = Some(open(folder.path(), capacity));
        let mut model: HashMap<u8, (u32, Option<u32>)> = HashMap::new();
        let namespace = Namespace::default();
        for operation in operations {
            let current = store.as_ref().unwrap();
            match operation {
                Operation::Put { numbers, edition, lifetime } => {
                    let expires = lifetime.map(|seconds| now + u32::from(seconds));
                    let rows: Vec<_> = (edition..).zip(&numbers).map(|(edition, (n, _))| row(u32::from(*n), edition)).collect();
                    let entries: Vec<_> = numbers.iter().zip(&rows)
                        .map(|((n, replace), row)| NewEntry { expires, replace: *replace, ..NewEntry::new(key(u32::from(*n)), row, 1.0, &namespace) })
                        .collect();
                    current.put_many(&entries, now).unwrap();
                    for (edition, (n, replace)) in (edition..).zip(numbers) {
                        let valid = model.get(&n).is_some_and(|(_, expires)| expires.is_none_or(|expires| expires > now));
                        if replace || !valid {
                            model.insert(n, (edition, expires));
                        }
                    }
                }
                Operation::Remove(numbers) => {
                    let keys: Vec<_> = numbers.iter().map(|n| key(u32::from(*n))).collect();
                    current.remove_many(&keys).unwrap();
                    numbers.iter().for_each(|n| { model.remove(n); });
                }
                Operation::Wait(seconds) => now += u32::from(seconds),
                Operation::Reopen => {
                    store = None;
                    store = store.or_else(|| Some(open(folder.path(), capacity)));
                }
                Operation::Crash => {
                    let copy = crashed_copy(folder.path());
                    store = None;
                    folder = copy;
                    store = store.or_else(|| Some(open(folder.path(), capacity)));
                }
                Operation::Resize(entries) => {
                    capacity = u64::from(entries);
                    store = None;
                    store = store.or_else(|| Some(open(folder.path(), capacity)));
                }
            }
            let found = served(store.as_ref().unwrap(), 0..24, now);
            for n in 0..24_u8 {
                let expected = model.get(&n).filter(|(_, expires)| expires.is_none_or(|expires| expires > now));
                let expected = expected.map(|(edition, _)| row(u32::from(n), *edition));
                prop_assert_eq!(found.get(&u32::from(n)).map(|(row, _)| row), expected.as_ref(), "number {}", n);
            }
        }
        prop_assert_eq!(store.unwrap().info().quarantined, 0);
    }
}

//! Who has how many entries.

use super::*;

/// Puts numbers, each with the namespace and the tags that it is to have.
fn put_in(
    store: &Store,
    numbers: std::ops::Range<u32>,
    namespace: impl Fn(u32) -> &'static str,
    tags: impl Fn(u32) -> Vec<String>,
) {
    let first = numbers.start as usize;
    let rows: Vec<_> = numbers.clone().map(|number| row(number, 0)).collect();
    let tags: Vec<_> = numbers.clone().map(tags).collect();
    let namespaces: Vec<_> = numbers.clone().map(|number| Namespace::new(namespace(number)).unwrap()).collect();
    let entries: Vec<_> = numbers
        .map(|number| {
            let at = number as usize - first;
            NewEntry { tags: &tags[at], ..NewEntry::new(key(number), &rows[at], 1.0, &namespaces[at]) }
        })
        .collect();
    store.put_many(&entries, NOW).unwrap();
}

fn share(name: &str, entries: u64) -> Share {
    Share { name: name.to_owned(), entries }
}

#[test]
fn of_a_small_store_every_entry_is_counted_and_none_that_is_gone() {
    let folder = quick_folder();
    let store = open(folder.path(), 4096);
    assert_eq!(store.census(NOW), Census { exact: true, ..Census::default() });
    let namespace = |number: u32| if number < 10 { "few" } else { "" };
    put_in(&store, 0..100, namespace, |number| {
        let all = Some("all".to_owned());
        all.into_iter().chain(number.is_multiple_of(4).then(|| "fourth".to_owned())).collect()
    });
    store.remove_many(&[key(4), key(5)]).unwrap();
    let census = store.census(NOW);
    assert_eq!((census.looked_at, census.exact), (98, true));
    assert_eq!(census.namespaces, [share("", 90), share("few", 8)]);
    assert_eq!(census.tags, [share("all", 98), share("fourth", 24)]);

    // Ten are named, the most frequent first.
    put_in(&store, 1000..1200, |_| "", |number| vec![format!("tag {}", number % 20)]);
    let tags = store.census(NOW).tags;
    assert_eq!((tags.len(), &tags[..2]), (10, &[share("all", 98), share("fourth", 24)][..]));
    assert_eq!(tags[2], share("tag 0", 10));
}

#[test]
fn what_is_condemned_or_expired_does_not_count() {
    let folder = quick_folder();
    let store = open(folder.path(), 4096);
    put_in(&store, 0..100, |_| "", |number| vec![if number < 30 { "old" } else { "new" }.to_owned()]);
    let (namespace, unit) = (Namespace::default(), row(200, 0));
    store
        .put_many(&[NewEntry { expires: Some(NOW + 5), ..NewEntry::new(key(200), &unit, 1.0, &namespace) }], NOW)
        .unwrap();
    assert_eq!(store.census(NOW).namespaces, [share("", 101)]);
    store.condemn(&["old".to_owned()], None, None).unwrap();
    let census = store.census(NOW + 5);
    assert_eq!((&census.namespaces[..], &census.tags[..]), (&[share("", 70)][..], &[share("new", 70)][..]));
}

#[test]
fn of_a_large_store_some_entries_are_looked_at_and_frequent_tags_are_counted_by_name() {
    const ENTRIES: u32 = 60_000;
    let folder = quick_folder();
    let store = open(folder.path(), u64::from(ENTRIES) + 64);
    // Written in turns, as an ingestion does: a sample that is in step with them would see one namespace only.
    let namespace = |number: u32| if number.is_multiple_of(4) { "quarter" } else { "" };
    put_in(&store, 0..ENTRIES, namespace, |number| {
        let third = number.is_multiple_of(3).then(|| "third".to_owned());
        let own = number.is_multiple_of(2).then(|| format!("document {number}"));
        third.into_iter().chain(own).collect()
    });
    let census = store.census(NOW);
    assert!(!census.exact && (8192..=16_384).contains(&census.looked_at), "{census:?}");
    assert_eq!(census.tags[0], share("third", u64::from(ENTRIES / 3)));
    let shares: Vec<(&str, f64)> =
        census.namespaces.iter().map(|one| (one.name.as_str(), one.entries as f64 / f64::from(ENTRIES))).collect();
    assert_eq!(shares.iter().map(|one| one.0).collect::<Vec<_>>(), ["", "quarter"]);
    assert!((shares[0].1 - 0.75).abs() < 0.02 && (shares[1].1 - 0.25).abs() < 0.02, "{shares:?}");
    assert_eq!(store.census(NOW), census, "what has not changed looks the same");
}

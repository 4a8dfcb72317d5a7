//! Entries that are gone before they are erased.

use super::*;
use crate::store::condemned::Sentence;
use crate::store::side::{Side, SideFile};

const ENTRIES: u32 = 12_000;

/// Half of them with the tag `even`, and every tenth with `ten`.
fn put_tagged(store: &Store) {
    let namespace = Namespace::default();
    let rows: Vec<_> = (0..ENTRIES).map(|number| row(number, 0)).collect();
    let tags = |number: u32| -> Vec<String> {
        let even = number.is_multiple_of(2).then(|| "even".to_owned());
        even.into_iter().chain(number.is_multiple_of(10).then(|| "ten".to_owned())).collect()
    };
    let tags: Vec<_> = (0..ENTRIES).map(tags).collect();
    let entries: Vec<_> = (0..ENTRIES as usize)
        .map(|at| NewEntry { tags: &tags[at], ..NewEntry::new(key(at as u32), &rows[at], 1.0, &namespace) })
        .collect();
    store.put_many(&entries, NOW).unwrap();
}

fn is_there(store: &Store, number: u32) -> bool {
    store.contains_many(&[key(number)], NOW)[0].is_some()
}

fn there(store: &Store) -> Vec<u32> {
    (0..ENTRIES).filter(|&number| is_there(store, number)).collect()
}

#[test]
fn what_is_condemned_is_gone_at_once_and_erased_behind() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), u64::from(ENTRIES) + 8);
    put_tagged(&store);
    assert_eq!(store.count_tagged("even").unwrap(), u64::from(ENTRIES / 2));
    store.condemn(&["even".to_owned()], None, None).unwrap();
    let odd: Vec<u32> = (0..ENTRIES).filter(|number| !number.is_multiple_of(2)).collect();
    assert_eq!(there(&store), odd);
    // Nobody brings them back but by putting them again.
    store.mark_stale(&[key(0), key(2)], NOW).unwrap();
    assert!(!is_there(&store, 0) && !is_there(&store, 2));
    let (namespace, unit) = (Namespace::default(), row(4, 1));
    let tags = ["even".to_owned()];
    store.put_many(&[NewEntry { tags: &tags, ..NewEntry::new(key(4), &unit, 1.0, &namespace) }], NOW).unwrap();
    assert_eq!(served(&store, [4], NOW)[&4].0, unit);
    until("the even ones are erased", || store.info().entries == u64::from(ENTRIES / 2 + 1));
    assert!(is_there(&store, 4));
    until("the sentence is forgotten", || store.core.side.sentences().unwrap().is_empty());
    store.condemn(&["ten".to_owned(), "none".to_owned()], None, None).unwrap();
    assert_eq!(there(&store).len() as u32, ENTRIES / 2 + 1);
    drop(store);
    let store = open(folder.path(), u64::from(ENTRIES) + 8);
    assert!(is_there(&store, 4) && !is_there(&store, 0));
}

#[test]
fn what_the_last_run_had_not_erased_is_not_served_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), u64::from(ENTRIES) + 8);
    put_tagged(&store);
    let (model, until_now) = (store.core.space.model, store.last_sequence());
    drop(store);
    let files: Arc<dyn Files> = Arc::new(System);
    let (file, _) = SideFile::open(&files, folder.path()).unwrap();
    let (side, _) = Side::open(&file, &file::short_name(&model)).unwrap();
    // In the words of a version that knew neither patterns nor moments.
    let sentence = serde_json::from_str(&format!(r#"{{"tags":["ten"],"until":{until_now}}}"#)).unwrap();
    side.add_sentence(&sentence).unwrap();
    drop((side, file));

    let store = open(folder.path(), u64::from(ENTRIES) + 8);
    assert!(!is_there(&store, 10) && is_there(&store, 11));
    until("every tenth is erased", || store.info().entries == u64::from(ENTRIES - ENTRIES / 10));
    drop(store);
    let store = open(folder.path(), u64::from(ENTRIES) + 8);
    assert_eq!(there(&store).len() as u32, ENTRIES - ENTRIES / 10);
}

/// What another machine has condemned is a tag up to a moment: what was written since stays, whatever its number.
#[test]
fn what_is_condemned_up_to_a_moment_spares_what_was_written_since() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), u64::from(ENTRIES) + 8);
    put_tagged(&store);
    let (namespace, unit) = (Namespace::default(), row(ENTRIES, 0));
    let tags = ["even".to_owned()];
    let later = NewEntry { tags: &tags, ..NewEntry::new(key(ENTRIES), &unit, 1.0, &namespace) };
    store.put_many(&[later], NOW + 1).unwrap();
    store.condemn(&["even".to_owned()], None, Some(NOW)).unwrap();
    assert!(is_there(&store, 0), "nothing is as old as that");
    store.condemn(&["even".to_owned()], None, Some(NOW + 1)).unwrap();
    assert!(!is_there(&store, 0) && is_there(&store, 1) && is_there(&store, ENTRIES));
    until("the even ones are erased", || store.info().entries == u64::from(ENTRIES / 2 + 1));
    assert!(is_there(&store, ENTRIES));
}

#[test]
fn what_is_condemned_by_a_pattern_is_gone_whichever_of_its_tags_matches() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), u64::from(ENTRIES) + 8);
    put_tagged(&store);
    let pattern = Pattern::new("t*n");
    assert_eq!(store.count_tagged_like(&pattern).unwrap(), u64::from(ENTRIES / 10));
    assert_eq!(store.count_tagged_like(&Pattern::new("*e*")).unwrap(), u64::from(ENTRIES / 2 + ENTRIES / 10));
    store.condemn(&[], Some(&pattern), None).unwrap();
    assert!(!is_there(&store, 10) && is_there(&store, 12) && is_there(&store, 11));
    until("every tenth is erased", || store.info().entries == u64::from(ENTRIES - ENTRIES / 10));
    drop(store);
    let store = open(folder.path(), u64::from(ENTRIES) + 8);
    assert_eq!(there(&store).len() as u32, ENTRIES - ENTRIES / 10);
}

#[test]
fn a_new_entry_has_nothing_of_the_condemned_one_under_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), u64::from(ENTRIES) + 8);
    put_tagged(&store);
    let (namespace, unit, tags) = (Namespace::default(), row(0, 1), ["even".to_owned()]);
    let put = |payload, tags| {
        let entry = NewEntry { payload, tags, replace: true, ..NewEntry::new(key(0), &unit, 1.0, &namespace) };
        store.put_many(&[entry], NOW).unwrap();
    };
    for (payload, later) in [(None, &[][..]), (None, &["other".to_owned()][..]), (Some("new"), &[][..])] {
        put(Some("old"), &tags);
        // Nothing is swept before the next put.
        let sweeping = store.core.writer();
        let until = sweeping.figures().last_sequence;
        drop(sweeping);
        let sentence = Sentence { tags: tags.to_vec(), pattern: None, until, before: None };
        let number = store.core.side.add_sentence(&sentence).unwrap();
        store.core.space.condemned.begin(&store.core.side).unwrap();
        assert!(!is_there(&store, 0) && is_there(&store, 1));
        put(payload, later);
        store.core.side.remove_sentence(number).unwrap();
        store.core.space.condemned.begin(&store.core.side).unwrap();
        assert_eq!((store.payload(&key(0)).as_deref(), store.tags(&key(0))), (payload, later.to_vec()));
    }
}

#[test]
fn what_is_written_after_a_restart_is_not_condemned_by_what_was_said_before() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 8);
    let (namespace, unit, tags) = (Namespace::default(), row(1, 0), ["t".to_owned()]);
    let entry = |number| NewEntry { tags: &tags, ..NewEntry::new(key(number), &unit, 1.0, &namespace) };
    store.put_many(&[entry(1), entry(2), entry(3)], NOW).unwrap();
    let until = store.last_sequence();
    // The newest were erased before the sentence was forgotten: what is left does not say how far the numbers had come.
    store.remove_many(&[key(2), key(3)]).unwrap();
    let sentence = Sentence { tags: tags.to_vec(), pattern: None, until, before: Some(NOW) };
    store.core.side.add_sentence(&sentence).unwrap();
    drop(store);
    let store = open(folder.path(), 8);
    store.put_many(&[entry(4)], NOW - 10).unwrap();
    assert!(is_there(&store, 4) && store.last_sequence() > until);
}

/// A sentence is kept as it was meant, for the next run.
#[test]
fn a_sentence_with_pattern_and_moment_reads_back() {
    let sentence = Sentence { tags: vec![], pattern: Some(Pattern::new("a*")), until: 7, before: Some(9) };
    let text = serde_json::to_string(&sentence).unwrap();
    assert_eq!(text, r#"{"tags":[],"pattern":"a*","until":7,"before":9}"#);
    assert_eq!(serde_json::from_str::<Sentence>(&text).unwrap(), sentence);
}

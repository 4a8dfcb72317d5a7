//! How long entries live, who ends them, and how they are kept fresh.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vecmemo::batch;
use vecmemo::cache::policy::{Rule, Terms};
use vecmemo::cache::{
    self, Answer, Error, Inputs, Invalidated, Invalidation, InvalidationMode, Mode, Payload, Policies, Request,
};
use vecmemo::domain::{ContentHash, Embedding, Key, Namespace, Pattern, Status};
use vecmemo::engine::{EngineError, fake};
use vecmemo::store::{self, NewEntry, Store};

use crate::support::{DIMS, Rig, embed, until, vector_of, vectors_of};

fn now() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as u32
}

fn key(rig: &Rig, text: &str) -> Key {
    rig.cache.default_scope().key(ContentHash::of(text))
}

fn rule(namespaces: &[&str], tags: &[&str], terms: Terms) -> Rule {
    let owned = |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect();
    Rule { namespaces: owned(namespaces), tags: owned(tags), terms }
}

fn policies(rules: &[(&str, Rule)]) -> cache::Config {
    let rules: BTreeMap<String, Rule> = rules.iter().map(|(name, rule)| ((*name).to_owned(), rule.clone())).collect();
    cache::Config { policies: Policies::new(&rules).unwrap(), ..cache::Config::default() }
}

fn kept(config: cache::Config) -> Rig {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    Rig::kept(folder, batch::Config::default(), config, |batch| Ok(vectors_of(batch)))
}

fn lives(seconds: u64) -> Terms {
    Terms { ttl: Some(Duration::from_secs(seconds)), ..Terms::default() }
}

/// Every vector it computes is longer than the one before.
fn ever_longer() -> impl FnMut(&[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
    let mut scale = 0.0;
    move |batch| {
        scale += 1.0;
        Ok(vectors_of(batch).into_iter().map(|vector| vector.iter().map(|value| value * scale).collect()).collect())
    }
}

async fn ask<'a>(rig: &Rig, text: &'a str, change: impl FnOnce(&mut Request<'a>)) -> Result<Answer, Error> {
    // As long as what the caller puts into the request.
    let texts: &'a [Cow<'a, str>] = Box::leak(Box::new([Cow::from(text)]));
    let mut request = Request::new(Inputs::Texts(texts));
    change(&mut request);
    rig.cache.embed(request).await
}

fn soft(rig: &Rig, text: &str) -> Invalidated {
    let mode = InvalidationMode::Soft;
    let wanted = Invalidation { texts: Some(vec![text.to_owned()]), mode, ..Invalidation::default() };
    rig.cache.invalidate(&wanted).unwrap()
}

#[tokio::test]
async fn an_entry_lives_as_its_request_says_else_as_its_policy_says() {
    let pinned = Terms { pinned: true, ..lives(300) };
    let rig = kept(policies(&[
        ("default", rule(&[], &[], lives(100))),
        ("documents", rule(&["docs*"], &["doc:*"], lives(200))),
        ("kept", rule(&[], &["keep"], pinned)),
    ]));
    let docs = Namespace::new("docs.a").unwrap();
    let tags = |tag: &str| vec![tag.to_owned()];
    let (doc, keep) = (tags("doc:7"), tags("keep"));
    let before = now();
    let answers = [
        ask(&rig, "default", |_| ()).await,
        ask(&rig, "by namespace", |request| request.namespace = docs.clone()).await,
        ask(&rig, "by tag", |request| request.tags = &doc).await,
        ask(&rig, "by tag before namespace", |request| {
            (request.tags, request.namespace) = (&keep, docs.clone());
        })
        .await,
        ask(&rig, "by request", |request| {
            (request.tags, request.ttl, request.pinned) = (&keep, Some(Duration::from_secs(7)), Some(false));
        })
        .await,
    ];
    let keys: Vec<Key> = answers.iter().map(|answer| answer.as_ref().unwrap().items[0].key).collect();
    let after = now();
    let entries = rig.cache.lookup(&keys);
    for (entry, (seconds, pinned)) in
        entries.iter().zip([(100, false), (200, false), (200, false), (300, true), (7, false)])
    {
        let entry = entry.unwrap();
        assert!((before + seconds..=after + seconds).contains(&entry.expires.unwrap()), "{entry:?}");
        assert_eq!(entry.pinned, pinned);
    }
}

#[tokio::test]
async fn jitter_spreads_the_ends_of_entries_that_were_written_together() {
    let rig = kept(policies(&[("default", rule(&[], &[], Terms { jitter: 0.5, ..lives(100_000) }))]));
    let texts: Vec<String> = (0..64).map(|number| format!("text {number}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let answer = rig.embed(&texts).await.unwrap();
    let keys: Vec<Key> = answer.items.iter().map(|item| item.key).collect();
    let mut ends: Vec<u32> = rig.cache.lookup(&keys).iter().map(|entry| entry.unwrap().expires.unwrap()).collect();
    ends.sort_unstable();
    assert!(ends[63] - ends[0] > 30_000, "{ends:?}");
    ends.dedup();
    assert!(ends.len() > 60);
}

#[tokio::test]
async fn hits_say_when_the_first_of_them_expires() {
    let rig = Rig::new();
    rig.embed(&["for ever"]).await.unwrap();
    for (text, seconds) in [("short", 50), ("long", 5000)] {
        ask(&rig, text, |request| request.ttl = Some(Duration::from_secs(seconds))).await.unwrap();
    }
    assert_eq!(rig.embed(&["for ever"]).await.unwrap().freshness.ttl, None);
    let ttl = rig.embed(&["long", "short", "for ever", "new"]).await.unwrap().freshness.ttl.unwrap();
    assert!((40..=50).contains(&ttl), "{ttl}");
}

/// A thousand hits on a stale entry are answered at once; one computation replaces it, and what was said of it stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_entry_is_answered_at_once_and_computed_anew_once_by_nobody_waiting() {
    let (rig, gate) = Rig::gated(batch::Config::default());
    let tags = vec!["doc:1".to_owned()];
    gate.open(1);
    let namespace = Namespace::new("tenant").unwrap();
    let first = ask(&rig, "text", |request| {
        (request.tags, request.pinned, request.namespace) = (&tags, Some(true), namespace.clone());
        (request.payload, request.ttl) = (Payload::Same(r#"{"page":3}"#), Some(Duration::from_secs(500)));
    });
    let first = first.await.unwrap();
    gate.wait();
    let key = first.items[0].key;
    let sequence = rig.cache.lookup(&[key])[0].unwrap().sequence;
    let wanted = Invalidation { tags: Some(tags.clone()), mode: InvalidationMode::Soft, ..Invalidation::default() };
    assert_eq!(rig.cache.invalidate(&wanted).unwrap(), Invalidated { matched: 1, marked: 1, ..Invalidated::default() });
    for _ in 0..1000 {
        let hit = ask(&rig, "text", |request| request.namespace = namespace.clone()).await.unwrap();
        assert_eq!((hit.items[0].status, hit.freshness.stale), (Status::Hit, 1));
        assert_eq!(hit.units, first.units);
    }
    assert_eq!(gate.wait(), 1);
    assert_eq!(rig.cache.stats().in_flight, 1);
    gate.open(1);
    until(|| rig.cache.stats().refreshed == 1).await;
    let fresh = ask(&rig, "text", |request| request.namespace = namespace.clone()).await.unwrap();
    assert_eq!((fresh.items[0].status, fresh.freshness.stale, rig.computed()), (Status::Hit, 0, 2));
    let entry = rig.cache.lookup(&[key])[0].unwrap();
    assert!(entry.sequence > sequence && entry.pinned && !entry.stale && !entry.copied);
    assert_eq!((rig.cache.tags(&key), rig.cache.payload(&key).as_deref()), (tags, Some(r#"{"page":3}"#)));
    assert_eq!(rig.cache.namespace_name(entry.namespace).as_deref(), Some("tenant"));
    // With neither policy nor request saying more, the new life is as long as the first.
    let life = entry.expires.unwrap() - entry.created;
    assert!((499..=501).contains(&life), "{life}");
    assert_eq!((rig.cache.stats().stale, rig.cache.stats().in_flight), (1000, 0));
}

/// A store with one entry for the text `old`, written `age` seconds ago to live a hundred, marked to be refreshed ahead.
fn aged(age: u32, config: cache::Config) -> Rig {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let model = fake::model(DIMS);
    let key = key(&Rig::on(Arc::clone(&folder), batch::Config::default(), |batch| Ok(vectors_of(batch))), "old");
    {
        let small = store::Config { capacity_entries: 4096, ..store::Config::default() };
        let store = Store::open(folder.path(), &model.card.version, DIMS, &small).unwrap();
        let embedding = Embedding::from_raw(&vector_of(&[1])).unwrap();
        let (namespace, written, tags) = (Namespace::default(), now() - age, ["seldom".to_owned()]);
        let entry = NewEntry {
            expires: Some(written + 100),
            refresh_ahead: true,
            tags: &tags,
            ..NewEntry::new(key, &embedding.unit, embedding.norm, &namespace)
        };
        store.put_many(&[entry], written).unwrap();
    }
    Rig::kept(folder, batch::Config::default(), config, |batch| Ok(vectors_of(batch)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hit_in_the_last_part_of_an_entrys_life_has_it_computed_anew_and_its_life_begun_again() {
    let policy = || policies(&[("default", rule(&[], &[], Terms { refresh_ahead: 0.2, ..lives(1000) }))]);
    let rig = aged(90, policy());
    let hit = rig.embed(&["old"]).await.unwrap();
    assert_eq!((hit.items[0].status, hit.freshness.stale), (Status::Hit, 0));
    until(|| rig.cache.stats().refreshed == 1).await;
    let entry = rig.cache.lookup(&[key(&rig, "old")])[0].unwrap();
    assert!(entry.expires.unwrap() >= now() + 990 && entry.refresh_ahead, "{entry:?}");
    assert_eq!(rig.cache.tags(&key(&rig, "old")), ["seldom"]);
    assert_eq!((rig.embed(&["old"]).await.unwrap().items[0].status, rig.computed()), (Status::Hit, 1));

    let early = aged(50, policy());
    early.embed(&["old"]).await.unwrap();
    early.cache.drain().await.unwrap();
    assert_eq!(early.computed(), 0, "too early");
}

/// The widest window of any policy tells who is asked at all; the entry's own, by its tags, decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_policys_wider_window_refreshes_nothing() {
    let rules = [
        ("default", rule(&[], &[], Terms { refresh_ahead: 0.9, ..lives(1000) })),
        ("seldom", rule(&[], &["seldom"], Terms { refresh_ahead: 0.1, ..lives(1000) })),
    ];
    let rig = aged(50, policies(&rules));
    for _ in 0..100 {
        assert_eq!(rig.embed(&["old"]).await.unwrap().items[0].status, Status::Hit);
    }
    until(|| rig.cache.stats().in_flight == 0).await;
    assert_eq!((rig.computed(), rig.cache.stats().refreshed), (0, 0));
    // Put off as it is, it is due as soon as it is marked.
    soft(&rig, "old");
    rig.embed(&["old"]).await.unwrap();
    until(|| rig.cache.stats().refreshed == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_refreshed_while_the_queue_is_more_than_half_full() {
    let config = batch::Config { queue_texts_max: 4, batch_texts_max: 1, ..batch::Config::default() };
    let (rig, gate) = Rig::gated(config);
    gate.open(1);
    rig.embed(&["text"]).await.unwrap();
    gate.wait();
    soft(&rig, "text");
    let mut waiting = vec![rig.ask("keeps the engine busy")];
    gate.wait();
    waiting.extend(["x", "y"].map(|text| rig.ask(text)));
    until(|| rig.cache.stats().queue.texts == 2).await;
    assert_eq!(rig.embed(&["text"]).await.unwrap().freshness.stale, 1);
    gate.open(3);
    for answer in waiting {
        answer.await.unwrap().unwrap();
    }
    assert_eq!(rig.computed(), 4, "the three who wait, and the first");
    gate.wait();
    gate.wait();
    assert_eq!(rig.embed(&["text"]).await.unwrap().freshness.stale, 1);
    gate.wait();
    gate.open(1);
    until(|| rig.cache.stats().refreshed == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_removed_while_it_is_computed_anew_stays_removed() {
    let (rig, gate) = Rig::gated(batch::Config::default());
    gate.open(1);
    rig.embed(&["text"]).await.unwrap();
    gate.wait();
    soft(&rig, "text");
    rig.embed(&["text"]).await.unwrap();
    gate.wait();
    assert_eq!(rig.cache.remove(&[key(&rig, "text")]).unwrap(), 1);
    gate.open(1);
    until(|| rig.cache.stats().in_flight == 0).await;
    assert_eq!((rig.cache.lookup(&[key(&rig, "text")])[0], rig.computed()), (None, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_fails_leaves_the_old_entry_and_is_not_tried_by_every_hit() {
    let mut calls = 0;
    let rig = Rig::with(batch::Config::default(), move |batch| {
        calls += 1;
        if calls == 1 { Ok(vectors_of(batch)) } else { Ok(Vec::new()) }
    });
    let first = rig.embed(&["text"]).await.unwrap();
    soft(&rig, "text");
    rig.embed(&["text"]).await.unwrap();
    until(|| rig.cache.stats().refresh_failures == 1).await;
    for _ in 0..100 {
        let hit = rig.embed(&["text"]).await.unwrap();
        assert_eq!((hit.freshness.stale, &hit.units), (1, &first.units));
    }
    rig.cache.drain().await.unwrap();
    assert_eq!((rig.computed(), rig.cache.stats().refreshed), (2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_entry_lends_its_vector_to_no_other_spelling_and_only_computes_nothing() {
    let rig = Rig::with(batch::Config::default(), ever_longer());
    let first = rig.embed(&["Same words"]).await.unwrap();
    soft(&rig, "Same words");
    let only = ask(&rig, "Same words", |request| request.mode = Mode::Only).await.unwrap();
    assert_eq!((only.freshness.stale, rig.computed()), (1, 1));
    let other = rig.embed(&["same  WORDS"]).await.unwrap();
    assert_eq!(other.items[0].status, Status::Computed);
    assert!(other.items[0].norm > first.items[0].norm);
}

#[tokio::test]
async fn switched_off_everything_is_computed_and_nothing_is_read_or_stored() {
    let rig = Rig::new();
    rig.embed(&["kept"]).await.unwrap();
    rig.cache.set_enabled(false);
    assert!(!rig.cache.is_enabled() && !rig.cache.stats().cache_enabled);
    for mode in [Mode::Use, Mode::Refresh, Mode::Bypass] {
        let answer = ask(&rig, "kept", |request| request.mode = mode).await.unwrap();
        assert_eq!((answer.items[0].status, answer.freshness.bypassed), (Status::Computed, true));
        ask(&rig, "new", |request| request.mode = mode).await.unwrap();
    }
    let missing = ask(&rig, "kept", |request| request.mode = Mode::Only).await.unwrap_err();
    assert!(matches!(missing, Error::Missing { indexes } if indexes == [0]));
    assert!(matches!(rig.cache.put(key(&rig, "put"), &vector_of(&[1])), Err(Error::SwitchedOff)));
    assert!(rig.cache.get(&key(&rig, "kept")).is_none());
    assert_eq!(rig.cache.rows(&[key(&rig, "kept")]).1, [0]);
    assert_eq!((rig.computed(), rig.cache.stats().store.entries), (7, 1));
    assert_eq!(rig.cache.store_trouble(), None, "switched off is no trouble");

    rig.cache.set_enabled(true);
    assert_eq!(rig.embed(&["kept"]).await.unwrap().items[0].status, Status::Hit);
    assert_eq!(rig.embed(&["new"]).await.unwrap().items[0].status, Status::Computed);
}

/// Entries with every combination of what can be asked for, and what each selector finds among them.
#[tokio::test]
async fn an_invalidation_removes_what_meets_all_of_its_selectors_and_nothing_else() {
    let tenant = Namespace::new("tenant").unwrap();
    let (report, note) = (vec!["doc:report".to_owned(), "year:1".to_owned()], vec!["doc:note".to_owned()]);
    let filled = || async {
        let rig = Rig::new();
        rig.embed(&["plain", "other"]).await.unwrap();
        ask(&rig, "report", |request| request.tags = &report).await.unwrap();
        ask(&rig, "note", |request| request.tags = &note).await.unwrap();
        ask(&rig, "report", |request| (request.tags, request.namespace) = (&report, tenant.clone())).await.unwrap();
        rig
    };
    let none = Invalidation::default;
    let texts = |texts: &[&str]| Some(texts.iter().map(ToString::to_string).collect());
    let rig = filled().await;
    let plain = key(&rig, "plain");
    for (wanted, expected) in [
        (Invalidation { keys: Some(vec![plain, plain, Key::from_bytes([7; 32])]), ..none() }, 1),
        (Invalidation { keys: Some(Vec::new()), ..none() }, 0),
        (Invalidation { texts: texts(&["plain", "report", "absent"]), ..none() }, 2),
        (Invalidation { texts: texts(&["report"]), namespace: Some(tenant.clone()), ..none() }, 1),
        (Invalidation { tags: Some(report.clone()), ..none() }, 2),
        (Invalidation { tags: Some(vec!["year:1".to_owned(), "doc:note".to_owned()]), ..none() }, 3),
        (Invalidation { tag_glob: Some(Pattern::new("doc:*")), ..none() }, 3),
        (Invalidation { tag_glob: Some(Pattern::new("doc:*")), tags: Some(note.clone()), ..none() }, 1),
        (Invalidation { tag_glob: Some(Pattern::new("doc:r*")), namespace: Some(tenant.clone()), ..none() }, 1),
        (Invalidation { namespace: Some(tenant.clone()), ..none() }, 1),
        (Invalidation { namespace: Some(Namespace::default()), ..none() }, 4),
        (Invalidation { namespace: Some(Namespace::new("absent").unwrap()), ..none() }, 0),
        (Invalidation { older_than: Some(Duration::from_secs(3600)), ..none() }, 0),
        (Invalidation { older_than: Some(Duration::from_secs(3600)), all: true, ..none() }, 0),
        (Invalidation { older_than: Some(Duration::from_secs(3600)), tags: Some(note.clone()), ..none() }, 0),
        (Invalidation { all: true, ..none() }, 5),
        (Invalidation { all: true, tags: Some(note.clone()), ..none() }, 1),
        (Invalidation { keys: Some(vec![plain]), texts: texts(&["other"]), ..none() }, 0),
    ] {
        let counted = rig.cache.invalidate(&Invalidation { dry_run: true, ..wanted.clone() }).unwrap();
        assert_eq!(counted, Invalidated { matched: expected, ..Invalidated::default() }, "{wanted:?}");
        assert_eq!(rig.cache.stats().store.entries, 5);

        let other = filled().await;
        let removed = other.cache.invalidate(&wanted).unwrap();
        assert_eq!(
            removed,
            Invalidated { matched: expected, removed: expected, ..Invalidated::default() },
            "{wanted:?}"
        );
        assert_eq!(other.cache.stats().store.entries as usize, 5 - expected);

        let marking = Invalidation { mode: InvalidationMode::Soft, ..wanted.clone() };
        let marked = filled().await.cache.invalidate(&marking).unwrap();
        assert_eq!(marked, Invalidated { matched: expected, marked: expected, ..Invalidated::default() }, "{wanted:?}");
    }
    assert!(matches!(rig.cache.invalidate(&none()), Err(Error::EmptySelector)));
    assert!(matches!(
        rig.cache.invalidate(&Invalidation { dry_run: true, mode: InvalidationMode::Soft, ..none() }),
        Err(Error::EmptySelector)
    ));
}

#[tokio::test]
async fn age_selects_by_when_an_entry_was_written() {
    let rig = aged(90, cache::Config::default());
    rig.embed(&["new"]).await.unwrap();
    let older = |seconds| Invalidation { older_than: Some(Duration::from_secs(seconds)), ..Invalidation::default() };
    let count = |wanted: Invalidation| rig.cache.invalidate(&Invalidation { dry_run: true, ..wanted }).unwrap().matched;
    assert_eq!((count(older(60)), count(older(1000))), (1, 0));
    let tagged = Invalidation { tag_glob: Some(Pattern::new("sel*")), ..older(60) };
    assert_eq!(
        (count(tagged.clone()), count(Invalidation { older_than: Some(Duration::from_secs(95)), ..tagged })),
        (1, 0)
    );
    assert_eq!(rig.cache.invalidate(&older(60)).unwrap().removed, 1);
    assert!(rig.cache.lookup(&[key(&rig, "old"), key(&rig, "new")])[0].is_none());
    assert_eq!(rig.embed(&["new"]).await.unwrap().items[0].status, Status::Hit);
}

#[tokio::test]
async fn payloads_are_kept_one_for_all_or_one_for_each() {
    let rig = Rig::new();
    let texts = ["a", "b", "c"].map(Cow::from);
    let each = [Some("1".to_owned()), None, Some("[3]".to_owned())];
    let request = Request { payload: Payload::Each(&each), ..Request::new(Inputs::Texts(&texts)) };
    rig.cache.embed(request).await.unwrap();
    let payload = |text| rig.cache.payload(&key(&rig, text));
    assert_eq!([payload("a"), payload("b"), payload("c")], [Some("1".to_owned()), None, Some("[3]".to_owned())]);
    ask(&rig, "d", |request| request.payload = Payload::Same("{}")).await.unwrap();
    assert_eq!((payload("d").as_deref(), payload("absent")), (Some("{}"), None));
}

#[tokio::test]
async fn stats_tell_rates_by_tier_and_window_and_why_entries_left() {
    let rig = Rig::new();
    assert_eq!((rig.cache.stats().hit_rate, rig.cache.stats().windows["1m"].hit_rate), (None, None));
    embed(&rig.cache, &["a", "b"]).await.unwrap();
    embed(&rig.cache, &["a", "b", "A"]).await.unwrap();
    ask(&rig, "a", |request| request.mode = Mode::Refresh).await.unwrap();
    rig.cache.remove(&[key(&rig, "b")]).unwrap();
    let stats = rig.cache.stats();
    for window in ["1m", "15m", "1h"] {
        let window = &stats.windows[window];
        assert_eq!((window.items["hit"], window.items["token_hit"], window.items["computed"]), (2, 1, 3), "{window:?}");
        assert_eq!((window.hit_rate, window.tiers["local"].hits), (Some(0.5), 3));
    }
    assert_eq!((stats.tiers["local"].hits, stats.tiers["local"].hit_rate), (3, Some(0.5)));
    let evictions = stats.evictions;
    assert_eq!((evictions.removed, evictions.replaced, evictions.capacity, evictions.damaged), (1, 1, 0, 0));
    assert_eq!(stats.memory.accounted_bytes, stats.store.memory_bytes);
    if cfg!(target_os = "linux") {
        assert!(stats.memory.resident_bytes.unwrap() >= stats.memory.resident_anonymous_bytes.unwrap());
    }
    let ages = rig.cache.ages();
    assert_eq!((ages.minute, ages.hour, ages.older), (2, 0, 0));
}

/// How many entries a namespace has, of those that were asked for.
async fn count_in(rig: &Rig, namespace: &str, texts: &[&'static str]) -> usize {
    let mut count = 0;
    for &text in texts {
        let answer = ask(rig, text, |request| {
            request.namespace = Namespace::new(namespace).unwrap();
            request.mode = Mode::Only;
        });
        count += usize::from(answer.await.is_ok());
    }
    count
}

#[tokio::test]
async fn a_namespace_has_no_more_entries_than_its_policy_says_and_policies_change_while_it_runs() {
    let bound = |quota| policies(&[("tenants", rule(&["tenant.*"], &[], Terms { quota, ..Terms::default() }))]);
    let rig = kept(bound(Some(3)));
    let texts = ["one", "two", "three", "four", "five", "six"];
    for namespace in ["tenant.a", "tenant.b", "free"] {
        for text in texts {
            ask(&rig, text, |request| {
                request.namespace = Namespace::new(namespace).unwrap();
                // Whatever the tags: the namespace is what counts.
                request.tags = &[];
            })
            .await
            .unwrap();
        }
    }
    for (namespace, count) in [("tenant.a", 3), ("tenant.b", 3), ("free", 6)] {
        assert_eq!(count_in(&rig, namespace, &texts).await, count, "{namespace}");
    }
    let stats = rig.cache.stats();
    assert_eq!((stats.store.entries, stats.evictions.quota, stats.evictions.capacity), (12, 6, 0));
    rig.cache.set_policies(bound(None).policies);
    for text in texts {
        ask(&rig, text, |request| request.namespace = Namespace::new("tenant.a").unwrap()).await.unwrap();
    }
    assert_eq!(count_in(&rig, "tenant.a", &texts).await, 6);
}

#[tokio::test]
async fn what_a_policy_wants_to_last_is_synced_before_it_is_answered() {
    let lasting = Terms { durability: Some(store::Durability::Always), ..Terms::default() };
    let rig = kept(policies(&[("lasting", rule(&[], &["keep:*"], lasting))]));
    let syncs = || rig.cache.stats().store.syncs;
    ask(&rig, "one", |_| {}).await.unwrap();
    assert_eq!(syncs(), 0);
    ask(&rig, "two", |request| request.tags = Box::leak(Box::new(["keep:1".to_owned()]))).await.unwrap();
    assert_eq!(syncs(), 1);
    ask(&rig, "three", |_| {}).await.unwrap();
    assert_eq!(syncs(), 1);
}

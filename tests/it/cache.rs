//! The path of a text, with a model that does as it is told.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use vecmemo::batch;
use vecmemo::cache::{Error, Inputs, Mode, Request};
use vecmemo::domain::{ContentHash, Embedding, Namespace, Status, UnusableVector};

use crate::support::{DIMS, Rig, embed, until, vector_of, vectors_of};

fn statuses(answer: &vecmemo::cache::Answer) -> Vec<&'static str> {
    answer.items.iter().map(|item| item.status.as_str()).collect()
}

fn small_queue(queue_texts_max: usize) -> batch::Config {
    batch::Config { queue_texts_max, batch_texts_max: 1, ..batch::Config::default() }
}

#[tokio::test]
async fn a_text_is_computed_once_and_then_a_hit_with_the_same_bytes() {
    let rig = Rig::new();
    let first = rig.embed(&["a text"]).await.unwrap();
    let second = rig.embed(&["a text"]).await.unwrap();
    assert_eq!((statuses(&first), statuses(&second)), (vec!["computed"], vec!["hit"]));
    assert_eq!(first.units, second.units);
    assert_eq!((first.items[0].norm, first.items[0].tokens), (second.items[0].norm, second.items[0].tokens));
    assert_eq!(rig.computed(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hundred_clients_asking_for_one_text_compute_it_once() {
    let (rig, gate) = Rig::gated(batch::Config::default());
    let asked: Vec<_> = (0..200)
        .map(|_| {
            let cache = rig.cache.clone();
            tokio::spawn(async move { embed(&cache, &["one text", "one text"]).await.unwrap() })
        })
        .collect();
    gate.wait();
    gate.open(1);
    let mut computed = 0;
    let mut units = Vec::new();
    for answer in asked {
        let answer = answer.await.unwrap();
        computed += answer.count(Status::Computed);
        units.push(answer.units);
    }
    assert_eq!((rig.computed(), computed), (1, 1));
    assert!(units.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test]
async fn duplicates_within_a_request_are_computed_once() {
    let rig = Rig::new();
    let answer = rig.embed(&["b", "a", "b", "b"]).await.unwrap();
    assert_eq!(statuses(&answer), ["computed", "computed", "joined", "joined"]);
    assert_eq!(rig.computed(), 2);
    assert_eq!(answer.unit(0), answer.unit(3));
    assert_ne!(answer.unit(0), answer.unit(1));
}

#[tokio::test]
async fn another_spelling_with_the_same_tokens_is_not_computed_again() {
    let rig = Rig::new();
    let together = rig.embed(&["Same Words", "same  words"]).await.unwrap();
    let later = rig.embed(&["SAME words"]).await.unwrap();
    let again = rig.embed(&["SAME words"]).await.unwrap();
    assert_eq!(statuses(&together), ["computed", "joined"]);
    assert_eq!((statuses(&later), statuses(&again)), (vec!["token_hit"], vec!["hit"]));
    assert_eq!(rig.computed(), 1);
    assert_eq!((together.unit(0), together.unit(0)), (together.unit(1), later.unit(0)));
}

#[tokio::test]
async fn namespaces_and_prompts_do_not_share_entries() {
    let rig = Rig::new();
    let texts = [Cow::from("text")];
    let plain = Request::new(Inputs::Texts(&texts));
    let other = Request { namespace: Namespace::new("other").unwrap(), ..plain.clone() };
    rig.cache.embed(plain.clone()).await.unwrap();
    assert_eq!(statuses(&rig.cache.embed(other.clone()).await.unwrap()), ["computed"]);
    assert_eq!(statuses(&rig.cache.embed(other).await.unwrap()), ["hit"]);
    let error = rig.cache.embed(Request { prompt_name: Some("absent"), ..plain }).await.unwrap_err();
    assert!(matches!(error, Error::UnknownPrompt { name, .. } if name == "absent"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_cancels_nothing_that_another_waits_for() {
    let (rig, gate) = Rig::gated(batch::Config::default());
    let leaves = rig.ask("shared");
    gate.wait();
    let stays = rig.ask("shared");
    leaves.abort();
    assert!(leaves.await.unwrap_err().is_cancelled());
    gate.open(2);
    let answer = stays.await.unwrap().unwrap();
    assert_eq!(rig.computed(), 1);
    assert_eq!(answer.unit(0), &*Embedding::from_raw(&rig_vector("shared")).unwrap().unit);
}

/// What the model makes of a text, by the fake tokenizer's ids.
fn rig_vector(text: &str) -> Vec<f32> {
    use vecmemo::domain::{Truncation, TruncationDirection};
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: 256 };
    let tokens = vecmemo::engine::fake::model(DIMS).tokenizer.tokenize(&[text], "", truncation).unwrap();
    vector_of(&tokens[0].ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_nobody_waits_for_any_more_is_dropped_from_the_queue() {
    let (rig, gate) = Rig::gated(small_queue(16));
    let busy = rig.ask("keeps the engine busy");
    gate.wait();
    let leaves = rig.ask("left alone");
    until(|| rig.cache.stats().queue.texts == 1).await;
    leaves.abort();
    assert!(leaves.await.unwrap_err().is_cancelled());
    gate.open(1);
    busy.await.unwrap().unwrap();
    until(|| rig.cache.stats().in_flight == 0).await;
    assert_eq!(rig.computed(), 1);
    gate.open(1);
    assert_eq!(statuses(&rig.embed(&["left alone"]).await.unwrap()), ["computed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_misses_and_still_serves_hits() {
    let (rig, gate) = Rig::gated(small_queue(2));
    gate.open(1);
    rig.embed(&["cached"]).await.unwrap();
    gate.wait();
    let mut waiting = vec![rig.ask("keeps the engine busy")];
    gate.wait();
    waiting.extend(["x", "y"].map(|text| rig.ask(text)));
    until(|| rig.cache.stats().queue.texts == 2).await;
    let error = rig.embed(&["one too many"]).await.unwrap_err();
    let Error::QueueFull { queued: 2, retry_after, .. } = error else { panic!("{error}") };
    assert!(retry_after >= Duration::from_secs(1));
    assert_eq!(statuses(&rig.embed(&["cached"]).await.unwrap()), ["hit"]);
    gate.open(3);
    for answer in waiting {
        answer.await.unwrap().unwrap();
    }
    gate.open(1);
    assert_eq!(statuses(&rig.embed(&["one too many"]).await.unwrap()), ["computed"]);
}

#[tokio::test]
async fn a_vector_that_is_not_finite_or_has_no_direction_is_an_error_and_is_not_stored() {
    let mut answers = vec![vec![f32::NAN; DIMS], vec![0.0; DIMS], vec![1.0; DIMS]].into_iter();
    let rig = Rig::with(batch::Config::default(), move |batch| Ok(answers.by_ref().take(batch.len()).collect()));
    for expected in [UnusableVector::NotFinite { index: 0 }, UnusableVector::NoDirection] {
        let error = rig.embed(&["text"]).await.unwrap_err();
        assert!(matches!(error, Error::Unusable { index: 0, source } if source == expected), "{error}");
        assert_eq!(rig.cache.stats().in_flight, 0);
    }
    assert_eq!(statuses(&rig.embed(&["text"]).await.unwrap()), ["computed"]);
}

#[tokio::test]
async fn an_engine_that_fails_or_panics_fails_its_batch_and_nothing_else() {
    let mut calls = 0;
    let rig = Rig::with(batch::Config::default(), move |batch| {
        calls += 1;
        match calls {
            1 => panic!("a bug in the engine"),
            2 => Ok(Vec::new()),
            _ => Ok(vectors_of(batch)),
        }
    });
    for expected in ["a bug in the engine", "0 vectors for 1 texts"] {
        let error = rig.embed(&["text"]).await.unwrap_err();
        assert!(matches!(&error, Error::Engine { index: 0, message } if message.contains(expected)), "{error}");
    }
    assert_eq!(statuses(&rig.embed(&["text"]).await.unwrap()), ["computed"]);
}

#[tokio::test]
async fn bypass_stores_nothing_refresh_replaces_and_only_computes_nothing() {
    let mut scale = 0.0;
    let rig = Rig::with(batch::Config::default(), move |batch| {
        scale += 1.0;
        Ok(vectors_of(batch).into_iter().map(|vector| vector.iter().map(|value| value * scale).collect()).collect())
    });
    let texts = [Cow::from("text"), Cow::from("text")];
    let request = |mode| Request { mode, ..Request::new(Inputs::Texts(&texts)) };
    let missing = rig.cache.embed(request(Mode::Only)).await.unwrap_err();
    assert!(matches!(missing, Error::Missing { indexes } if indexes == [0, 1]));

    let bypassed = rig.cache.embed(request(Mode::Bypass)).await.unwrap();
    assert_eq!(statuses(&bypassed), ["computed", "joined"]);
    assert!(rig.cache.embed(request(Mode::Only)).await.is_err());

    let used = rig.cache.embed(request(Mode::Use)).await.unwrap();
    let refreshed = rig.cache.embed(request(Mode::Refresh)).await.unwrap();
    let only = rig.cache.embed(request(Mode::Only)).await.unwrap();
    assert_eq!(rig.computed(), 3);
    assert!(used.items[0].norm < refreshed.items[0].norm);
    assert_eq!((only.items[0].norm, statuses(&only)), (refreshed.items[0].norm, vec!["hit", "hit"]));
}

#[tokio::test]
async fn a_long_text_is_cut_or_refused_as_the_request_says_cached_or_not() {
    let rig = Rig::new();
    let long = "word ".repeat(1000);
    let texts = [Cow::from("short"), Cow::from(long)];
    let request = Request::new(Inputs::Texts(&texts));
    let strict = Request { truncate: false, ..request.clone() };
    for _ in 0..2 {
        let error = rig.cache.embed(strict.clone()).await.unwrap_err();
        let Error::TooLong { index: 1, tokens, max_tokens } = error else { panic!("{error}") };
        assert!(tokens > 1000 && max_tokens < tokens);
        let answer = rig.cache.embed(request.clone()).await.unwrap();
        assert_eq!(answer.items.iter().map(|item| item.truncated).collect::<Vec<_>>(), [false, true]);
        assert_eq!(answer.items[1].tokens as usize, max_tokens);
    }
}

#[tokio::test]
async fn token_ids_are_embedded_as_they_are_and_unknown_ones_refused() {
    let rig = Rig::new();
    let sequences = [vec![1, 2, 3], vec![1, 2, 3], vec![4]];
    let request = Request::new(Inputs::Tokens(&sequences));
    let answer = rig.cache.embed(request.clone()).await.unwrap();
    assert_eq!(statuses(&answer), ["computed", "joined", "computed"]);
    assert_eq!(answer.unit(2), &*Embedding::from_raw(&vector_of(&[4])).unwrap().unit);
    assert_eq!(statuses(&rig.cache.embed(request).await.unwrap()), ["hit", "hit", "hit"]);
    let unknown = [vec![1], vec![u32::MAX]];
    let error = rig.cache.embed(Request::new(Inputs::Tokens(&unknown))).await.unwrap_err();
    assert!(matches!(error, Error::TokenId { index: 1, id: u32::MAX, .. }), "{error}");
}

#[tokio::test]
async fn what_was_answered_is_there_after_the_cache_is_opened_again() {
    let rig = Rig::new();
    let first = rig.embed(&["kept", "Kept"]).await.unwrap();
    let folder = Arc::clone(&rig.folder);
    drop(rig);
    let rig = Rig::on(folder, batch::Config::default(), |_| panic!("nothing is computed"));
    let second = rig.embed(&["kept", "Kept"]).await.unwrap();
    assert_eq!(statuses(&second), ["hit", "hit"]);
    assert_eq!(first.units, second.units);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_finishes_what_was_accepted_and_refuses_what_is_new() {
    let (rig, gate) = Rig::gated(batch::Config::default());
    let accepted = rig.ask("accepted");
    gate.wait();
    let draining = {
        let cache = rig.cache.clone();
        tokio::spawn(async move { cache.drain().await })
    };
    until(|| rig.cache.readiness().is_err()).await;
    assert!(matches!(rig.embed(&["new"]).await, Err(Error::ShuttingDown)));
    gate.open(1);
    assert_eq!(statuses(&accepted.await.unwrap().unwrap()), ["computed"]);
    draining.await.unwrap().unwrap();
    assert_eq!(statuses(&rig.embed(&["accepted"]).await.unwrap()), ["hit"]);
}

#[tokio::test]
async fn a_vector_put_by_the_caller_is_found_by_its_text() {
    let rig = Rig::new();
    let key = rig.cache.default_scope().key(ContentHash::of("imported"));
    assert!(rig.cache.get(&key).is_none());
    rig.cache.put(key, &vector_of(&[9])).unwrap();
    let answer = rig.embed(&["imported"]).await.unwrap();
    assert_eq!(statuses(&answer), ["hit"]);
    assert_eq!(rig.cache.get(&key).unwrap(), Embedding::from_raw(&vector_of(&[9])).unwrap());
    assert!(matches!(rig.cache.put(key, &[1.0]), Err(Error::Dims { expected: DIMS, found: 1 })));
    assert!(matches!(rig.cache.put(key, &[0.0; DIMS]), Err(Error::Vector(UnusableVector::NoDirection))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn order_is_kept_under_any_mix_of_hits_misses_and_duplicates(
        requests in prop::collection::vec(prop::collection::vec(0u8..40, 1..30), 1..6), concurrent in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let rig = Rig::new();
        let texts_of = |request: &Vec<u8>| -> Vec<String> { request.iter().map(|n| format!("text {n}")).collect() };
        let answers = runtime.block_on(async {
            let ask = |texts: Vec<String>| {
                let cache = rig.cache.clone();
                async move {
                    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                    embed(&cache, &texts).await.unwrap()
                }
            };
            let mut answers = Vec::new();
            if concurrent {
                let asked: Vec<_> = requests.iter().map(|request| tokio::spawn(ask(texts_of(request)))).collect();
                for answer in asked {
                    answers.push(answer.await.unwrap());
                }
            } else {
                for request in &requests {
                    answers.push(ask(texts_of(request)).await);
                }
            }
            answers
        });
        let mut distinct: Vec<u8> = requests.concat();
        distinct.sort_unstable();
        distinct.dedup();
        prop_assert_eq!(rig.computed(), distinct.len());
        for (request, answer) in requests.iter().zip(&answers) {
            for (index, text) in texts_of(request).iter().enumerate() {
                let expected = Embedding::from_raw(&rig_vector(text)).unwrap();
                prop_assert_eq!(answer.unit(index), &*expected.unit);
                prop_assert_eq!(answer.items[index].norm, expected.norm);
                prop_assert_eq!(answer.items[index].key, rig.cache.default_scope().key(ContentHash::of(text)));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_that_come_and_go_leave_no_call_behind_and_nobody_without_an_answer() {
    let rig = Rig::new();
    let clients: Vec<_> = (0..64_u64)
        .map(|client| {
            let cache = rig.cache.clone();
            tokio::spawn(async move {
                for round in 0..40 {
                    let text = format!("text {}", (client * 7 + round * 13) % 97);
                    let texts = [text.as_str()];
                    let ask = embed(&cache, &texts);
                    if (client + round) % 3 == 0 {
                        // Asks, and leaves at the first wait.
                        tokio::select! { biased; answer = ask => drop(answer.unwrap()), () = tokio::task::yield_now() => {} }
                    } else {
                        assert_eq!(ask.await.unwrap().unit(0), &*Embedding::from_raw(&rig_vector(&text)).unwrap().unit);
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    until(|| rig.cache.stats().in_flight == 0).await;
    assert_eq!(rig.cache.stats().queue.texts, 0);
}

//! Who goes first: a flood of one lane and a query of another, with a model that computes a batch when it is told to.

use std::borrow::Cow;
use std::time::Duration;

use vecmemo::batch;
use vecmemo::cache::{Answer, Cache, Error, Inputs, Request};
use vecmemo::domain::{Lane, Status};

use crate::support::{PATIENCE, Rig, until};

/// Texts a batch of the tests has at most.
const BATCH: usize = 4;

fn config(queue_texts_max: usize) -> batch::Config {
    batch::Config { queue_texts_max, batch_texts_max: BATCH, ..batch::Config::default() }
}

type Asked = tokio::task::JoinHandle<Result<Answer, Error>>;

fn ask(cache: &Cache, lane: Lane, texts: Vec<String>) -> Asked {
    let cache = cache.clone();
    tokio::spawn(async move {
        let texts: Vec<Cow<'_, str>> = texts.into_iter().map(Cow::from).collect();
        let request = Request { lane, ..Request::new(Inputs::Texts(&texts)) };
        tokio::time::timeout(PATIENCE, cache.embed(request)).await.expect("a request ends")
    })
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("text number {number}")).collect()
}

fn waiting(rig: &Rig, lane: Lane) -> usize {
    rig.cache.stats().queue.lanes[lane as usize].texts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_passes_a_flood_of_warm_up_and_ingestion_passes_it_too() {
    let (rig, gate) = Rig::gated(config(1024));
    let flood = ask(&rig.cache, Lane::WarmUp, numbered(100));
    assert_eq!(gate.wait(), BATCH);
    until(|| waiting(&rig, Lane::WarmUp) == 100 - BATCH).await;
    let ingested = ask(&rig.cache, Lane::Ingest, vec!["a document".to_owned()]);
    until(|| waiting(&rig, Lane::Ingest) == 1).await;
    let query = ask(&rig.cache, Lane::Query, vec!["a query".to_owned()]);
    until(|| waiting(&rig, Lane::Query) == 1).await;

    gate.open(1);
    assert_eq!(gate.wait(), 1);
    gate.open(1);
    assert_eq!(query.await.unwrap().unwrap().count(Status::Computed), 1);
    assert_eq!((gate.wait(), waiting(&rig, Lane::WarmUp)), (1, 100 - BATCH));
    gate.open(1);
    ingested.await.unwrap().unwrap();
    assert!(!flood.is_finished());
    gate.open(100);
    assert_eq!(flood.await.unwrap().unwrap().count(Status::Computed), 100);
    assert_eq!(rig.computed(), 102);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_for_a_text_that_waits_in_a_lower_lane_takes_it_along() {
    let (rig, gate) = Rig::gated(config(1024));
    let flood = ask(&rig.cache, Lane::WarmUp, numbered(100));
    gate.wait();
    until(|| waiting(&rig, Lane::WarmUp) == 100 - BATCH).await;
    // The very text, and another by a spelling of its own.
    let same = ask(&rig.cache, Lane::Query, vec!["text number 97".to_owned()]);
    until(|| waiting(&rig, Lane::Query) == 1).await;
    let spelled = ask(&rig.cache, Lane::Query, vec!["TEXT  number 98".to_owned()]);
    until(|| waiting(&rig, Lane::Query) == 2).await;
    assert_eq!(waiting(&rig, Lane::WarmUp), 100 - BATCH - 2);

    gate.open(1);
    assert_eq!(gate.wait(), 2);
    gate.open(1);
    for asked in [same, spelled] {
        assert_eq!(asked.await.unwrap().unwrap().count(Status::Joined), 1);
    }
    assert_eq!((gate.wait(), rig.computed()), (BATCH, BATCH + 2 + BATCH));
    gate.open(100);
    assert_eq!(flood.await.unwrap().unwrap().items.len(), 100);
    assert_eq!(rig.computed(), 100, "nothing is computed twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_up_that_floods_is_refused_while_queries_still_find_room() {
    let (rig, gate) = Rig::gated(config(16));
    let busy = ask(&rig.cache, Lane::WarmUp, numbered(1));
    gate.wait();
    let flood = ask(&rig.cache, Lane::WarmUp, (1..11).map(|number| format!("flood {number}")).collect());
    until(|| waiting(&rig, Lane::WarmUp) == 10).await;
    let refused = ask(&rig.cache, Lane::WarmUp, vec!["one too many".to_owned()]).await.unwrap().unwrap_err();
    let Error::QueueFull { lane: Lane::WarmUp, queued: 10, retry_after } = refused else { panic!("{refused}") };
    assert!(retry_after >= Duration::from_secs(1));
    let query = ask(&rig.cache, Lane::Query, vec!["a query".to_owned()]);
    until(|| waiting(&rig, Lane::Query) == 1).await;
    gate.open(100);
    for asked in [busy, flood, query] {
        asked.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_computed_anew_in_the_background_waits_behind_everything() {
    let (rig, gate) = Rig::gated(config(1024));
    gate.open(1);
    ask(&rig.cache, Lane::Query, vec!["kept".to_owned()]).await.unwrap().unwrap();
    gate.wait();
    let selector = vecmemo::cache::Invalidation {
        texts: Some(vec!["kept".to_owned()]),
        mode: vecmemo::cache::InvalidationMode::Soft,
        ..Default::default()
    };
    rig.cache.invalidate(&selector).unwrap();
    let busy = ask(&rig.cache, Lane::Query, vec!["keeps the engine busy".to_owned()]);
    gate.wait();
    let hit = ask(&rig.cache, Lane::Query, vec!["kept".to_owned()]).await.unwrap().unwrap();
    assert_eq!(hit.freshness.stale, 1);
    until(|| waiting(&rig, Lane::WarmUp) == 1).await;
    gate.open(2);
    busy.await.unwrap().unwrap();
    until(|| rig.cache.stats().refreshed == 1).await;
}

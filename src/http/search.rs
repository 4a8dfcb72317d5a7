//! `POST /search` and `GET /similar`: the cached entries whose vectors are nearest to a text's, a vector's or an entry's.
//!
//! Queries that are texts are embedded through the cache and not kept: what was asked is not what was to be found.

use std::time::Duration;

use axum::extract::{Query, Request};
use hyper::http::request::Parts;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::cache::policy::TTL_SECONDS_MAX;
use crate::cache::{self, Cursor, HITS_MAX, Inputs, Search, Searched};
use crate::domain::{Key, ParseKeyError};

use super::accept;
use super::body;
use super::call::{Answered, Call};
use super::errors::Error;
use super::lookup::parsed_keys;
use super::memory::Room;
use super::pipeline;
use super::quota::{self, Bill};
use super::wire::{Text, Texts, check_count, check_tags};

/// The most entries that all queries of a request may find together.
const FOUND_MAX: usize = 16_384;
/// Bytes of memory an entry of an answer may take.
const BYTES_AN_ENTRY: usize = 1024;

/// What is searched for: `inputs`, `vectors` or `keys`, one of the three.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SearchRequest<'a> {
    /// Texts: embedded through the cache, and not kept.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    inputs: Option<Texts<'a>>,
    /// Vectors of the model's length; of any norm but 0.
    vectors: Option<Vec<Vec<f32>>>,
    /// Keys of entries, in hexadecimal. An entry is its own nearest.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    keys: Option<Texts<'a>>,
    /// How many entries a query finds at most: 1 to 1000; 10 if not given.
    #[schema(minimum = 1, maximum = 1000, default = 10)]
    k: Option<usize>,
    /// Only entries whose cosine with the query is at least this: −1 to 1.
    #[schema(minimum = -1, maximum = 1)]
    min_similarity: Option<f32>,
    /// Whether nothing but the exact answer will do. Else a graph may answer, where it is quicker, and miss one in a hundred.
    exact: Option<bool>,
    /// Only entries of this namespace; the default one's name is empty. Entries of all if it is not given.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    namespace: Option<Text<'a>>,
    /// Only entries with one of these tags.
    tags: Option<Vec<String>>,
    /// Only entries stored more than this many seconds ago.
    older_than: Option<u64>,
    /// Only entries stored at most this many seconds ago.
    newer_than: Option<u64>,
    /// Which of the model's prompts stands before each text.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    prompt_name: Option<Text<'a>>,
    /// One of the served models; the default one if not given.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    model: Option<Text<'a>>,
    /// What an answer to the same single query gave as `cursor`: answers what comes next, of what was stored before the first page.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    cursor: Option<Text<'a>>,
}

/// What is nearest, for each query in order.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct SearchAnswer {
    /// A list a query, best first.
    results: Vec<Vec<FoundEntry>>,
    /// How it was found: `exact`, or by a `graph` of neighbours, which may miss some.
    path: &'static str,
    /// Where: `cpu`, `cuda` or `metal`.
    device: &'static str,
    /// For the next page of a single query; missing when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

/// An entry that was found.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct FoundEntry {
    /// Its key, in hexadecimal.
    key: String,
    /// The cosine of its vector with the query: −1 to 1.
    similarity: f32,
    /// What it was stored with.
    tags: Vec<String>,
    /// JSON that it was stored with; missing if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    payload: Option<Box<RawValue>>,
}

/// What `GET /similar` reads in its address.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SimilarQuery {
    key: String,
    k: Option<usize>,
    min_similarity: Option<f32>,
    #[serde(rename = "model")]
    _model: Option<String>,
}

/// Finds the cached entries that are nearest to texts, vectors or entries.
///
/// Similarity is the cosine with the vector as it is stored, in f16; higher is nearer, ties are in the order of keys.
#[utoipa::path(
    post, path = "/search", tag = "cache",
    request_body = SearchRequest<'_>,
    responses((status = 200, description = "For each query the nearest entries, best first", body = SearchAnswer))
)]
pub(super) async fn search(call: Call, request: Request) -> Result<Answered, Error> {
    let (parts, body) = request.into_parts();
    body::expect_json(&parts.headers)?;
    accept::json(&parts.headers)?;
    let received = body::read(&call, &parts.headers, body).await?;
    let asked: SearchRequest<'_> = body::parse(&received.bytes)?;
    let cache = pipeline::model(&call, asked.model.as_ref().map(|model| &*model.0))?.cache;
    let texts_max = call.service.shared.config.batch_texts_max;
    let (field, count) = asked.queries()?;
    check_count(field, count, texts_max)?;
    let search = asked.search(&call, count)?;
    let room = room(&call, count, search.k).await?;

    let queries = if let Some(texts) = &asked.inputs {
        let request = cache::Request {
            namespace: search.namespace.clone().map_or_else(|| call.namespace(None), Ok)?,
            prompt_name: asked.prompt_name.as_ref().map(|name| &*name.0),
            lane: call.lane.unwrap_or(cache::Request::new(Inputs::Texts(&texts.texts)).lane),
            ..cache::Request::new(Inputs::Texts(&texts.texts))
        };
        quota::may_compute(&call)?;
        let bill = Bill::open(&call, request.inputs);
        let computed = call.in_time(cache.query_vectors(request)).await?;
        let tokens = computed.as_ref().map_or(0, |computed| computed.tokens_computed);
        bill.into_iter().for_each(|bill| bill.settle_tokens(tokens));
        computed?.vectors
    } else if let Some(keys) = &asked.keys {
        cache.within(call.caller.reach()).stored_vectors(&parsed_keys(keys)?)?
    } else {
        asked.vectors.unwrap_or_default()
    };
    drop(received);
    let searched = call.blocking(move || cache.search(&queries, &search)).await??;
    Ok(answered(searched, count, room))
}

/// Finds the cached entries that are nearest to one of them, without itself.
#[utoipa::path(
    get, path = "/similar", tag = "cache",
    params(
        ("key" = String, Query, pattern = "^[0-9a-fA-F]{64}$", description = "The entry's key, in hexadecimal"),
        ("k" = Option<usize>, Query, minimum = 1, maximum = 1000, description = "How many at most; 10 if not given"),
        ("min_similarity" = Option<f32>, Query, minimum = -1, maximum = 1, description = "Only entries at least so similar"),
        ("model" = Option<String>, Query, description = "The model it is of; the default one if not given"),
    ),
    responses((status = 200, description = "The nearest entries, best first", body = SearchAnswer))
)]
pub(super) async fn similar(call: Call, request: Request) -> Result<Answered, Error> {
    let (parts, _) = request.into_parts();
    let asked = similar_query(&parts)?;
    let key: Key = asked.key.parse().map_err(|error: ParseKeyError| in_address(("key", error.to_string())))?;
    let cache = pipeline::model(&call, None)?.cache;
    // One more than asked for: itself.
    let k = checked_k(asked.k, HITS_MAX).map_err(in_address)?;
    let search = Search {
        k: (k + 1).min(HITS_MAX),
        min_similarity: checked_similarity(asked.min_similarity).map_err(in_address)?,
        within: call.caller.reach().clone(),
        ..Search::default()
    };
    let room = room(&call, 1, search.k).await?;
    let searching = call.blocking(move || {
        let queries = cache.within(&search.within).stored_vectors(&[key])?;
        cache.search(&queries, &search)
    });
    let mut searched = searching.await??;
    searched.next = None;
    for found in &mut searched.results {
        found.retain(|found| found.key != key);
        found.truncate(k);
    }
    Ok(answered(searched, 1, room))
}

fn similar_query(parts: &Parts) -> Result<SimilarQuery, Error> {
    let query = Query::<SimilarQuery>::try_from_uri(&parts.uri);
    Ok(query.map_err(|error| Error::BadRequest { name: "query", message: error.body_text() })?.0)
}

async fn room(call: &Call, count: usize, k: usize) -> Result<Room, Error> {
    call.in_time(call.service.shared.answer_memory.reserve(count * k * BYTES_AN_ENTRY)).await
}

/// A value that cannot be meant: where, and why.
type Refused = (&'static str, String);

fn in_body((field, message): Refused) -> Error {
    Error::invalid(field, message)
}

fn in_address((name, message): Refused) -> Error {
    Error::BadRequest { name, message }
}

fn checked_k(k: Option<usize>, k_max: usize) -> Result<usize, Refused> {
    match k.unwrap_or(Search::default().k) {
        k if (1..=k_max).contains(&k) => Ok(k),
        k => Err(("k", format!("{k} is not between 1 and {k_max}"))),
    }
}

fn checked_similarity(least: Option<f32>) -> Result<Option<f32>, Refused> {
    match least {
        Some(least) if !(-1.0..=1.0).contains(&least) => {
            Err(("min_similarity", format!("{least} is not between -1 and 1")))
        }
        least => Ok(least),
    }
}

fn checked_age(field: &'static str, seconds: Option<u64>) -> Result<Option<Duration>, Error> {
    match seconds {
        Some(seconds) if seconds > TTL_SECONDS_MAX => {
            Err(Error::invalid(field, format!("an age has at most {TTL_SECONDS_MAX} seconds")))
        }
        seconds => Ok(seconds.map(Duration::from_secs)),
    }
}

impl SearchRequest<'_> {
    /// Under which name the queries stand, and how many there are.
    fn queries(&self) -> Result<(&'static str, usize), Error> {
        match (&self.inputs, &self.vectors, &self.keys) {
            (Some(texts), None, None) => Ok(("inputs", texts.count)),
            (None, Some(vectors), None) => Ok(("vectors", vectors.len())),
            (None, None, Some(keys)) => Ok(("keys", keys.count)),
            (None, None, None) => Err(Error::invalid("body", "inputs, vectors or keys is needed")),
            _ => Err(Error::invalid("body", "inputs, vectors or keys is needed, and one of them only")),
        }
    }

    fn search(&self, call: &Call, count: usize) -> Result<Search, Error> {
        let k = checked_k(self.k, HITS_MAX.min(FOUND_MAX / count)).map_err(in_body)?;
        if let Some(tags) = &self.tags {
            if tags.is_empty() {
                return Err(Error::invalid("tags", "at least one tag is needed"));
            }
            check_tags(tags)?;
        }
        let after = match &self.cursor {
            None => None,
            Some(_) if count > 1 => return Err(Error::invalid("cursor", "only a single query has pages")),
            Some(cursor) => Some(parsed_cursor(&cursor.0)?),
        };
        Ok(Search {
            k,
            min_similarity: checked_similarity(self.min_similarity).map_err(in_body)?,
            namespace: self.namespace.as_ref().map(|name| call.namespace(Some(&name.0))).transpose()?,
            within: call.caller.reach().clone(),
            tags: self.tags.clone(),
            older_than: checked_age("older_than", self.older_than)?,
            newer_than: checked_age("newer_than", self.newer_than)?,
            after,
            exact: self.exact.unwrap_or(false),
        })
    }
}

/// A cursor as digits: similarity, key, sequence.
fn written_cursor(Cursor { similarity, key, sequence }: Cursor) -> String {
    format!("{:08x}{key}{sequence:016x}", similarity.to_bits())
}

fn parsed_cursor(text: &str) -> Result<Cursor, Error> {
    let parts = || {
        let (similarity, rest) = text.split_at_checked(8)?;
        let (key, sequence) = rest.split_at_checked(64)?;
        let is_plain = text.len() == 88 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_plain.then_some(())?;
        Some(Cursor {
            similarity: f32::from_bits(u32::from_str_radix(similarity, 16).ok()?),
            key: key.parse().ok()?,
            sequence: u64::from_str_radix(sequence, 16).ok()?,
        })
    };
    parts().ok_or_else(|| Error::invalid("cursor", "this is no cursor that an answer gave"))
}

fn answered(searched: Searched, count: usize, room: Room) -> Answered {
    let entry = |found: cache::Found| FoundEntry {
        key: found.key.to_string(),
        similarity: found.similarity,
        tags: found.tags,
        // It was JSON when it was stored, and is checked by the store's own checksum; else it is left out.
        payload: found.payload.and_then(|payload| RawValue::from_string(payload).ok()),
    };
    let results: Vec<Vec<FoundEntry>> =
        searched.results.into_iter().map(|found| found.into_iter().map(entry).collect()).collect();
    let hits = results.iter().map(Vec::len).sum();
    let cursor = searched.next.map(written_cursor);
    let path = searched.path;
    let answer = SearchAnswer { results, path: path.method.name(), device: path.device.name(), cursor };
    let body = serde_json::to_vec(&answer).expect("plain fields are always written to memory");
    Answered::of(pipeline::reply("application/json", body, room), count, hits)
}

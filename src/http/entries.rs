//! `GET` and `DELETE /entries/{key}`: one entry's facts, not its text; and its end.

use axum::extract::Request;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::cache::{self, Served};
use crate::domain::Key;

use super::call::{Answered, Audit, Call};
use super::errors::Error;
use super::pipeline;

/// What is known of an entry.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct EntryFacts {
    /// Its key, in hexadecimal.
    key: String,
    /// The model that made the vector.
    model: String,
    /// That model's fingerprint.
    fingerprint: String,
    /// Length of the vector.
    dims: usize,
    /// The vector's norm before it was scaled to length one.
    norm: f32,
    /// The text's length, as the model reads it.
    tokens: u32,
    /// Whether the text was cut to that length.
    truncated: bool,
    /// `computed`, or `copied` from another spelling with the same tokens.
    provenance: &'static str,
    /// When it was stored, in seconds since 1970.
    created: u64,
    /// For how many seconds it has been there.
    age: u64,
    /// For how many seconds it will be; `null` if for ever.
    ttl: Option<u64>,
    /// Whether it stays when room is needed.
    pinned: bool,
    /// Whether it is to be computed anew when it is next asked for.
    stale: bool,
    /// Whose part of the cache it is in; empty for the default one, `null` if the name was lost.
    namespace: Option<String>,
    /// What it was stored with.
    tags: Vec<String>,
    /// JSON that it was stored with; `null` if none.
    #[schema(value_type = Object)]
    payload: Option<Box<RawValue>>,
}

/// What became of an entry.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct RemovedEntry {
    /// `true`: it was there, and is no more.
    removed: bool,
}

/// Says what is known of one entry.
#[utoipa::path(
    get, path = "/entries/{key}", tag = "cache",
    params(("key" = String, Path, description = "The key, in hexadecimal"), ("model" = Option<String>, Query, description = "The model it is of; whichever has it if not given")),
    responses((status = 200, description = "The entry's facts", body = EntryFacts))
)]
pub(super) async fn entry(call: Call, request: Request) -> Result<Answered, Error> {
    let key = asked_key(&request)?;
    let models = pipeline::models(&call, None)?;
    let reach = call.caller.reach().clone();
    let found = call.blocking(move || {
        models.into_iter().find_map(|Served { cache, .. }| {
            let entry = cache.within(&reach).lookup(&[key]).pop().flatten()?;
            let (tags, payload, namespace) =
                (cache.tags(&key), cache.payload(&key), cache.namespace_name(entry.namespace));
            Some((cache, entry, tags, payload, namespace))
        })
    });
    let Some((cache, entry, tags, payload, namespace)) = found.await? else {
        return Err(Error::NoEntry { key: key.to_string() });
    };
    let (card, now) = (cache.card(), super::unix_seconds());
    let facts = EntryFacts {
        key: key.to_string(),
        model: card.name.clone(),
        fingerprint: card.version.to_string(),
        dims: card.dims,
        norm: entry.norm,
        tokens: entry.tokens,
        truncated: entry.truncated,
        provenance: if entry.copied { "copied" } else { "computed" },
        created: u64::from(entry.created),
        age: now.saturating_sub(u64::from(entry.created)),
        ttl: entry.expires.map(|time| u64::from(time).saturating_sub(now)),
        pinned: entry.pinned,
        stale: entry.stale,
        namespace: namespace.map(|name| call.caller.reach().called(&name).to_owned()),
        tags,
        // A payload of the library's callers may be no JSON: it is not shown then.
        payload: payload.and_then(|payload| RawValue::from_string(payload).ok()),
    };
    Ok(pipeline::json(&facts).into())
}

/// Removes one entry.
#[utoipa::path(
    delete, path = "/entries/{key}", tag = "cache",
    params(("key" = String, Path, description = "The key, in hexadecimal"), ("model" = Option<String>, Query, description = "The model it is of; whichever has it if not given")),
    responses((status = 200, description = "It was there, and is no more", body = RemovedEntry))
)]
pub(super) async fn remove(call: Call, request: Request) -> Result<Answered, Error> {
    let key = asked_key(&request)?;
    let models = pipeline::models(&call, None)?;
    let reach = call.caller.reach().clone();
    let removed = call.blocking(move || {
        let remove = |model: &Served| model.cache.within(&reach).remove(&key);
        models.iter().try_fold(0, |removed, model| Ok::<_, cache::Error>(removed + remove(model)?))
    });
    let removed = removed.await??;
    if removed == 0 {
        return Err(Error::NoEntry { key: key.to_string() });
    }
    let answered = Answered::from(pipeline::json(&RemovedEntry { removed: true }));
    Ok(answered.audited(Audit { action: "remove", to: format!("key {key}"), matched: 1, changed: removed }))
}

/// The key that the address ends in.
fn asked_key(request: &Request) -> Result<Key, Error> {
    let text = request.uri().path().rsplit('/').next().unwrap_or_default();
    text.parse()
        .map_err(|error: crate::domain::ParseKeyError| Error::BadRequest { name: "key", message: error.to_string() })
}

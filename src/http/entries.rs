//! `GET /entries/{key}`: one entry's facts, not its text.

use axum::extract::Request;
use serde::Serialize;

use crate::domain::Key;

use super::call::{Answered, Call};
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
    /// What it was stored with.
    tags: Vec<String>,
}

/// Says what is known of one entry.
#[utoipa::path(
    get, path = "/entries/{key}", tag = "cache",
    params(("key" = String, Path, description = "The key, in hexadecimal")),
    responses((status = 200, description = "The entry's facts", body = EntryFacts))
)]
pub(super) async fn entry(call: Call, request: Request) -> Result<Answered, Error> {
    let text = request.uri().path().rsplit('/').next().unwrap_or_default();
    let key: Key = text
        .parse()
        .map_err(|error: crate::domain::ParseKeyError| Error::BadRequest { name: "key", message: error.to_string() })?;
    let cache = &call.service.shared.cache;
    let Some(entry) = cache.lookup(&[key]).pop().flatten() else {
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
        tags: cache.tags(&key),
    };
    Ok(pipeline::json(&facts).into())
}

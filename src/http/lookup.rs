//! `POST /lookup`: what is cached, by text or by key, and the cached rows themselves. Computes nothing.
//!
//! A body of raw 32-byte keys (`application/octet-stream`) answered with raw rows is the cheapest answer there is.

use axum::extract::Request;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use crate::cache::{self, Cache, Inputs, Served};
use crate::domain::{Key, Namespace};

use super::accept::{self, Format};
use super::body;
use super::call::{Answered, Call};
use super::embed::{binary_headers, encoded, name_layout};
use super::errors::Error;
use super::pipeline;
use super::wire::{Direction, Text, Texts, check_count};

/// The indexes of rows that are not cached.
const MISSING: HeaderName = HeaderName::from_static("x-missing");

const KEY_BYTES: usize = 32;

/// Bytes of memory an item of the JSON answer may take.
const BYTES_AN_ITEM: usize = 256;

/// Texts or keys to look up: one of the two.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LookupRequest<'a> {
    /// Texts.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    inputs: Option<Texts<'a>>,
    /// Keys, in hexadecimal.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    keys: Option<Texts<'a>>,
    /// Whose part of the cache the texts are looked up in.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    namespace: Option<Text<'a>>,
    /// Which of the model's prompts stands before each text.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    prompt_name: Option<Text<'a>>,
    /// Which end of a text that is too long is cut off; the right one if not given.
    truncation_direction: Option<Direction>,
    /// Whether the tier shared with other machines is asked for what is not cached here, within its deadline. Nothing is brought from there.
    /// Keys are looked for as those of `namespace` and the named model, or the default ones.
    #[serde(default)]
    remote: bool,
    /// One of the served models: the default one for texts, whichever has it for keys, if not given.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    model: Option<Text<'a>>,
}

/// What is known under a key.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct LookupItem {
    /// The key, in hexadecimal.
    key: String,
    /// Whether it is cached.
    cached: bool,
    /// Where: `local`, or `remote` if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<&'static str>,
    /// For how many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    age: Option<u64>,
    /// For how many seconds more; missing if for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<u64>,
}

/// What is cached, in the order of the request.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct LookupAnswer {
    /// One item an input or key.
    items: Vec<LookupItem>,
}

/// Says what is cached, or answers the cached rows.
///
/// `Accept: application/x-npy` or `application/octet-stream` answers the unit vectors, NaN where nothing is cached.
#[utoipa::path(
    post, path = "/lookup", tag = "cache",
    request_body = LookupRequest<'_>,
    responses((status = 200, description = "One item or row an input or key, in order", body = LookupAnswer))
)]
pub(super) async fn lookup(call: Call, request: Request) -> Result<Answered, Error> {
    let (parts, body) = request.into_parts();
    let raw = parts
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| body::is_type(value.as_bytes(), "application/octet-stream"));
    if !raw {
        body::expect_json(&parts.headers).map_err(|error| match error {
            Error::ContentType { found, .. } => {
                Error::ContentType { found, expected: "application/json or application/octet-stream" }
            }
            other => other,
        })?;
    }
    let format = accept::vectors(&parts.headers)?;
    let received = body::read(&call, &parts.headers, body).await?;
    let shared = &call.service.shared;
    let Asked { keys, models, elsewhere } = if raw {
        Asked { keys: raw_keys(&received.bytes)?, models: pipeline::models(&call, None)?, elsewhere: None }
    } else {
        asked_keys(&call, &received.bytes)?
    };
    check_count("keys", keys.len(), shared.config.batch_texts_max)?;

    if elsewhere.is_some() && format != Format::Json {
        return Err(Error::invalid(
            "remote",
            "only with an answer in JSON: vectors are not brought from other machines",
        ));
    }

    // Rows of several models are of several lengths: only those of one are answered, the default if none is named.
    let cache = &models[0].cache;
    let dims = cache.card().dims;
    let bytes_a_key = if format == Format::Json { BYTES_AN_ITEM } else { dims * 6 };
    let room = call.in_time(shared.answer_memory.reserve(keys.len() * bytes_a_key)).await?;
    if format == Format::Json {
        let mut items = described(&call, &models, &keys);
        if let Some(namespace) = elsewhere {
            let cache = cache.clone();
            items = call.blocking(move || ask_elsewhere(&cache, &namespace, &keys, items)).await?;
        }
        let hits = items.iter().filter(|item| item.cached).count();
        let count = items.len();
        let body = serde_json::to_vec(&LookupAnswer { items }).expect("plain fields are always written to memory");
        return Ok(Answered::of(pipeline::reply("application/json", body, room), count, hits));
    }
    let (rows, missing) = cache.within(call.caller.reach()).rows(&keys);
    let (content_type, body) = encoded(format, &rows, dims);
    let mut response = pipeline::reply(content_type, body, room);
    if let Some(dtype) = binary_headers(format) {
        name_layout(response.headers_mut(), dims, dtype);
    }
    let indexes: Vec<String> = missing.iter().map(usize::to_string).collect();
    let indexes = HeaderValue::try_from(indexes.join(",")).expect("digits and commas only");
    response.headers_mut().insert(MISSING, indexes);
    Ok(Answered::of(response, keys.len(), keys.len() - missing.len()))
}

fn raw_keys(bytes: &[u8]) -> Result<Vec<Key>, Error> {
    let (keys, rest) = bytes.as_chunks::<KEY_BYTES>();
    if !rest.is_empty() {
        let message = format!("raw keys are {KEY_BYTES} bytes each, {} bytes are no whole number of them", bytes.len());
        return Err(Error::BadRequest { name: "body", message });
    }
    Ok(keys.iter().map(|key| Key::from_bytes(*key)).collect())
}

/// What is looked up, and where: at least one model.
struct Asked {
    keys: Vec<Key>,
    models: Vec<Served>,
    /// Whose keys the shared tier is asked for, if it is to be.
    elsewhere: Option<Namespace>,
}

fn asked_keys(call: &Call, bytes: &[u8]) -> Result<Asked, Error> {
    let shared = &call.service.shared;
    let asked: LookupRequest<'_> = body::parse(bytes)?;
    let model = asked.model.as_ref().map(|model| &*model.0);
    let namespace = call.namespace(asked.namespace.as_ref().map(|name| &*name.0))?;
    let elsewhere = asked.remote.then(|| namespace.clone());
    match (&asked.inputs, &asked.keys) {
        (Some(texts), None) => {
            texts.check("inputs", shared.config.batch_texts_max)?;
            let request = cache::Request {
                namespace,
                prompt_name: asked.prompt_name.as_ref().map(|name| &*name.0),
                direction: asked.truncation_direction.map(Into::into),
                ..cache::Request::new(Inputs::Texts(&texts.texts))
            };
            let model = pipeline::model(call, model)?;
            Ok(Asked { keys: model.cache.keys(&request)?, models: vec![model], elsewhere })
        }
        (None, Some(keys)) => {
            keys.check("keys", shared.config.batch_texts_max)?;
            // A record of the tier does not say whose it is: what a key stands for is known of texts alone.
            if elsewhere.is_some() && call.caller.reach().tenant().is_some() {
                return Err(Error::invalid("remote", "a tenant's key asks the shared tier with inputs, not with keys"));
            }
            Ok(Asked { keys: parsed_keys(keys)?, models: pipeline::models(call, model)?, elsewhere })
        }
        (None, None) => Err(Error::invalid("body", "inputs or keys is needed")),
        (Some(_), Some(_)) => Err(Error::invalid("keys", "inputs or keys is needed, not both")),
    }
}

/// Keys out of their hexadecimal digits.
///
/// # Errors
/// When one is none, by its index.
pub(super) fn parsed_keys(keys: &Texts<'_>) -> Result<Vec<Key>, Error> {
    let parsed = keys
        .texts
        .iter()
        .enumerate()
        .map(|(index, key)| key.parse::<Key>().map_err(|error| Error::invalid(format!("keys[{index}]"), error)));
    parsed.collect()
}

fn described(call: &Call, models: &[Served], keys: &[Key]) -> Vec<LookupItem> {
    let now = super::unix_seconds();
    let reach = call.caller.reach();
    let mut entries = models[0].cache.within(reach).lookup(keys);
    for model in &models[1..] {
        for (entry, other) in entries.iter_mut().zip(model.cache.within(reach).lookup(keys)) {
            *entry = entry.take().or(other);
        }
    }
    keys.iter()
        .zip(entries)
        .map(|(key, entry)| LookupItem {
            key: key.to_string(),
            cached: entry.is_some(),
            tier: entry.as_ref().map(|_| "local"),
            age: entry.as_ref().map(|entry| now.saturating_sub(u64::from(entry.created))),
            ttl: entry.as_ref().and_then(|entry| entry.expires).map(|time| u64::from(time).saturating_sub(now)),
        })
        .collect()
}

/// Adds what the shared tier has of those that are not here. Blocks for its deadline at most.
fn ask_elsewhere(cache: &Cache, namespace: &Namespace, keys: &[Key], mut items: Vec<LookupItem>) -> Vec<LookupItem> {
    let missing: Vec<usize> = (0..items.len()).filter(|&index| !items[index].cached).collect();
    let wanted: Vec<Key> = missing.iter().map(|&index| keys[index]).collect();
    for (index, found) in missing.into_iter().zip(cache.lookup_elsewhere(namespace, &wanted)) {
        if let Some(found) = found {
            let LookupItem { cached, tier, age, ttl, .. } = &mut items[index];
            (*cached, *tier) = (true, Some("remote"));
            (*age, *ttl) = (found.age.map(u64::from), found.ttl.map(u64::from));
        }
    }
    items
}

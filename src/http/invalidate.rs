//! `POST /invalidate`: entries removed, or marked stale, by what they are.
//!
//! Several selectors together narrow: an entry has to meet all of them; of several keys, inputs or tags one is enough.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use axum::extract::Request;
use serde::{Deserialize, Serialize};

use crate::cache::policy::TTL_SECONDS_MAX;
use crate::cache::{Invalidated, Invalidation, InvalidationMode};
use crate::domain::Pattern;

use super::accept;
use super::body;
use super::call::{Answered, Audit, Call};
use super::errors::Error;
use super::lookup::parsed_keys;
use super::pipeline;
use super::wire::{TAG_CHARS_MAX, Text, Texts, check_tags};

/// The longest reason that is logged.
pub(super) const REASON_CHARS_MAX: usize = 200;

/// Which entries, and what is done to them. At least one selector is needed; several together narrow.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InvalidateRequest<'a> {
    /// Entries under one of these keys, in hexadecimal.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    keys: Option<Texts<'a>>,
    /// Entries of these texts, with whatever prompt, in `namespace` (the default one if it is not given).
    #[serde(borrow)]
    #[schema(value_type = Object)]
    inputs: Option<Texts<'a>>,
    /// Entries with one of these tags.
    tags: Option<Vec<String>>,
    /// Entries with a tag that matches: `*` stands for any characters, `?` for one.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    tag_glob: Option<Text<'a>>,
    /// Entries of this namespace; the default one's name is empty.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    namespace: Option<Text<'a>>,
    /// All entries of a served model: its name or fingerprint. Without it, entries of every model are meant.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    model: Option<Text<'a>>,
    /// Entries stored more than this many seconds ago.
    older_than: Option<u64>,
    /// `hard` removes (the default); `soft` marks as stale: answered as before, and computed anew when next asked for.
    mode: Option<InvalidateMode>,
    /// Only count.
    dry_run: Option<bool>,
    /// Why, for the log: at most 200 characters.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, max_length = 200)]
    reason: Option<Text<'a>>,
}

/// What is done to the entries.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum InvalidateMode {
    /// Removed.
    Hard,
    /// Marked as stale.
    Soft,
}

/// What came of it.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct InvalidateAnswer {
    /// Entries that were meant.
    matched: usize,
    /// Entries that were removed: none if they were only marked or counted.
    removed: usize,
    /// Whether the tier shared with other machines has taken it; if not, it will when it can be reached. Missing where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<bool>,
    /// How long it took, in milliseconds.
    took_ms: f64,
}

/// Removes entries by what they are, or marks them stale.
///
/// Several selectors together narrow. An empty selector is refused.
#[utoipa::path(
    post, path = "/invalidate", tag = "cache",
    request_body = InvalidateRequest<'_>,
    responses((status = 200, description = "How many entries were meant and removed", body = InvalidateAnswer))
)]
pub(super) async fn invalidate(call: Call, request: Request) -> Result<Answered, Error> {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    body::expect_json(&parts.headers)?;
    accept::json(&parts.headers)?;
    let received = body::read(&call, &parts.headers, body).await?;
    let asked: InvalidateRequest<'_> = body::parse(&received.bytes)?;
    let models = pipeline::models(&call, asked.model.as_ref().map(|model| &*model.0))?;
    let wanted = asked.wanted(&call)?;
    let to = asked.described();
    drop(asked);
    let (mode, dry_run) = (wanted.mode, wanted.dry_run);
    let invalidating = call.blocking(move || {
        models
            .iter()
            .try_fold(Invalidated::default(), |all, model| Ok::<_, Error>(all + model.cache.invalidate(&wanted)?))
    });
    let Invalidated { matched, removed, marked, published } = invalidating.await??;
    let micros = started.elapsed().as_micros();
    let answer = InvalidateAnswer { matched, removed, published, took_ms: micros as f64 / 1000.0 };
    let action = match mode {
        _ if dry_run => "count",
        InvalidationMode::Hard => "remove",
        InvalidationMode::Soft => "mark stale",
    };
    let answered = Answered::of(pipeline::json(&answer), matched, matched);
    Ok(answered.audited(Audit { action, to, matched, changed: removed + marked }))
}

impl InvalidateRequest<'_> {
    fn wanted(&self, call: &Call) -> Result<Invalidation, Error> {
        let shared = &call.service.shared;
        let texts_max = shared.config.batch_texts_max;
        let namespace = self.namespace.as_ref().map(|name| call.namespace(Some(&name.0))).transpose()?;
        let mut keys = None;
        if let Some(given) = &self.keys {
            given.check("keys", texts_max)?;
            keys = Some(parsed_keys(given)?);
        }
        if let Some(texts) = &self.inputs {
            texts.check("inputs", texts_max)?;
        }
        if let Some(tags) = &self.tags {
            if tags.is_empty() {
                return Err(Error::invalid("tags", "at least one tag is needed"));
            }
            check_tags(tags)?;
        }
        let tag_glob = self.tag_glob.as_ref().map(|glob| &*glob.0);
        if tag_glob.is_some_and(|glob| glob.is_empty() || glob.chars().count() > TAG_CHARS_MAX) {
            return Err(Error::invalid("tag_glob", format!("a pattern has 1 to {TAG_CHARS_MAX} characters")));
        }
        if self.older_than.is_some_and(|seconds| seconds > TTL_SECONDS_MAX) {
            return Err(Error::invalid("older_than", format!("an age has at most {TTL_SECONDS_MAX} seconds")));
        }
        if self.reason.as_ref().is_some_and(|reason| reason.0.chars().count() > REASON_CHARS_MAX) {
            return Err(Error::invalid("reason", format!("at most {REASON_CHARS_MAX} characters are logged")));
        }
        let wanted = Invalidation {
            keys,
            texts: self.inputs.as_ref().map(|texts| texts.texts.iter().map(ToString::to_string).collect()),
            tags: self.tags.clone(),
            tag_glob: tag_glob.map(Pattern::new),
            namespace,
            tenant: None,
            older_than: self.older_than.map(Duration::from_secs),
            all: self.model.is_some(),
            mode: match self.mode {
                None | Some(InvalidateMode::Hard) => InvalidationMode::Hard,
                Some(InvalidateMode::Soft) => InvalidationMode::Soft,
            },
            dry_run: self.dry_run.unwrap_or(false),
        };
        Ok(wanted.within(call.caller.reach()).expect("the namespace was led to what is in reach"))
    }

    /// The selector for the log: of texts only how many there are.
    fn described(&self) -> String {
        let mut line = String::new();
        let mut part = |name: &str, value: &dyn std::fmt::Display| {
            let comma = if line.is_empty() { "" } else { ", " };
            write!(line, "{comma}{name} {value}").expect("memory can be written to");
        };
        if let Some(keys) = &self.keys {
            part("keys", &keys.count);
        }
        if let Some(texts) = &self.inputs {
            part("inputs", &texts.count);
        }
        if let Some(tags) = &self.tags {
            part("tags", &format_args!("{tags:?}"));
        }
        if let Some(glob) = &self.tag_glob {
            part("tag_glob", &format_args!("{:?}", &*glob.0));
        }
        if let Some(name) = &self.namespace {
            part("namespace", &format_args!("{:?}", &*name.0));
        }
        if self.model.is_some() {
            part("model", &"served");
        }
        if let Some(seconds) = self.older_than {
            part("older_than", &seconds);
        }
        if let Some(reason) = &self.reason {
            part("because", &format_args!("{:?}", &*reason.0));
        }
        line
    }
}

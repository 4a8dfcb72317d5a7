//! `POST /events`: what has happened elsewhere, and what the configuration's rules invalidate for it.
//!
//! An event is `{"type", "subject", "data"}`, or a CloudEvent 1.0 in any of its three forms over HTTP: structured, a batch of those, or
//! binary, with its attributes in headers that begin with `ce-`.

use std::time::Instant;

use axum::extract::Request;
use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cache::{Event, Reacted};

use super::accept;
use super::body::{self, is_type};
use super::call::{Answered, Audit, Call};
use super::errors::Error;
use super::pipeline;

const OURS: &str = "application/json";
const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";
/// What the names of a binary event's headers begin with.
const PREFIX: &str = "ce-";
const VERSION: &str = "1.0";
/// The most events of a batch.
const EVENTS_MAX: usize = 1000;
/// The longest attribute, in bytes.
const ATTRIBUTE_BYTES_MAX: usize = 4096;

/// Something that has happened.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EventRequest {
    /// What, as `document.updated`.
    #[serde(rename = "type")]
    #[schema(min_length = 1, max_length = 1024)]
    kind: String,
    /// To what.
    #[schema(max_length = 1024)]
    subject: Option<String>,
    /// What the event is called where it comes from.
    #[schema(max_length = 1024)]
    id: Option<String>,
    /// Where it comes from.
    #[schema(max_length = 1024)]
    source: Option<String>,
    /// All else that is said of it.
    #[schema(value_type = Option<Object>)]
    data: Option<Value>,
}

/// A CloudEvent. Attributes that are not named here are passed over.
#[derive(Deserialize, utoipa::ToSchema)]
pub(super) struct CloudEvent {
    /// `1.0`.
    #[schema(pattern = "^1\\.0$")]
    specversion: String,
    /// What has happened.
    #[serde(rename = "type")]
    #[schema(min_length = 1, max_length = 1024)]
    kind: String,
    /// What the event is called where it comes from.
    #[schema(max_length = 1024)]
    id: String,
    /// Where it comes from.
    #[schema(max_length = 1024)]
    source: String,
    /// To what it has happened.
    #[schema(max_length = 1024)]
    subject: Option<String>,
    /// All else that is said of it. Rules find things by name in an object.
    #[schema(value_type = Option<Object>)]
    data: Option<Value>,
}

/// What came of it.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct EventsAnswer {
    /// Events that were read.
    events: usize,
    /// Rules that had something to do with them; 0 if nobody asked for such events.
    rules: usize,
    /// Entries that were meant.
    matched: usize,
    /// Entries that were removed: those that were only marked as stale are not.
    removed: usize,
    /// How long it took, in milliseconds.
    took_ms: f64,
}

/// Has the configuration's rules invalidate what an event, or several, made outdated.
///
/// All events of a request are checked before any is acted upon.
#[utoipa::path(
    post, path = "/events", tag = "cache",
    request_body(content(
        (EventRequest = "application/json"),
        (CloudEvent = "application/cloudevents+json"),
        (Vec<CloudEvent> = "application/cloudevents-batch+json")
    )),
    responses((status = 200, description = "What the rules invalidated", body = EventsAnswer))
)]
pub(super) async fn events(call: Call, request: Request) -> Result<Answered, Error> {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    accept::json(&parts.headers)?;
    let form = Form::of(&parts.headers)?;
    let received = body::read(&call, &parts.headers, body).await?;
    let events = form.events(&parts.headers, &received.bytes)?;
    drop(received);
    let (count, to) = (events.len(), described(&events));
    let (catalogue, reach) = (call.service.shared.catalogue.clone(), call.caller.reach().clone());
    let Reacted { rules, invalidated } = call.blocking(move || catalogue.react(&events, &reach)).await??;
    let micros = started.elapsed().as_micros();
    let answer = EventsAnswer {
        events: count,
        rules,
        matched: invalidated.matched,
        removed: invalidated.removed,
        took_ms: micros as f64 / 1000.0,
    };
    let (matched, changed) = (invalidated.matched, invalidated.removed + invalidated.marked);
    let answered = Answered::of(pipeline::json(&answer), count, matched);
    Ok(answered.audited(Audit { action: "react", to, matched, changed }))
}

/// How events are written down.
#[derive(Clone, Copy)]
enum Form {
    Own,
    Structured,
    Batch,
    Binary,
}

impl Form {
    fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let kind = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
        let is = |name| kind.is_some_and(|kind| is_type(kind, name));
        if is(STRUCTURED) {
            Ok(Self::Structured)
        } else if is(BATCH) {
            Ok(Self::Batch)
        } else if headers.contains_key("ce-specversion") {
            Ok(Self::Binary)
        } else {
            body::expect_json(headers)?;
            Ok(Self::Own)
        }
    }

    fn events(self, headers: &HeaderMap, bytes: &[u8]) -> Result<Vec<Event>, Error> {
        let events = match self {
            Self::Own => {
                let EventRequest { kind, subject, id, source, data } = body::parse(bytes)?;
                if data.as_ref().is_some_and(|data| !data.is_object() && !data.is_null()) {
                    return Err(Error::invalid("data", "an object is needed, in which rules find things by name"));
                }
                vec![Event { kind, subject, id, source, data: data.unwrap_or_default() }]
            }
            Self::Structured => vec![body::parse::<CloudEvent>(bytes)?.checked()?],
            Self::Batch => {
                let batch: Vec<CloudEvent> = body::parse_any(bytes)?;
                batch.into_iter().map(CloudEvent::checked).collect::<Result<_, _>>()?
            }
            Self::Binary => vec![binary(headers, bytes)?],
        };
        if !(1..=EVENTS_MAX).contains(&events.len()) {
            return Err(Error::invalid("body", format!("1 to {EVENTS_MAX} events are needed")));
        }
        events.iter().try_for_each(check)?;
        Ok(events)
    }
}

impl CloudEvent {
    fn checked(self) -> Result<Event, Error> {
        let Self { specversion, kind, id, source, subject, data } = self;
        if specversion != VERSION {
            return Err(Error::invalid("specversion", format!("{VERSION:?} is understood")));
        }
        Ok(Event { kind, subject, id: Some(id), source: Some(source), data: data.unwrap_or_default() })
    }
}

/// An event whose attributes are headers. Data that is not JSON says nothing to rules.
fn binary(headers: &HeaderMap, bytes: &[u8]) -> Result<Event, Error> {
    let attribute = |name: &'static str| -> Result<Option<String>, Error> {
        let Some(value) = headers.get(format!("{PREFIX}{name}")) else { return Ok(None) };
        let text =
            value.to_str().map_err(|_| Error::invalid(name, "printable ASCII is needed, the rest in percent"))?;
        let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
        Ok(Some(decoded.map_err(|_| Error::invalid(name, "what is encoded in percent is not UTF-8"))?.into_owned()))
    };
    let needed = |name: &'static str| {
        attribute(name)?.ok_or_else(|| Error::invalid(name, format!("the header {PREFIX}{name} is needed")))
    };
    let is_json = headers.get(CONTENT_TYPE).is_none_or(|value| is_type(value.as_bytes(), OURS));
    let data = if is_json && !bytes.is_empty() { body::parse_any(bytes)? } else { Value::Null };
    let event = CloudEvent {
        specversion: needed("specversion")?,
        kind: needed("type")?,
        id: needed("id")?,
        source: needed("source")?,
        subject: attribute("subject")?,
        data: Some(data),
    };
    event.checked()
}

fn check(event: &Event) -> Result<(), Error> {
    let Event { kind, subject, id, source, data: _ } = event;
    if kind.is_empty() {
        return Err(Error::invalid("type", "a type is not empty"));
    }
    for (name, value) in
        [("type", Some(kind)), ("subject", subject.as_ref()), ("id", id.as_ref()), ("source", source.as_ref())]
    {
        if value.is_some_and(|value| value.len() > ATTRIBUTE_BYTES_MAX) {
            return Err(Error::invalid(name, format!("at most {ATTRIBUTE_BYTES_MAX} bytes are taken")));
        }
    }
    Ok(())
}

/// The events for the log, by their types.
fn described(events: &[Event]) -> String {
    let mut kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds.truncate(8);
    let kinds: Vec<String> = kinds.into_iter().map(|kind| kind.chars().take(100).collect()).collect();
    format!("{} events {kinds:?}", events.len())
}

//! From a checked request to the cache and back, the same for every dialect.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use half::f16;
use hyper::header::{CONTENT_TYPE, HeaderValue};

use crate::cache::{self, Answer, Inputs};
use crate::domain::ModelCard;

use super::call::{Answered, Call};
use super::errors::Error;
use super::headers::{self, Summary};
use super::memory::Room;
use super::shape::{Shape, Shaped};

/// Bytes of memory a number of an answer may take: stored as f16, and as text or widened.
const BYTES_A_NUMBER: usize = 12;

/// A request to the cache, and the shape its vectors are wanted in.
pub(super) struct Wanted<'a> {
    pub(super) request: cache::Request<'a>,
    pub(super) shape: Shape,
    pub(super) reuse_asked: bool,
}

/// The cache's answer, and the room that was reserved for sending it.
pub(super) struct Embedded {
    pub(super) answer: Answer,
    pub(super) summary: Summary,
    pub(super) room: Room,
    shape: Shape,
}

/// Embeds, within the request's deadline, once there is room for the answer.
///
/// # Errors
/// When the cache has none, the shape cannot be had, or the deadline passes.
pub(super) async fn embed(call: &Call, wanted: Wanted<'_>) -> Result<Embedded, Error> {
    let Wanted { request, shape, reuse_asked } = wanted;
    let shared = &call.service.shared;
    let card = shared.cache.card();
    shape.dims(card)?;
    let characters = match request.inputs {
        Inputs::Texts(texts) => texts.iter().map(|text| text.chars().count()).sum(),
        Inputs::Tokens(_) => 0,
    };
    let bytes = request.inputs.len() * card.dims * BYTES_A_NUMBER;
    let room = call.in_time(shared.answer_memory.reserve(bytes)).await?;
    let answer = call.in_time(shared.cache.embed(request)).await??;
    let summary = Summary::of(&answer, characters, reuse_asked);
    Ok(Embedded { answer, summary, room, shape })
}

impl Embedded {
    /// The vectors in the shape that was asked for.
    pub(super) fn shaped(&self, card: &ModelCard) -> Result<Shaped<'_>, Error> {
        self.shape.apply(&self.answer, card)
    }

    /// The finished answer with the cache's rows as they are for a body: raw f16, of the shape they are stored in.
    pub(super) fn reply_rows(mut self, call: &Call) -> Answered {
        let rows = Rows(std::mem::take(&mut self.answer.units));
        self.reply(call, "application/octet-stream", rows)
    }

    /// The finished answer: a body, the headers that say where it came from.
    pub(super) fn reply(self, call: &Call, content_type: &'static str, body: impl Octets) -> Answered {
        let mut response = reply(content_type, body, self.room);
        let total = Duration::from_nanos(call.started.elapsed().as_nanos() as u64);
        let device = call.service.shared.cache.card().device;
        headers::write(response.headers_mut(), &self.summary, &self.answer.timings, total, device);
        Answered::of(response, self.summary.items, self.summary.hits)
    }
}

/// What a body can be made of.
pub(super) trait Octets: AsRef<[u8]> + Send + 'static {}

impl<T: AsRef<[u8]> + Send + 'static> Octets for T {}

/// The cache's own rows as a body, sent from where they lie.
struct Rows(Vec<f16>);

impl AsRef<[u8]> for Rows {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// A body that gives its room back when the last byte is sent, or the client is gone.
pub(super) fn reply(content_type: &'static str, body: impl Octets, room: Room) -> Response {
    struct Held<T> {
        body: T,
        _room: Room,
    }
    impl<T: Octets> AsRef<[u8]> for Held<T> {
        fn as_ref(&self) -> &[u8] {
            self.body.as_ref()
        }
    }
    let mut response = Response::new(Body::from(Bytes::from_owner(Held { body, _room: room })));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A small JSON answer.
pub(super) fn json(body: &impl serde::Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("our own answers have string keys and no failing parts");
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Checks that the model a request names is the served one: by name, by source, or by fingerprint.
///
/// # Errors
/// When it is another.
pub(super) fn check_model(card: &ModelCard, asked: Option<&str>) -> Result<(), Error> {
    match asked {
        Some(asked) if asked != card.name && asked != card.source && asked != card.version.to_string() => {
            Err(Error::UnknownModel { asked: asked.chars().take(200).collect(), served: card.name.clone() })
        }
        _ => Ok(()),
    }
}

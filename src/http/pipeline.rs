//! From a checked request to the cache and back, the same for every dialect.

use std::pin::pin;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::poll_immediate;
use half::f16;
use hyper::header::{CONTENT_TYPE, HeaderValue};

use crate::cache::{self, Answer, Inputs, Served};

use super::call::{Answered, Call};
use super::errors::Error;
use super::headers::{self, Summary};
use super::memory::Room;
use super::quota::{self, Bill};
use super::shape::{Shape, Shaped};
use super::traces::Embedding;

/// Bytes of memory a number of an answer may take: stored as f16, and as text or widened.
const BYTES_A_NUMBER: usize = 12;

/// A request to the cache, and the shape its vectors are wanted in.
pub(super) struct Wanted<'a> {
    pub(super) model: Served,
    pub(super) request: cache::Request<'a>,
    pub(super) shape: Shape,
}

/// The cache's answer, and the room that was reserved for sending it.
pub(super) struct Embedded {
    pub(super) model: Served,
    pub(super) answer: Answer,
    pub(super) summary: Summary,
    pub(super) room: Room,
    shape: Shape,
}

/// Embeds, within the request's deadline, once there is room for the answer.
///
/// # Errors
/// When the cache has none, the shape cannot be had, too many wait for the model already, or the deadline passes.
pub(super) async fn embed(call: &Call, wanted: Wanted<'_>) -> Result<Embedded, Error> {
    let Wanted { model, mut request, shape } = wanted;
    request.lane = call.lane.unwrap_or(request.lane);
    let shared = &call.service.shared;
    let card = model.cache.card();
    shape.dims(card)?;
    let characters = match request.inputs {
        Inputs::Texts(texts) => texts.iter().map(|text| text.chars().count()).sum(),
        Inputs::Tokens(_) => 0,
    };
    let bytes = request.inputs.len() * card.dims * BYTES_A_NUMBER;
    let room = call.in_time(shared.answer_memory.reserve(bytes)).await?;
    let quota = quota::room(call, &mut request).await?;
    let bill = Bill::open(call, request.inputs);
    let watched = model.migration.as_ref().map(|migration| (migration, request.clone()));
    let lane = request.lane;
    let settle_none = |bill: Option<Bill>| bill.into_iter().for_each(|bill| bill.settle_tokens(0));
    let (answer, room) = {
        let mut embedding = pin!(call.in_time(model.cache.embed(request)));
        // What is in the store is answered at once. Who waits for the model makes room for those who need not.
        match poll_immediate(embedding.as_mut()).await {
            Some(answer) => (answer?, room),
            None => {
                let waiting = call.wait_aside(bytes);
                drop(room);
                let Some(room) = waiting else {
                    settle_none(bill);
                    return Err(Error::NoRoomToWait { retry_after: model.cache.retry_after(lane) });
                };
                (embedding.await?, room)
            }
        }
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            // Nothing was computed for it, or what was is for who asks again.
            settle_none(bill);
            return Err(quota.explain(error));
        }
    };
    if let Some((migration, request)) = watched {
        migration.observe(&request, &answer);
    }
    let summary = Summary::of(&answer, characters);
    bill.into_iter().for_each(|bill| bill.settle(&summary));
    Ok(Embedded { model, answer, summary, room, shape })
}

impl Embedded {
    /// The vectors in the shape that was asked for.
    pub(super) fn shaped(&self) -> Result<Shaped<'_>, Error> {
        self.shape.apply(&self.answer, self.model.cache.card())
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
        let device = self.model.cache.card().device.get();
        headers::write(response.headers_mut(), &self.summary, &self.answer.timings, total, device);
        let mut answered = Answered::of(response, self.summary.items, self.summary.hits);
        if call.service.shared.config.traces.is_some() {
            let (model, dims) = (self.model.alias.to_string(), self.shape.dims(self.model.cache.card()).unwrap_or(0));
            let (summary, timings) = (self.summary, self.answer.timings);
            answered.embedding = Some(Box::new(Embedding { model, dims, summary, timings }));
        }
        answered
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

/// The model that a request means: the one its body names, by alias, source or fingerprint; else the one its address names
/// (`?model=`); else the default.
///
/// # Errors
/// When nothing of that name is served.
pub(super) fn model(call: &Call, asked: Option<&str>) -> Result<Served, Error> {
    let catalogue = &call.service.shared.catalogue;
    let asked = asked.or(call.model.as_deref());
    catalogue.resolve(asked).ok_or_else(|| Error::UnknownModel {
        asked: asked.unwrap_or_default().chars().take(200).collect(),
        served: catalogue.aliases().iter().map(|served| served.alias.to_string()).collect(),
    })
}

/// The models that a request means: the one that is named, or all of them, the default first.
///
/// # Errors
/// As [`model`].
pub(super) fn models(call: &Call, asked: Option<&str>) -> Result<Vec<Served>, Error> {
    if asked.is_none() && call.model.is_none() {
        return Ok(call.service.shared.catalogue.models());
    }
    Ok(vec![model(call, asked)?])
}

//! What every request has, whatever it asks: an id, a deadline, a count in the metrics, a line in the log.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::extract::{Query, Request};
use axum::response::Response;
use futures_util::FutureExt;
use hyper::body::Body as _;
use hyper::header::{AUTHORIZATION, CONNECTION, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri, Version};
use tokio::time::Instant;

use crate::access::Caller;
use crate::cache;
use crate::domain::{Lane, Namespace, UnknownLane};

use super::Service;
use super::body;
use super::errors::Error;
use super::memory::Room;
use super::metrics;
use super::quota;
use super::route::{Needs, Route};
use super::traces::{Embedding, Ended};

/// The id by which a request is found in the log; the client's own if it sent one.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long the client is willing to wait, in seconds.
pub(super) const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout");

/// The lane that the client asks for.
pub(super) const PRIORITY: HeaderName = HeaderName::from_static("x-priority");

/// A key, from clients that do not send it as `Authorization`.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Where a browser's request comes from.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

const REQUEST_ID_BYTES_MAX: usize = 128;

/// A request being answered.
pub(super) struct Call {
    pub(super) service: Service,
    pub(super) started: Instant,
    /// What the client asks for; `None`: as the number of inputs says.
    pub(super) lane: Option<Lane>,
    /// The model that the address names, with `?model=`.
    pub(super) model: Option<String>,
    pub(super) caller: Caller,
    limit: std::time::Duration,
    /// The body's.
    held: Mutex<Option<Held>>,
}

/// Room for a body, and its length.
struct Held {
    room: Room,
    bytes: usize,
}

impl Call {
    fn new(service: Service, headers: &HeaderMap, address: &Uri, caller: Caller) -> Result<Self, Error> {
        let config = &service.shared.config;
        let limit = match headers.get(REQUEST_TIMEOUT) {
            None => config.request_timeout,
            Some(value) => {
                let seconds = value.to_str().ok().and_then(|text| text.trim().parse::<f64>().ok());
                let seconds = seconds.filter(|seconds| seconds.is_finite() && *seconds > 0.0).ok_or_else(|| {
                    let message = "a number of seconds greater than 0 is needed, such as 2.5".to_owned();
                    Error::BadRequest { name: "x-request-timeout", message }
                })?;
                std::time::Duration::from_secs_f64(seconds.min(config.request_timeout_max.as_secs_f64()))
            }
        };
        let lane = match headers.get(PRIORITY) {
            None => None,
            Some(value) => {
                let lane = value.to_str().map_err(|_| UnknownLane).and_then(|name| name.trim().parse());
                Some(lane.map_err(|unknown| Error::BadRequest { name: "x-priority", message: unknown.to_string() })?)
            }
        };
        Ok(Self {
            service,
            started: Instant::now(),
            lane,
            model: named_model(address)?,
            caller,
            limit,
            held: Mutex::default(),
        })
    }

    /// Keeps the room for a body until the request is answered.
    pub(super) fn hold(&self, room: Room, bytes: usize) {
        *self.held() = Some(Held { room, bytes });
    }

    /// From now on the request waits for the model: its room is of what is there for those who do, so that they keep nobody else
    /// waiting. What it waits with are its body, its texts for the model, and its answer. `None`: there is no such room.
    pub(super) fn wait_aside(&self, answer_bytes: usize) -> Option<Room> {
        let mut held = self.held();
        let body_bytes = held.as_ref().map_or(0, |held| held.bytes);
        let room = self.service.shared.waiting_memory.try_reserve(2 * body_bytes + answer_bytes)?;
        drop(held.take().map(|held| held.room));
        Some(room)
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The namespace that a request means by a name, or by none: the one place where a tenant is given its own. Only the operator
    /// names those of tenants.
    ///
    /// # Errors
    /// When the name is none, by the field `namespace`.
    pub(super) fn namespace(&self, name: Option<&str>) -> Result<Namespace, Error> {
        let name = name.unwrap_or_default();
        let named = if self.caller.is_operator() { Namespace::qualified(name) } else { Namespace::new(name) };
        let named = named.map_err(|error| Error::invalid("namespace", error))?;
        Ok(self.caller.reach().pin(named).expect("a name without a slash leads to somebody's own"))
    }

    /// Does blocking work on a thread for that. Past the deadline the work goes on and its answer is lost.
    ///
    /// # Errors
    /// When the deadline passes first, or the work panics.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let working = tokio::task::spawn_blocking(work);
        self.in_time(working).await?.map_err(|_| Error::Panicked)
    }

    /// Waits for something until the request's deadline.
    ///
    /// # Errors
    /// When the deadline passes first.
    pub(super) async fn in_time<T>(&self, wait: impl Future<Output = T>) -> Result<T, Error> {
        let deadline = self.started + self.limit;
        tokio::time::timeout_at(deadline, wait).await.map_err(|_| Error::Deadline { limit: self.limit })
    }
}

impl Service {
    fn needs(&self, route: Route, method: &Method) -> Needs {
        route.needs(method, self.shared.config.metrics_open.unwrap_or(self.is_admin))
    }
}

/// Who sends a request. A key is `Authorization: Bearer KEY`, or `x-api-key: KEY`.
fn admit(service: &Service, route: Route, method: &Method, headers: &HeaderMap) -> Result<Caller, Error> {
    if is_of_other_site(method, headers) {
        return Err(Error::OtherSite);
    }
    let access = &service.shared.config.access;
    if access.is_open() {
        return Ok(Caller::anyone());
    }
    if service.needs(route, method) == Needs::Nothing {
        return Ok(Caller::nobody());
    }
    Ok(access.admit(token(headers), super::unix_seconds())?)
}

/// Whether a browser sends this for another site's page, which cannot read the answer, but might change something. Browsers say
/// so to HTTPS and to loopback (<https://www.w3.org/TR/fetch-metadata/>); programs say nothing.
fn is_of_other_site(method: &Method, headers: &HeaderMap) -> bool {
    let site = headers.get(FETCH_SITE).map(HeaderValue::as_bytes);
    !method.is_safe() && matches!(site, Some(b"cross-site" | b"same-site"))
}

/// Whether somebody may do this, and has not asked too much of late.
fn allow(service: &Service, route: Route, method: &Method, caller: Caller) -> Result<Caller, Error> {
    let needs = service.needs(route, method);
    if let Some(scope) = needs.scope().filter(|scope| !caller.may(*scope)) {
        return Err(Error::Forbidden { scope });
    }
    if needs == Needs::Operator && caller.reach().tenant().is_some() {
        return Err(Error::OperatorsAlone);
    }
    if let Some(account) = caller.account() {
        account.begin(service.shared.began.elapsed()).map_err(Error::Quota)?;
    }
    Ok(caller)
}

/// The key that a request sends. Another scheme's credentials are none: a proxy's, say.
fn token(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
    });
    bearer.or_else(|| Some(headers.get(API_KEY)?.as_bytes().trim_ascii()))
}

/// The `model` of an address's query.
fn named_model(address: &Uri) -> Result<Option<String>, Error> {
    if !address.query().is_some_and(|query| query.contains("model=")) {
        return Ok(None);
    }
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(address)
        .map_err(|error| Error::BadRequest { name: "query", message: error.body_text() })?;
    Ok(pairs.into_iter().rfind(|(name, _)| name == "model").map(|(_, model)| model))
}

/// An answer, and what the log says of it.
pub(super) struct Answered {
    pub(super) response: Response,
    pub(super) items: usize,
    pub(super) hits: usize,
    /// What was changed, for those who want to know afterwards who did.
    pub(super) audit: Option<Box<Audit>>,
    /// What its span says of the vectors, if it is traced.
    pub(super) embedding: Option<Box<Embedding>>,
}

/// A change that somebody asked for: a line in the log. No text's content is in it.
pub(super) struct Audit {
    /// What was done.
    pub(super) action: &'static str,
    /// To what.
    pub(super) to: String,
    /// How many entries were meant.
    pub(super) matched: usize,
    /// How many were changed.
    pub(super) changed: usize,
}

impl Answered {
    /// An answer that has vectors or facts of items.
    pub(super) fn of(response: Response, items: usize, hits: usize) -> Self {
        Self { response, items, hits, audit: None, embedding: None }
    }

    /// The same, with a line in the log that says what was changed.
    pub(super) fn audited(self, audit: Audit) -> Self {
        Self { audit: Some(Box::new(audit)), ..self }
    }
}

impl From<Response> for Answered {
    fn from(response: Response) -> Self {
        Self::of(response, 0, 0)
    }
}

/// Answers a request by `handle`. A panic in it is a 500 to this client and nothing to the others.
pub(super) async fn answer<F, Handling>(service: Service, route: Route, request: Request, handle: F) -> Response
where
    F: FnOnce(Call, Request) -> Handling,
    Handling: Future<Output = Result<Answered, Error>>,
{
    let started = std::time::Instant::now();
    let _in_flight = metrics::Held::new(&service.shared.metrics.in_flight);
    let (id, method, version) = (request_id(request.headers()), request.method().clone(), request.version());
    let traced = service.shared.config.traces.as_ref().filter(|_| route.is_traced());
    let traced = traced.map(|traces| traces.begin(request.headers()));
    let dialect = route.dialect(request.uri().path());
    let draining = service.is_draining();

    let admitted = admit(&service, route, &method, request.headers());
    let known = admitted.as_ref().ok().cloned();
    let who = known.as_ref().and_then(Caller::id);
    let account = known.as_ref().and_then(Caller::account);
    let mut unread = false;
    let outcome = match admitted.and_then(|caller| allow(&service, route, &method, caller)) {
        Err(refusal) => {
            unread = !body::dispose(&service, request.into_body()).await;
            Err(refusal)
        }
        Ok(_) if draining && route.is_work() => Err(Error::Cache(cache::Error::ShuttingDown)),
        Ok(caller) => match Call::new(service.clone(), request.headers(), request.uri(), caller) {
            Ok(call) => match AssertUnwindSafe(handle(call, request)).catch_unwind().await {
                Ok(outcome) => outcome,
                Err(_) => Err(Error::Panicked),
            },
            Err(error) => Err(error),
        },
    };

    let answered = match outcome {
        Ok(answered) => {
            let Answered { response, items, hits, audit, .. } = &answered;
            let (status, took_us) = (response.status().as_u16(), started.elapsed().as_micros() as u64);
            tracing::debug!(%method, route = route.path(), status, items, hits, took_us, who, request_id = ?id, "answered");
            if let Some(audit) = audit {
                log_change(audit, took_us, who, &id);
            }
            answered
        }
        Err(error) => {
            if let (Error::Quota(_), Some(account)) = (&error, account) {
                account.refused();
            }
            let status = error.status(dialect);
            log_refusal(&error, &method, route, status, started.elapsed().as_micros() as u64, who, &id);
            error.into_response(dialect, &id).into()
        }
    };
    let Answered { mut response, items, hits, embedding, .. } = answered;
    if route.is_vectors() && items > 0 {
        service.shared.latency.observe(items == hits, started.elapsed());
    }
    if let Some(traced) = traced {
        traced.end(Ended { route, method: &method, status: response.status(), id: &id, embedding });
    }
    response.headers_mut().insert(REQUEST_ID, id);
    if let Some(account) = account {
        quota::describe(response.headers_mut(), account, service.shared.began.elapsed());
    }
    if (draining || unread) && version < Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    service.shared.metrics.observe(route, response.status(), started.elapsed(), response.body().size_hint().exact());
    response
}

#[cold]
fn log_change(audit: &Audit, took_us: u64, who: Option<&str>, id: &HeaderValue) {
    let Audit { action, to, matched, changed } = audit;
    tracing::info!(action, to, matched, changed, took_us, who, request_id = ?id, "changed");
}

/// What we are to blame for is an error with its cause; what the client is to blame for is a line without the
/// message, which may quote what it sent.
#[cold]
fn log_refusal(
    error: &Error,
    method: &Method,
    route: Route,
    status: StatusCode,
    took_us: u64,
    who: Option<&str>,
    id: &HeaderValue,
) {
    let (route, code) = (route.path(), status.as_u16());
    if status.is_server_error() || status == StatusCode::FAILED_DEPENDENCY {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::error!(%method, route, status = code, took_us, who, request_id = ?id, %error, cause, "failed");
    } else {
        tracing::info!(%method, route, status = code, took_us, who, request_id = ?id, "refused");
    }
}

/// The client's id when it is sane, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=REQUEST_ID_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    headers.get(REQUEST_ID).filter(sane).cloned().unwrap_or_else(|| {
        let mut digits = [0; uuid::fmt::Simple::LENGTH];
        let id = uuid::Uuid::new_v4();
        HeaderValue::from_str(id.simple().encode_lower(&mut digits)).expect("hexadecimal digits are visible ASCII")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(sent: &[u8]) -> HeaderValue {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_bytes(sent).unwrap());
        request_id(&headers)
    }

    #[test]
    fn a_sane_request_id_is_kept_and_any_other_replaced() {
        assert_eq!(id_of(b"job-7/part_3"), "job-7/part_3");
        for insane in [&b""[..], b"two words", "ümlaut".as_bytes(), &[b'x'; 129]] {
            let id = id_of(insane);
            assert!(id.len() == 32 && id != request_id(&HeaderMap::new()));
        }
    }
}

//! Why a request gets no answer, and how each dialect says so. Status codes live here and nowhere else.
//!
//! Clients get one short line that says what to change; what they sent is not logged. Every refusal carries the
//! request's id in `x-request-id`, and in the message where somebody will have to look for the cause on our side.
//!
//! | dialect | shape |
//! | --- | --- |
//! | text-embeddings-inference | `{"error": message, "error_type": type}` |
//! | OpenAI | `{"error": {"message", "type", "param", "code"}}` |
//! | our own routes | RFC 9457 `application/problem+json`, with OpenAI's `error` object in it |

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::{Map, Value, json};

use crate::access;
use crate::cache::{self, ChangeError};

/// OpenAI's clients read this one first: the same wait, in milliseconds.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Whose error shape a route speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// text-embeddings-inference's.
    Tei,
    /// OpenAI's.
    OpenAi,
    /// Ours.
    Own,
}

/// Why a request gets no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum Error {
    /// Not JSON at all.
    #[error("the body is not valid JSON: {message}")]
    Malformed { message: String },
    /// JSON of the wrong shape: a wrong type, an unknown field, a value out of range.
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    /// Nothing to do.
    #[error("{field} is empty: there is nothing to embed")]
    Empty { field: &'static str },
    /// A length the model cannot be cut to.
    #[error("dimensions: this model gives vectors of {}, not {found}", lengths(allowed))]
    Dimensions { found: usize, allowed: Vec<usize> },
    /// Token ids, where texts are expected.
    #[error(
        "input: token ids are not accepted, because clients send another tokenizer's; send texts \
         (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
    )]
    TokenInputs,
    /// Too many inputs.
    #[error("{field} has {count} items, max_client_batch_size is {limit}: send smaller batches")]
    BatchTooLarge { field: &'static str, count: usize, limit: usize },
    /// A body over the limit.
    #[error("the body is larger than the limit of {limit_bytes} bytes")]
    BodyTooLarge { limit_bytes: usize },
    /// The body did not arrive in time.
    #[error("the body did not arrive within {} s", seconds(*limit))]
    BodyTimeout { limit: Duration },
    /// The body ended early.
    #[error("the body could not be read: {0}")]
    BodyBroken(String),
    /// A body of another type than the route reads.
    #[error("this route reads {expected}, not {found}")]
    ContentType { found: String, expected: &'static str },
    /// No format of ours is accepted.
    #[error("none of the accepted formats is available; there is {}", offers.join(", "))]
    NotAcceptable { offers: &'static [&'static str] },
    /// A header or a part of the address that cannot be read.
    #[error("{name}: {message}")]
    BadRequest { name: &'static str, message: String },
    /// Another model than the served ones.
    #[error("the model {asked:?} is not served here; {} {}", quoted(served), if served.len() == 1 { "is" } else { "are" })]
    UnknownModel { asked: String, served: Vec<String> },
    /// What is served cannot be changed like that.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// No such route.
    #[error("there is nothing at {path}; /openapi.json lists what there is")]
    NoRoute { path: String },
    /// A route that does not do this.
    #[error("{path} does not answer {method}; the header Allow says what it answers")]
    Method { method: String, path: String },
    /// No such entry.
    #[error("nothing is cached under the key {key}")]
    NoEntry { key: String },
    /// No such erasure.
    #[error("there is no receipt of an erasure {id}")]
    NoErasure { id: String },
    /// A request would not be served now.
    #[error("not ready: {0}")]
    NotReady(String),
    /// The memory for requests that wait for the model is all in use.
    #[error("the requests that wait for the model take all the memory there is for them; try again in {} s", retry_after.as_secs_f64().ceil())]
    NoRoomToWait { retry_after: Duration },
    /// Out of time.
    #[error("there was no answer within {} s; what others wait for goes on, so asking again may be fast", seconds(*limit))]
    Deadline { limit: Duration },
    /// A bug of ours.
    #[error("the request hit a bug in the service")]
    Panicked,
    /// Nobody knows who asks.
    #[error(transparent)]
    Unauthorized(#[from] access::Refusal),
    /// The key is not good for this.
    #[error("the key is not good for this: it needs the scope {scope}")]
    Forbidden { scope: access::Scope },
    /// It concerns what is everybody's.
    #[error("this is the operator's alone: a key with the scope admin and no tenant is needed")]
    OperatorsAlone,
    /// A page of somebody else asks in the name of whoever looks at it.
    #[error("a browser sent this for a page of another site: only this service's own page, and programs, are answered")]
    OtherSite,
    /// The tenant has had what it may have.
    #[error(transparent)]
    Quota(access::Exceeded),
    /// The cache has no answer.
    #[error(transparent)]
    Cache(#[from] cache::Error),
}

/// What an error is to each dialect.
struct Facts {
    status: StatusCode,
    /// text-embeddings-inference's `error_type`.
    tei: &'static str,
    /// OpenAI's `type`.
    kind: &'static str,
    /// OpenAI's `code`.
    code: &'static str,
    /// The field at fault.
    param: Option<String>,
}

impl Error {
    /// A value that has the right type and cannot be used all the same.
    pub(super) fn invalid(field: impl Into<String>, message: impl ToString) -> Self {
        Self::Invalid { field: field.into(), message: message.to_string() }
    }

    /// The status in the given dialect.
    pub(super) fn status(&self, dialect: Dialect) -> StatusCode {
        self.facts(dialect).status
    }

    fn facts(&self, dialect: Dialect) -> Facts {
        use cache::Error as Cache;
        // OpenAI answers 400 where the others tell what cannot be read from what cannot be meant.
        let unprocessable = match dialect {
            Dialect::OpenAi => StatusCode::BAD_REQUEST,
            Dialect::Tei | Dialect::Own => StatusCode::UNPROCESSABLE_ENTITY,
        };
        // TEI's clients know a failed model as 424; OpenAI's try again after a 500.
        let failed = match dialect {
            Dialect::Tei => StatusCode::FAILED_DEPENDENCY,
            Dialect::OpenAi | Dialect::Own => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let invalid = |status, code, param: Option<&str>| Facts {
            status,
            tei: "Validation",
            kind: "invalid_request_error",
            code,
            param: param.map(str::to_owned),
        };
        let ours = |status, tei, code| Facts { status, tei, kind: "server_error", code, param: None };
        match self {
            Self::Malformed { .. } => invalid(StatusCode::BAD_REQUEST, "invalid_json", None),
            Self::Invalid { field, .. } => invalid(unprocessable, "invalid_value", Some(field)),
            Self::Empty { field } => Facts { tei: "Empty", ..invalid(StatusCode::BAD_REQUEST, "empty", Some(field)) },
            Self::Dimensions { .. } => invalid(StatusCode::BAD_REQUEST, "invalid_dimensions", Some("dimensions")),
            Self::TokenInputs => invalid(StatusCode::BAD_REQUEST, "token_inputs_refused", Some("input")),
            Self::BatchTooLarge { field, .. } => {
                invalid(StatusCode::UNPROCESSABLE_ENTITY, "batch_too_large", Some(field))
            }
            Self::BodyTooLarge { .. } => invalid(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", None),
            Self::BodyTimeout { .. } => invalid(StatusCode::REQUEST_TIMEOUT, "body_timeout", None),
            Self::BodyBroken(_) => invalid(StatusCode::BAD_REQUEST, "body_unreadable", None),
            Self::ContentType { .. } => invalid(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", None),
            Self::NotAcceptable { .. } => invalid(StatusCode::NOT_ACCEPTABLE, "not_acceptable", None),
            Self::BadRequest { name, .. } => invalid(StatusCode::BAD_REQUEST, "invalid_value", Some(name)),
            Self::UnknownModel { .. } => invalid(StatusCode::NOT_FOUND, "model_not_found", Some("model")),
            Self::Change(ChangeError::Unknown { .. }) => invalid(StatusCode::NOT_FOUND, "not_found", None),
            Self::Change(ChangeError::Store(_)) => ours(StatusCode::INTERNAL_SERVER_ERROR, "Unhealthy", "internal"),
            Self::Change(_) => invalid(StatusCode::CONFLICT, "conflict", None),
            Self::NoRoute { .. } => invalid(StatusCode::NOT_FOUND, "not_found", None),
            Self::Method { .. } => invalid(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", None),
            Self::NoEntry { .. } => invalid(StatusCode::NOT_FOUND, "not_cached", Some("key")),
            Self::NoErasure { .. } => invalid(StatusCode::NOT_FOUND, "not_found", Some("id")),
            Self::Deadline { .. } => ours(StatusCode::GATEWAY_TIMEOUT, "Overloaded", "deadline_passed"),
            Self::NoRoomToWait { .. } => Facts {
                status: StatusCode::TOO_MANY_REQUESTS,
                tei: "Overloaded",
                kind: "rate_limit_error",
                code: "no_room_to_wait",
                param: None,
            },
            Self::NotReady(_) => ours(StatusCode::SERVICE_UNAVAILABLE, "Unhealthy", "not_ready"),
            Self::Unauthorized(_) => {
                Facts { kind: "authentication_error", ..invalid(StatusCode::UNAUTHORIZED, "invalid_api_key", None) }
            }
            Self::Forbidden { .. } => {
                Facts { kind: "permission_error", ..invalid(StatusCode::FORBIDDEN, "insufficient_scope", None) }
            }
            Self::OperatorsAlone => {
                Facts { kind: "permission_error", ..invalid(StatusCode::FORBIDDEN, "operators_alone", None) }
            }
            Self::OtherSite => Facts { kind: "permission_error", ..invalid(StatusCode::FORBIDDEN, "other_site", None) },
            Self::Quota(exceeded) => Facts {
                status: StatusCode::TOO_MANY_REQUESTS,
                tei: "Overloaded",
                kind: if exceeded.retry_after.is_some() { "rate_limit_error" } else { "insufficient_quota" },
                code: if exceeded.retry_after.is_some() { "rate_limit_exceeded" } else { "insufficient_quota" },
                param: None,
            },
            Self::Panicked => ours(StatusCode::INTERNAL_SERVER_ERROR, "Unhealthy", "internal"),
            Self::Cache(error) => match error {
                Cache::UnknownPrompt { .. } => invalid(unprocessable, "unknown_prompt", Some("prompt_name")),
                Cache::TooLong { .. } => {
                    invalid(StatusCode::UNPROCESSABLE_ENTITY, "context_length_exceeded", Some("inputs"))
                }
                Cache::EmptySelector => invalid(unprocessable, "empty_selector", None),
                Cache::Missing { .. } => invalid(StatusCode::NOT_FOUND, "not_cached", Some("inputs")),
                Cache::TokenId { .. } => invalid(unprocessable, "unknown_token_id", Some("input")),
                Cache::Dims { .. } | Cache::Vector(_) => invalid(unprocessable, "invalid_vector", None),
                Cache::QueueFull { .. } => Facts {
                    status: StatusCode::TOO_MANY_REQUESTS,
                    tei: "Overloaded",
                    kind: "rate_limit_error",
                    code: "queue_full",
                    param: None,
                },
                Cache::SearchOff => invalid(StatusCode::FORBIDDEN, "search_off", None),
                Cache::Event(_) => invalid(unprocessable, "invalid_event", None),
                Cache::Search(_) => invalid(unprocessable, "invalid_search", None),
                Cache::ShuttingDown => ours(StatusCode::SERVICE_UNAVAILABLE, "Unhealthy", "shutting_down"),
                Cache::Busy { .. } => Facts {
                    status: StatusCode::TOO_MANY_REQUESTS,
                    tei: "Overloaded",
                    kind: "rate_limit_error",
                    code: "model_busy",
                    param: None,
                },
                Cache::Rejected { .. } => invalid(unprocessable, "input_refused", Some("inputs")),
                Cache::TokenizerUnknown(_) => invalid(unprocessable, "tokenizer_unknown", None),
                Cache::Tokenizer { .. } => ours(failed, "Tokenizer", "tokenizer_failed"),
                Cache::Engine { .. } => ours(failed, "Backend", "model_failed"),
                Cache::Unusable { .. } => ours(failed, "Backend", "unusable_vector"),
                _ => ours(StatusCode::INTERNAL_SERVER_ERROR, "Unhealthy", "internal"),
            },
        }
    }

    /// The answer that says so.
    pub(super) fn into_response(self, dialect: Dialect, request_id: &HeaderValue) -> Response {
        let facts = self.facts(dialect);
        let id = request_id.to_str().unwrap_or_default();
        let mut message = self.to_string();
        if matches!(facts.status, StatusCode::INTERNAL_SERVER_ERROR | StatusCode::FAILED_DEPENDENCY) {
            message.push_str(&format!(" (request {id})"));
        }
        let mut body = body(dialect, &facts, &message, id);
        if let Self::Cache(cache::Error::Missing { indexes }) = &self {
            let place = if dialect == Dialect::Tei { Some(&mut body) } else { body.get_mut("error") };
            if let Some(place) = place.and_then(Value::as_object_mut) {
                place.insert("missing".to_owned(), json!(indexes));
            }
        }
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = facts.status;
        let headers = response.headers_mut();
        let content_type = if dialect == Dialect::Own { "application/problem+json" } else { "application/json" };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        match &self {
            Self::NoRoomToWait { retry_after }
            | Self::Quota(access::Exceeded { retry_after: Some(retry_after), .. })
            | Self::Cache(cache::Error::QueueFull { retry_after, .. } | cache::Error::Busy { retry_after, .. }) => {
                let seconds = retry_after.as_secs_f64().ceil().max(1.0) as u64;
                headers.insert(RETRY_AFTER, seconds.into());
                headers.insert(RETRY_AFTER_MS, (retry_after.as_millis().clamp(1, 3_600_000) as u64).into());
            }
            // RFC 6750: whose key is no good is told so, whose is missing only what is wanted.
            Self::Unauthorized(refusal) => {
                let challenge = match refusal {
                    access::Refusal::Missing => r#"Bearer realm="vecmemo""#,
                    _ => r#"Bearer realm="vecmemo", error="invalid_token""#,
                };
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            }
            // The connection goes, or what is left of the body would have to be read to no purpose.
            Self::Cache(cache::Error::ShuttingDown)
            | Self::BodyTooLarge { .. }
            | Self::BodyTimeout { .. }
            | Self::BodyBroken(_) => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

fn body(dialect: Dialect, facts: &Facts, message: &str, request_id: &str) -> Value {
    let error = json!({ "message": message, "type": facts.kind, "param": facts.param, "code": facts.code });
    match dialect {
        Dialect::Tei => json!({ "error": message, "error_type": facts.tei }),
        Dialect::OpenAi => json!({ "error": error }),
        Dialect::Own => {
            let mut problem = Map::new();
            problem.insert("type".to_owned(), json!("about:blank"));
            problem.insert("title".to_owned(), json!(facts.status.canonical_reason().unwrap_or("Error")));
            problem.insert("status".to_owned(), json!(facts.status.as_u16()));
            problem.insert("detail".to_owned(), json!(message));
            problem.insert("request_id".to_owned(), json!(request_id));
            problem.insert("error".to_owned(), error);
            Value::Object(problem)
        }
    }
}

fn lengths(allowed: &[usize]) -> String {
    let words: Vec<String> = allowed.iter().map(usize::to_string).collect();
    format!("{} dimensions", words.join(" or "))
}

fn quoted(names: &[String]) -> String {
    let words: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    words.join(", ")
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

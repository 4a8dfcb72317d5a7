//! Reading a request's body: bounded in size, time and memory, then parsed where it lies.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::Body as _;
use hyper::header::{CONTENT_TYPE, EXPECT};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Service;
use super::call::Call;
use super::errors::Error;

/// Longer messages of the parser are cut: they may quote the body.
const MESSAGE_CHARS_MAX: usize = 300;

/// The most that is read of a body for nothing.
const DISPOSED_BYTES_MAX: usize = 64 << 10;

/// A body. The room that was reserved for it is the call's.
pub(super) struct Received {
    pub(super) bytes: Bytes,
}

/// Reads a body. Nothing of it is read before there is room for all of it.
///
/// # Errors
/// When it is too large, too slow, or breaks off.
pub(super) async fn read(call: &Call, headers: &HeaderMap, body: Body) -> Result<Received, Error> {
    let shared = &call.service.shared;
    let limit_bytes = shared.config.body_bytes_max;
    let length = body.size_hint().exact();
    let expected = length.map_or(limit_bytes, |length| usize::try_from(length).unwrap_or(usize::MAX));
    let reading = async {
        if expected > limit_bytes {
            if !headers.contains_key(EXPECT) && expected / 2 <= limit_bytes {
                discard(body, limit_bytes.saturating_mul(2)).await;
            }
            return Err(Error::BodyTooLarge { limit_bytes });
        }
        let room = call.in_time(shared.request_memory.reserve(expected)).await?;
        let limit = shared.config.body_timeout;
        let collected = tokio::time::timeout(limit, collect(body, limit_bytes)).await;
        let bytes = collected.map_err(|_| Error::BodyTimeout { limit })??;
        call.hold(room, bytes.len());
        Ok(Received { bytes })
    };
    let received = reading.await?;
    shared.metrics.request_bytes.inc_by(received.bytes.len() as u64);
    Ok(received)
}

async fn collect(mut body: Body, limit_bytes: usize) -> Result<Bytes, Error> {
    let mut first: Option<Bytes> = None;
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::BodyBroken(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if all.len() + first.as_ref().map_or(0, Bytes::len) + data.len() > limit_bytes {
            discard(body, limit_bytes.saturating_mul(2)).await;
            return Err(Error::BodyTooLarge { limit_bytes });
        }
        if all.is_empty() {
            // Most bodies are one piece, which is used as it is.
            match first.take() {
                None => {
                    first = Some(data);
                    continue;
                }
                Some(before) => {
                    let rest = body.size_hint().upper().map_or(0, |bytes| bytes as usize).min(limit_bytes);
                    all.reserve(before.len() + data.len() + rest);
                    all.extend_from_slice(&before);
                }
            }
        }
        all.extend_from_slice(&data);
    }
    Ok(first.unwrap_or_else(|| all.freeze()))
}

/// Reads the body of a request that is refused before anybody asked for it, if it is short: what was left of it would be taken for the
/// connection's next request, or end it. Whether all of it was read.
pub(super) async fn dispose(service: &Service, body: Body) -> bool {
    let all = discard(body, DISPOSED_BYTES_MAX);
    tokio::time::timeout(service.shared.config.body_timeout, all).await.unwrap_or(false)
}

/// Reads a body that is not wanted, up to a bound: a client that is still sending would not see the refusal otherwise. Whether all of
/// it was read.
async fn discard(mut body: Body, bytes_max: usize) -> bool {
    let mut left = bytes_max;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(rest) => left = rest,
            None => return false,
        }
    }
    true
}

/// Checks that a body is JSON by its header, or that the header is missing.
///
/// # Errors
/// When it is something else.
pub(super) fn expect_json(headers: &HeaderMap) -> Result<(), Error> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let bytes = value.as_bytes();
    if bytes == b"application/json" || is_type(bytes, "application/json") {
        return Ok(());
    }
    let found = String::from_utf8_lossy(bytes).chars().take(MESSAGE_CHARS_MAX).collect();
    Err(Error::ContentType { found, expected: "application/json" })
}

/// Whether a `Content-Type` names the given type, whatever its parameters.
pub(super) fn is_type(value: &[u8], name: &str) -> bool {
    value
        .split(|byte| *byte == b';')
        .next()
        .is_some_and(|first| first.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
}

/// Parses a body, borrowing texts from it. Only when that fails it is parsed again, slowly, to say where.
///
/// # Errors
/// When it is not JSON, or not of the expected shape.
pub(super) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Error> {
    // Serde would take a list for an object with its fields in order.
    if bytes.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        return Err(not_an_object(bytes));
    }
    parse_any(bytes)
}

/// As [`parse`], for what need not be an object.
///
/// # Errors
/// When it is not JSON, or not of the expected shape.
pub(super) fn parse_any<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| explain::<T>(bytes, &error))
}

#[cold]
fn not_an_object(bytes: &[u8]) -> Error {
    match serde_json::from_slice::<IgnoredAny>(bytes) {
        Ok(_) => Error::invalid("body", "a JSON object is needed"),
        Err(error) => Error::Malformed { message: error.to_string() },
    }
}

#[cold]
fn explain<'a, T: Deserialize<'a>>(bytes: &'a [u8], error: &serde_json::Error) -> Error {
    let short = |error: &serde_json::Error| error.to_string().chars().take(MESSAGE_CHARS_MAX).collect::<String>();
    if !error.is_data() {
        return Error::Malformed { message: short(error) };
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let field = match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Err(traced) => traced.path().to_string(),
        Ok(_) => ".".to_owned(),
    };
    let field = if field == "." { "body".to_owned() } else { field.chars().take(MESSAGE_CHARS_MAX).collect() };
    Error::Invalid { field, message: short(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Shape {
        #[expect(dead_code, reason = "only parsed")]
        inputs: Vec<String>,
    }

    fn error(body: &str) -> String {
        parse::<Shape>(body.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn an_error_names_the_field_and_the_position() {
        assert_eq!(
            error(r#"{"inputs": ["a", 1]}"#),
            "inputs[1]: invalid type: integer `1`, expected a string at line 1 column 18"
        );
        let unknown = error("{\"inputs\": [],\n \"truncat\": true}");
        assert!(unknown.starts_with("truncat: unknown field `truncat`, expected `inputs` at line 2"), "{unknown}");
        assert!(error("{}").starts_with("body: missing field `inputs`"));
        assert!(error(r#"{"inputs": ["#).starts_with("the body is not valid JSON: EOF"));
        assert!(error(r#"{"inputs": []} x"#).contains("trailing characters at line 1 column 16"));
    }

    #[test]
    fn a_content_type_is_compared_without_its_parameters() {
        assert!(is_type(b"Application/JSON ; charset=utf-8", "application/json"));
        assert!(!is_type(b"application/jsonlines", "application/json"));
    }
}

//! One try: a POST and its answer, within a time and a size. Follows no redirect: the key is for one host only.

use std::time::{Duration, UNIX_EPOCH};

use ureq::Agent;
use ureq::http::HeaderMap;

use super::super::EngineError;
use super::settings::Upstream;
use super::wire;

/// What came back.
pub(super) struct Reply {
    pub(super) status: u16,
    /// When to come again, if it is said.
    pub(super) retry_after: Option<Duration>,
    /// Tokens billed, if a header says.
    pub(super) tokens: Option<u64>,
    /// Whether the body is plain text.
    pub(super) plain_text: bool,
    pub(super) body: Vec<u8>,
}

/// Why nothing whole came back.
#[derive(Debug)]
pub(super) enum Broken {
    /// Nobody was reached: nothing can have been computed.
    Unsent(String),
    /// It was sent, and may have been computed and billed.
    Lost(String),
    /// The answer is longer than any right one.
    Endless,
}

pub(super) trait Transport: Send + Sync {
    fn post(&self, body: &[u8], timeout: Duration, answer_bytes_max: u64, unix_seconds: u64) -> Result<Reply, Broken>;
    /// The key, so that it can be kept out of what is shown.
    fn key(&self) -> Option<&str>;
}

/// Over HTTP, with connections kept open between tries.
pub(super) struct Http {
    agent: Agent,
    url: String,
    header: String,
    /// `Bearer` and the key, or the key.
    value: Option<String>,
    key: Option<String>,
}

impl Http {
    pub(super) fn new(model: &str, upstream: &Upstream) -> Result<Self, EngineError> {
        let key = upstream.key_variable.as_ref().map(|variable| read_key(model, variable)).transpose()?;
        if key.is_some() && upstream.goes_in_the_clear() {
            tracing::warn!(model, "the key goes over the network unencrypted: base_url begins with http://");
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("vecmemo/", env!("CARGO_PKG_VERSION")))
            .max_idle_connections(upstream.requests_parallel)
            .max_idle_connections_per_host(upstream.requests_parallel)
            .build()
            .new_agent();
        let value =
            key.as_ref().map(|key| if upstream.key_header.is_some() { key.clone() } else { format!("Bearer {key}") });
        let header = upstream.key_header.clone().unwrap_or_else(|| "authorization".to_owned());
        Ok(Self { agent, url: wire::url(upstream), header, value, key })
    }
}

fn read_key(model: &str, variable: &str) -> Result<String, EngineError> {
    let failed = |what: &str| EngineError::Upstream {
        model: model.to_owned(),
        message: format!("the environment variable {variable} {what}"),
    };
    let key = std::env::var(variable).map_err(|_| failed("is not set: it is to hold the key of the endpoint"))?;
    let key = key.trim();
    if key.is_empty() {
        return Err(failed("is empty: it is to hold the key of the endpoint"));
    }
    if !key.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Err(failed("holds characters that no key has: set it again"));
    }
    Ok(key.to_owned())
}

impl Transport for Http {
    fn post(&self, body: &[u8], timeout: Duration, answer_bytes_max: u64, unix_seconds: u64) -> Result<Reply, Broken> {
        let mut request =
            self.agent.post(&self.url).content_type("application/json").header("accept", "application/json");
        if let Some(value) = &self.value {
            request = request.header(&self.header, value);
        }
        let response = request.config().timeout_global(Some(timeout)).build().send(body).map_err(broken)?;
        let (parts, body) = response.into_parts();
        let plain_text = header(&parts.headers, "content-type").is_some_and(|kind| kind.starts_with("text/plain"));
        let body = match body.into_with_config().limit(answer_bytes_max).read_to_vec() {
            Ok(body) => body,
            Err(ureq::Error::BodyExceedsLimit(_)) => return Err(Broken::Endless),
            // What failed has failed, whether or not it says so to the end.
            Err(_) if !parts.status.is_success() => Vec::new(),
            Err(error) => return Err(Broken::Lost(format!("the answer broke off: {}", reason(&error)))),
        };
        Ok(Reply {
            status: parts.status.as_u16(),
            retry_after: retry_after(
                header(&parts.headers, "retry-after-ms"),
                header(&parts.headers, "retry-after"),
                unix_seconds,
            ),
            tokens: header(&parts.headers, "x-compute-tokens").and_then(|tokens| tokens.parse().ok()),
            plain_text,
            body,
        })
    }

    fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn broken(error: ureq::Error) -> Broken {
    use std::io::ErrorKind;
    use ureq::{Error, Timeout};
    let said = reason(&error);
    match &error {
        Error::Timeout(Timeout::Resolve | Timeout::Connect)
        | Error::HostNotFound
        | Error::ConnectionFailed
        | Error::ConnectProxyFailed(_)
        | Error::InvalidProxyUrl
        | Error::BadUri(_)
        | Error::Http(_)
        | Error::Tls(_)
        | Error::Rustls(_) => Broken::Unsent(said),
        Error::Io(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
            Broken::Unsent(said)
        }
        _ => Broken::Lost(said),
    }
}

/// An error on one line, without the URL: what is in it is in the manifest already.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "there was no answer in time".to_owned(),
        ureq::Error::BadUri(_) => "base_url is no URL".to_owned(),
        // These may quote what was received.
        ureq::Error::Protocol(_) => "what came back is not HTTP".to_owned(),
        other => other.to_string(),
    }
}

/// `retry-after-ms`, or `Retry-After` as seconds or as a date.
fn retry_after(milliseconds: Option<&str>, seconds: Option<&str>, unix_seconds: u64) -> Option<Duration> {
    if let Some(wait) = milliseconds.and_then(|text| number(text, 1000.0)) {
        return Some(wait);
    }
    let text = seconds?.trim();
    number(text, 1.0).or_else(|| {
        let at = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(at.saturating_sub(Duration::from_secs(unix_seconds)))
    })
}

fn number(text: &str, a_second: f64) -> Option<Duration> {
    let value: f64 = text.trim().parse().ok()?;
    Duration::try_from_secs_f64(value / a_second).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_read_in_each_of_its_spellings() {
        let seconds = |seconds: f64| Some(Duration::from_secs_f64(seconds));
        assert_eq!(retry_after(Some("250"), Some("9"), 0), seconds(0.25));
        assert_eq!(retry_after(None, Some("9"), 0), seconds(9.0));
        assert_eq!(retry_after(None, Some(" 1.5 "), 0), seconds(1.5));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(retry_after(None, Some(date), 784_111_770), seconds(7.0));
        assert_eq!(retry_after(None, Some(date), 784_111_999), seconds(0.0));
        for nonsense in ["", "soon", "-1", "NaN", "1e300"] {
            assert_eq!(retry_after(Some(nonsense), Some(nonsense), 0), None, "{nonsense}");
        }
    }

    #[test]
    fn a_key_that_is_not_there_is_asked_for_by_the_name_of_its_variable() {
        let error = read_key("m", "VECMEMO_TEST_NO_SUCH_KEY").unwrap_err().to_string();
        assert!(error.contains("VECMEMO_TEST_NO_SUCH_KEY is not set"), "{error}");
    }
}

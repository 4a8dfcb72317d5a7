//! A running vecmemo, seen over HTTP.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A path, with the model it is to be about in its query.
pub(super) fn about(path: &str, model: Option<&str>) -> String {
    match model {
        None => path.to_owned(),
        Some(model) => format!("{path}{}model={}", if path.contains('?') { '&' } else { '?' }, escaped(model)),
    }
}

/// A name as it may stand in an address.
pub(super) fn escaped(name: &str) -> String {
    let escape = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    name.bytes().map(escape).collect()
}

/// A server's base URL and a way to ask it. Blocking.
#[derive(Clone)]
pub(super) struct Client {
    url: String,
    agent: ureq::Agent,
}

/// An answer with what our commands read of it.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) cache_status: String,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Vec<u8>,
}

impl Client {
    /// For a server at a URL. Its certificate is to be signed by an authority that browsers know, or by one in the file that the variable
    /// `SSL_CERT_FILE` names, as for OpenSSL.
    pub(super) fn new(url: &str) -> Self {
        let agent = ureq::Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(authorities()).build())
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .http_status_as_error(false)
            .middleware(with_key)
            .build()
            .new_agent();
        Self { url: url.trim_end_matches('/').to_owned(), agent }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn get_json(&self, path: &str) -> anyhow::Result<Value> {
        let response = self.agent.get(format!("{}{path}", self.url)).call();
        self.json(path, Reply::read(response.with_context(|| self.unreachable())?)?)
    }

    pub(super) fn post_json(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let reply = self.post(path, &[("accept", "application/json")], body)?;
        self.json(path, reply)
    }

    pub(super) fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> anyhow::Result<Reply> {
        let mut request = self.agent.post(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Reply::read(request.send_json(body).with_context(|| self.unreachable())?)
    }

    pub(super) fn put_json(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let response = self.agent.put(format!("{}{path}", self.url)).send_json(body);
        self.json(path, Reply::read(response.with_context(|| self.unreachable())?)?)
    }

    pub(super) fn delete_json(&self, path: &str) -> anyhow::Result<Value> {
        let response = self.agent.delete(format!("{}{path}", self.url)).call();
        self.json(path, Reply::read(response.with_context(|| self.unreachable())?)?)
    }

    fn json(&self, path: &str, reply: Reply) -> anyhow::Result<Value> {
        if reply.status != 200 {
            bail!("{}{path} answered {}: {}", self.url, reply.status, reply.message());
        }
        serde_json::from_slice(&reply.body).with_context(|| format!("{}{path} did not answer JSON", self.url))
    }

    fn unreachable(&self) -> String {
        let advice = match self.url.split_once("://") {
            Some(("https", _)) => {
                "is `vecmemo serve` running there? A certificate of an authority of your own is trusted if SSL_CERT_FILE names its file"
            }
            Some(_) => "is `vecmemo serve` running there?",
            None => "an address begins with http:// or https://",
        };
        format!("no answer from {}: {advice}", self.url)
    }
}

/// Who may sign for a server.
fn authorities() -> RootCerts {
    let Some(path) = std::env::var_os("SSL_CERT_FILE") else { return RootCerts::WebPki };
    let pem = std::fs::read(&path).unwrap_or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "SSL_CERT_FILE cannot be read: no certificate is trusted");
        Vec::new()
    });
    let of_file = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    RootCerts::new_with_certs(&parse_pem(&pem).filter_map(of_file).collect::<Vec<_>>())
}

/// Adds the key that the server wants, if the environment has one. It follows no redirect elsewhere.
fn with_key(
    mut request: ureq::http::Request<ureq::SendBody<'_>>,
    next: ureq::middleware::MiddlewareNext<'_>,
) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
    if let Ok(key) = std::env::var("VECMEMO_API_KEY")
        && let Ok(mut value) = ureq::http::HeaderValue::try_from(format!("Bearer {key}"))
    {
        value.set_sensitive(true);
        request.headers_mut().insert(ureq::http::header::AUTHORIZATION, value);
    }
    next.handle(request)
}

impl Reply {
    fn read(response: ureq::http::Response<ureq::Body>) -> anyhow::Result<Self> {
        let status = response.status().as_u16();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let cache_status = header("cache-status").to_owned();
        let retry_after = header("retry-after").parse().ok().map(Duration::from_secs);
        let body = response.into_body().into_with_config().limit(u64::MAX).read_to_vec();
        Ok(Self { status, cache_status, retry_after, body: body.context("the answer broke off")? })
    }

    /// What the server said was wrong.
    pub(super) fn message(&self) -> String {
        let body: Option<Value> = serde_json::from_slice(&self.body).ok();
        let message = body.as_ref().and_then(|body| body["detail"].as_str().or(body["error"].as_str()));
        message.map_or_else(|| String::from_utf8_lossy(&self.body).into_owned(), ToOwned::to_owned)
    }

    /// One of the counts in the `Cache-Status` header, zero if it is not there.
    pub(super) fn count(&self, name: &str) -> u64 {
        let parameters = self.cache_status.split(';').filter_map(|part| part.trim().split_once('='));
        parameters.into_iter().find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    }
}

//! `GET /` and `/page/…`: the page for operators. HTML, styles and scripts as they stand beside this file, in the program.
//!
//! The page is made of nothing but what a browser reads: no framework, nothing that is built. It holds no figure of the cache
//! and no secret: everything it shows it asks of the other routes, with the key that its reader gives it. The browser is told
//! to run and load nothing but these files ([`POLICY`]), so that a tag or payload that were HTML could not do anything even
//! if it were shown as such, which it is not.

use std::sync::LazyLock;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};

use super::call::{Answered, Call};
use super::errors::Error;

/// What the page may load, and who may show it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

const HTML: &str = "text/html; charset=utf-8";
const STYLES: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

/// A file as it is served.
struct File {
    name: &'static str,
    content_type: &'static str,
    content: &'static [u8],
    tag: HeaderValue,
}

macro_rules! file {
    ($name:literal, $content_type:expr) => {
        file!($name, $name, $content_type)
    };
    ($name:literal, $path:literal, $content_type:expr) => {
        File::new($name, $content_type, include_bytes!($path))
    };
}

/// The page itself, and what it loads from `/page/`.
static PAGE: LazyLock<File> = LazyLock::new(|| file!("index.html", HTML));
static FILES: LazyLock<[File; 15]> = LazyLock::new(|| {
    [
        file!("page.css", STYLES),
        file!("icon.svg", PICTURE),
        file!("main.js", SCRIPT),
        file!("access.js", SCRIPT),
        file!("alerts.js", SCRIPT),
        file!("charts.js", SCRIPT),
        file!("elements.js", SCRIPT),
        file!("figures.js", SCRIPT),
        file!("format.js", SCRIPT),
        file!("history.js", SCRIPT),
        file!("invalidate.js", SCRIPT),
        file!("poll.js", SCRIPT),
        file!("search.js", SCRIPT),
        file!("uplot.js", "uplot/uPlot.iife.min.js", SCRIPT),
        file!("uplot.css", "uplot/uPlot.min.css", STYLES),
    ]
});

impl File {
    fn new(name: &'static str, content_type: &'static str, content: &'static [u8]) -> Self {
        let digest = blake3::hash(content).to_hex();
        let tag = HeaderValue::from_str(&format!("\"{}\"", &digest[..32])).expect("hexadecimal digits are visible");
        Self { name, content_type, content, tag }
    }

    /// The file, or that the client has it already.
    fn answer(&self, asked: &HeaderMap) -> Response {
        let known = asked.get_all(IF_NONE_MATCH).iter().any(|tags| names(tags, &self.tag));
        let mut response =
            Response::new(if known { Body::empty() } else { Body::from(Bytes::from_static(self.content)) });
        let headers = response.headers_mut();
        headers.insert(ETAG, self.tag.clone());
        // Asked for each time and sent when it has changed: a page and scripts of two versions never meet for long.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
        headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
        if known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        }
        response
    }
}

/// Whether a list of tags, or `*`, names this one. Weakly: `W/` in front makes no difference.
fn names(tags: &HeaderValue, tag: &HeaderValue) -> bool {
    let Ok(tags) = tags.to_str() else { return false };
    tags.split(',').map(str::trim).any(|found| found == "*" || found.strip_prefix("W/").unwrap_or(found) == tag)
}

/// The names under `/page/`.
pub(super) fn file_names() -> Vec<&'static str> {
    FILES.iter().map(|file| file.name).collect()
}

/// The page for operators.
///
/// Figures, a search and invalidation, in a browser. It answers the same whatever `Accept` says.
#[utoipa::path(
    get, path = "/", tag = "operations",
    responses(
        (status = 200, description = "HTML", content_type = "text/html", body = String),
        (status = 304, description = "The client has it already"),
    )
)]
pub(super) async fn page(_call: Call, request: Request) -> Result<Answered, Error> {
    Ok(PAGE.answer(request.headers()).into())
}

/// What the page is made of.
#[utoipa::path(
    get, path = "/page/{file}", tag = "operations",
    params(("file" = String, Path, description = "A style sheet, a script or a picture")),
    responses(
        (status = 200, description = "The file", content((String = "text/css"), (String = "text/javascript"), (String = "image/svg+xml"))),
        (status = 304, description = "The client has it already"),
    )
)]
pub(super) async fn file(_call: Call, request: Request) -> Result<Answered, Error> {
    let path = request.uri().path();
    let name = path.strip_prefix("/page/").unwrap_or_default();
    match FILES.iter().find(|file| file.name == name) {
        Some(file) => Ok(file.answer(request.headers()).into()),
        None => Err(Error::NoRoute { path: path.chars().take(200).collect() }),
    }
}

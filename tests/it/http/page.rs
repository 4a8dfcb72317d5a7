//! The page for operators: that it is there, whole, and allowed nothing that it does not need. `tests/page` looks at it with
//! a browser.

use std::collections::BTreeSet;
use std::path::Path;

use axum::body::Body;
use hyper::{Method, Request, StatusCode};

use super::{Bench, Got};

async fn asked(bench: &Bench, method: Method, path: &str, headers: &[(&str, &str)]) -> Got {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    bench.send(request.body(Body::empty()).unwrap()).await
}

/// The paths under `/page/` that a text names.
fn named(text: &str) -> BTreeSet<String> {
    let ends = |character: char| !(character.is_ascii_alphanumeric() || ".-_".contains(character));
    let paths = text.match_indices("/page/").map(|(at, found)| {
        let rest = &text[at + found.len()..];
        format!("/page/{}", rest.split(ends).next().unwrap())
    });
    paths.collect()
}

/// The modules that a script imports.
fn imported(script: &str) -> BTreeSet<String> {
    let lines = script.lines().filter(|line| line.starts_with("import "));
    lines.map(|line| format!("/page/{}", line.split("'./").nth(1).unwrap().trim_end_matches("';"))).collect()
}

#[tokio::test]
async fn the_page_and_all_that_it_loads_are_there_and_nothing_else_is() {
    let bench = Bench::new();
    let page = bench.get("/").await;
    assert_eq!((page.status, page.header("content-type")), (StatusCode::OK, "text/html; charset=utf-8"));
    let page = String::from_utf8(page.body).unwrap();
    assert!(page.starts_with("<!doctype html>"));
    let mut wanted = named(&page);
    let mut loaded = BTreeSet::new();
    while let Some(path) = wanted.pop_first() {
        let got = bench.get(&path).await;
        assert_eq!(got.status, StatusCode::OK, "{path}");
        let expected = match path.rsplit_once('.').unwrap().1 {
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            _ => "image/svg+xml",
        };
        assert_eq!(got.header("content-type"), expected);
        if path.ends_with(".js") && loaded.insert(path.clone()) {
            wanted.extend(imported(&String::from_utf8(got.body).unwrap()).difference(&loaded).cloned());
        }
        loaded.insert(path);
    }
    let description = bench.get("/openapi.json").await.json();
    let names = &description["paths"]["/page/{file}"]["get"]["parameters"][0]["schema"]["enum"];
    let served: BTreeSet<String> =
        names.as_array().unwrap().iter().map(|name| format!("/page/{}", name.as_str().unwrap())).collect();
    assert_eq!(loaded, served, "what is served and what the page loads");
    for absent in ["/page/", "/page/index.html", "/page/mod.rs", "/page/../Cargo.toml", "/page/%2e%2e%2fmod.rs"] {
        assert_eq!(bench.get(absent).await.status, StatusCode::NOT_FOUND, "{absent}");
    }
}

#[tokio::test]
async fn a_browser_is_told_to_load_and_run_only_what_is_served_here() {
    let bench = Bench::new();
    for path in ["/", "/page/main.js", "/page/page.css", "/page/icon.svg"] {
        let got = bench.get(path).await;
        let expected = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                        frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
        assert_eq!(got.header("content-security-policy"), expected, "{path}");
        assert_eq!((got.header("x-content-type-options"), got.header("referrer-policy")), ("nosniff", "no-referrer"));
        assert_eq!(got.header("cache-control"), "no-cache");
    }
    // The policy would make a browser leave these out, and nobody would see it here.
    let page = String::from_utf8(bench.get("/").await.body).unwrap();
    assert!(!page.contains("<style") && !page.contains("style=") && !page.contains("javascript:"));
    assert!(page.matches("<script").count() == page.matches("src=\"/page/").count() - page.matches("<img").count());
    assert!(!page.split_whitespace().any(|word| word.starts_with("on") && word.contains('=')), "a handler in the HTML");
}

#[test]
fn no_script_makes_markup_of_what_it_shows() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/page");
    let mut scripts = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "js") {
            scripts += 1;
            let script = std::fs::read_to_string(&path).unwrap();
            for way in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "localStorage"]
            {
                assert!(!script.contains(way), "{way} in {}", path.display());
            }
        }
    }
    assert!(scripts > 10);
}

#[tokio::test]
async fn what_the_client_has_already_is_not_sent_again() {
    let bench = Bench::new();
    for path in ["/", "/page/main.js", "/page/uplot.js"] {
        let tag = bench.get(path).await.header("etag").to_owned();
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            let got = asked(&bench, Method::GET, path, &[("if-none-match", &known)]).await;
            assert_eq!((got.status, got.body.len()), (StatusCode::NOT_MODIFIED, 0), "{path} {known}");
            assert_eq!(got.header("etag"), tag);
            assert!(got.headers.contains_key("content-security-policy"));
        }
        for other in ["\"other\"", "", "**"] {
            let got = asked(&bench, Method::GET, path, &[("if-none-match", other)]).await;
            assert_eq!(got.status, StatusCode::OK, "{path} {other}");
        }
    }
    assert_ne!(bench.get("/page/main.js").await.header("etag"), bench.get("/page/poll.js").await.header("etag"));
}

#[tokio::test]
async fn the_page_is_there_for_any_client_and_the_root_s_other_method_stays() {
    let bench = Bench::new();
    let whole = bench.get("/").await;
    for accept in ["*/*", "application/json", "text/html,application/xhtml+xml"] {
        assert_eq!(asked(&bench, Method::GET, "/", &[("accept", accept)]).await.body, whole.body);
    }
    let head = asked(&bench, Method::HEAD, "/", &[]).await;
    assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
    for name in ["etag", "content-type", "content-security-policy"] {
        assert_eq!(head.header(name), whole.header(name));
    }
    assert_eq!(head.header("content-length"), whole.body.len().to_string());
    let vectors = bench.post("/", r#"{"inputs": "a"}"#).await.json();
    assert_eq!(vectors[0].as_array().unwrap().len(), super::DIMS);
    assert_eq!(asked(&bench, Method::DELETE, "/", &[]).await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(bench.post("/page/main.js", "{}").await.status, StatusCode::METHOD_NOT_ALLOWED);
    let refused = asked(&bench, Method::GET, "/", &[("x-priority", "at once")]).await;
    assert_eq!((refused.status, refused.json()["error_type"].is_string()), (StatusCode::BAD_REQUEST, true));
}

#[tokio::test]
async fn the_page_is_answered_while_the_service_drains() {
    let bench = Bench::new();
    bench.service.start_draining();
    assert_eq!(bench.get("/").await.status, StatusCode::OK);
}

/// The vendored library is the one that its page says, byte for byte.
#[test]
fn the_chart_library_is_as_it_was_published() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/page/uplot");
    let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
    let script = std::fs::read_to_string(folder.join("uPlot.iife.min.js")).unwrap();
    let version = readme.split("uPlot ").nth(1).unwrap().split(',').next().unwrap();
    assert!(script.contains(&format!("(v{version})")), "{version}");
    for name in ["LICENSE", "uPlot.iife.min.js", "uPlot.min.css"] {
        let digest: String = {
            use sha2::Digest as _;
            sha2::Sha256::digest(std::fs::read(folder.join(name)).unwrap())
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect()
        };
        assert!(readme.contains(&format!("{digest}  {name}")), "{name}: {digest}");
    }
}

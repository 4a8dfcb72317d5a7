//! Who is let in, route by route, in each dialect's own shape.

use axum::body::Body;
use hyper::{Method, Request, StatusCode};
use serde_json::json;
use vecmemo::access::{Access, Keys, NewKey, Scope};
use vecmemo::engine::Model;
use vecmemo::http::Config;

use super::refusals::{openai, problem, tei};
use super::{Bench, Got, model};

/// A service with keys, and the keys themselves by their ids.
pub(super) struct Keyed {
    pub(super) bench: Bench,
    pub(super) access: Access,
    pub(super) tokens: Vec<(String, String)>,
}

/// A key: its id, its tenant (`""`: none) and what it is good for.
pub(super) type Wanted<'a> = (&'a str, &'a str, &'a [Scope]);

pub(super) fn keys(wanted: &[Wanted<'_>], public: &[&str], expires: Option<u64>) -> (Keys, Vec<(String, String)>) {
    let made: Vec<(String, NewKey)> = wanted
        .iter()
        .map(|(id, tenant, scopes)| {
            let tenant = (!tenant.is_empty()).then_some(*tenant);
            ((*id).to_owned(), NewKey::new(id, tenant, scopes, expires).unwrap())
        })
        .collect();
    let file: String = made.iter().map(|(_, key)| key.table.as_str()).collect();
    let public: Vec<_> = public.iter().map(|name| vecmemo::domain::Namespace::new(name).unwrap()).collect();
    let tokens = made.into_iter().map(|(id, key)| (id, key.token.reveal().to_owned())).collect();
    (Keys::parse(&file, &public.into()).unwrap(), tokens)
}

impl Keyed {
    pub(super) fn new(wanted: &[Wanted<'_>], public: &[&str]) -> Self {
        Self::with(wanted, public, Config::default())
    }

    pub(super) fn with(wanted: &[Wanted<'_>], public: &[&str], config: Config) -> Self {
        Self::around_model(wanted, public, model(), config)
    }

    pub(super) fn around_model(wanted: &[Wanted<'_>], public: &[&str], model: Model, config: Config) -> Self {
        let (keys, tokens) = keys(wanted, public, None);
        let access = config.access.clone();
        access.replace(keys);
        Self { bench: Bench::with(model, config), access, tokens }
    }

    pub(super) fn token(&self, id: &str) -> &str {
        &self.tokens.iter().find(|(known, _)| known == id).unwrap_or_else(|| panic!("no key {id}")).1
    }

    /// What the key's owner is answered.
    pub(super) async fn ask(&self, id: &str, method: Method, path: &str, body: &str) -> Got {
        self.ask_for(id, method, path, body, "application/json").await
    }

    pub(super) async fn ask_for(&self, id: &str, method: Method, path: &str, body: &str, accept: &str) -> Got {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", self.token(id)))
            .header("content-type", "application/json")
            .header("accept", accept);
        self.bench.send(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    pub(super) async fn post(&self, id: &str, path: &str, body: &str) -> Got {
        self.ask(id, Method::POST, path, body).await
    }

    pub(super) async fn get(&self, id: &str, path: &str) -> Got {
        self.ask(id, Method::GET, path, "").await
    }
}

const EACH: [Wanted<'_>; 4] = [
    ("embed", "a", &[Scope::Embed]),
    ("search", "a", &[Scope::Search]),
    ("invalidate", "a", &[Scope::Invalidate]),
    ("admin", "a", &[Scope::Admin]),
];

/// Each operation, and the keys of [`EACH`] that it is open to. Whatever else it answers to those, it lets them in.
fn table() -> Vec<(Method, &'static str, &'static [&'static str])> {
    let all: &[&str] = &["embed", "search", "invalidate", "admin"];
    let key = "/entries/0000000000000000000000000000000000000000000000000000000000000000";
    let similar = "/similar?key=0000000000000000000000000000000000000000000000000000000000000000";
    vec![
        (Method::POST, "/embed", &["embed"]),
        (Method::POST, "/", &["embed"]),
        (Method::POST, "/v1", &["embed"]),
        (Method::POST, "/v1/embeddings", &["embed"]),
        (Method::POST, "/embeddings", &["embed"]),
        (Method::POST, "/tokenize", &["embed"]),
        (Method::POST, "/lookup", &["embed"]),
        (Method::POST, "/search", &["search"]),
        (Method::GET, similar, &["search"]),
        (Method::GET, key, &["search"]),
        (Method::DELETE, key, &["invalidate"]),
        (Method::POST, "/invalidate", &["invalidate"]),
        (Method::POST, "/events", &["invalidate"]),
        // The operator's, who is no tenant: tests/it/http/tenants.rs.
        (Method::POST, "/erase", &[]),
        (Method::GET, "/erasures/x", &[]),
        (Method::POST, "/admin/reload", &["admin"]),
        (Method::GET, "/admin/cache", &["admin"]),
        (Method::PUT, "/admin/cache", &["admin"]),
        (Method::GET, "/admin/migrations", &["admin"]),
        (Method::POST, "/admin/migrations", &["admin"]),
        (Method::DELETE, "/admin/migrations/x", &["admin"]),
        (Method::POST, "/admin/migrations/x/texts", &["admin"]),
        (Method::GET, "/admin/aliases/x", &["admin"]),
        (Method::PUT, "/admin/aliases/x", &["admin"]),
        (Method::DELETE, "/admin/models/x", &["admin"]),
        (Method::GET, "/metrics", &["admin"]),
        (Method::GET, "/v1/models", all),
        (Method::GET, "/info", all),
        (Method::GET, "/stats", all),
        (Method::GET, "/openapi.json", all),
        (Method::GET, "/nowhere", all),
    ]
}

#[tokio::test]
async fn each_route_is_open_to_the_keys_that_are_good_for_it_and_to_no_others() {
    let keyed = Keyed::new(&EACH, &[]);
    for (method, path, open_to) in table() {
        let bare = Request::builder().method(method.clone()).uri(path).body(Body::empty()).unwrap();
        let got = keyed.bench.send(bare).await;
        assert_eq!(got.status, StatusCode::UNAUTHORIZED, "{method} {path} without a key");
        assert_eq!(got.header("www-authenticate"), r#"Bearer realm="vecmemo""#);
        for (id, ..) in EACH {
            let status = keyed.ask(id, method.clone(), path, "{}").await.status;
            let refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status);
            assert_eq!(!refused, open_to.contains(&id), "{method} {path} for {id}: {status}");
        }
    }
    for path in ["/health", "/ready", "/", "/page/main.js"] {
        assert_eq!(keyed.bench.get(path).await.status, StatusCode::OK, "{path}");
    }
    // The table above has all that there is.
    let document = keyed.get("admin", "/openapi.json").await.json();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let start = path.split('{').next().unwrap();
            let known = table().iter().any(|(known, at, _)| {
                let fits = if path.contains('{') { at.starts_with(start) } else { at.split('?').next() == Some(path) };
                known.as_str().eq_ignore_ascii_case(method) && fits
            });
            let is_open = method == "get" && ["/health", "/ready", "/", "/page/{file}"].contains(&path.as_str());
            assert!(known || is_open, "{method} {path} is in no table");
        }
    }
}

#[tokio::test]
async fn a_refusal_has_the_shape_of_its_dialect() {
    let keyed = Keyed::new(&EACH, &[]);
    let junk = [("authorization", "Bearer vm_junk")];
    tei(&keyed.bench.post("/embed", "{}").await, 401, &["a key is needed", "Authorization: Bearer"]);
    openai(&keyed.bench.post_with("/v1/embeddings", "{}", &junk).await, 401, &["the key is not known"]);
    problem(&keyed.bench.post_with("/search", "{}", &junk).await, 401, &["the key is not known"]);
    let got = keyed.bench.post_with("/lookup", "{}", &junk).await;
    assert_eq!(got.header("www-authenticate"), r#"Bearer realm="vecmemo", error="invalid_token""#);
    tei(&keyed.post("search", "/embed", "{}").await, 403, &["it needs the scope embed"]);
    let got = keyed.post("search", "/v1/embeddings", "{}").await;
    openai(&got, 403, &["it needs the scope embed"]);
    assert_eq!(got.json()["error"]["code"], "insufficient_scope");
    problem(&keyed.post("embed", "/invalidate", "{}").await, 403, &["it needs the scope invalidate"]);
    let message = String::from_utf8(keyed.bench.post_with("/search", "{}", &junk).await.body).unwrap();
    assert!(!message.contains("vm_junk"), "{message}");
}

#[tokio::test]
async fn a_key_is_read_from_either_header_however_its_scheme_is_written() {
    let keyed = Keyed::new(&EACH, &[]);
    let token = keyed.token("embed");
    let (bearer, lower) = (format!("Bearer {token}"), format!("bearer  {token} "));
    let asked = |headers: Vec<(&'static str, String)>| {
        let headers: Vec<(&str, String)> = headers;
        let bench = &keyed.bench;
        async move {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            bench.post_with("/embed", r#"{"inputs": "a"}"#, &headers).await.status.as_u16()
        }
    };
    assert_eq!(asked(vec![("authorization", bearer.clone())]).await, 200);
    assert_eq!(asked(vec![("authorization", lower)]).await, 200);
    assert_eq!(asked(vec![("x-api-key", token.to_owned())]).await, 200);
    assert_eq!(
        asked(vec![("authorization", "Basic cHJveHk6eA==".to_owned()), ("x-api-key", token.to_owned())]).await,
        200
    );
    assert_eq!(asked(vec![("authorization", token.to_owned())]).await, 401);
    assert_eq!(asked(vec![("authorization", format!("{bearer}x"))]).await, 401);
    assert_eq!(asked(vec![("x-api-key", String::new())]).await, 401);
}

#[tokio::test]
async fn an_expired_key_lets_nobody_in() {
    let keyed = Keyed::new(&EACH, &[]);
    let (expired, tokens) = keys(&EACH, &[], Some(1_000_000_000));
    keyed.access.replace(expired);
    let bearer = format!("Bearer {}", tokens[0].1);
    let got = keyed.bench.post_with("/embed", r#"{"inputs": "a"}"#, &[("authorization", &bearer)]).await;
    tei(&got, 401, &["the key has expired"]);
}

#[tokio::test]
async fn metrics_can_be_left_open() {
    let config = Config { metrics_open: Some(true), ..Config::default() };
    let keyed = Keyed::with(&EACH, &[], config);
    assert_eq!(keyed.bench.get("/metrics").await.status, StatusCode::OK);
    assert_eq!(keyed.bench.get("/stats").await.status, StatusCode::UNAUTHORIZED);
}

/// What a page of another origin may read of us: nothing, whatever it asks and sends.
#[tokio::test]
async fn no_other_origin_is_let_read_an_answer() {
    let open = Bench::new();
    let preflight = Request::options("/embed")
        .header("origin", "https://elsewhere.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization");
    let got = open.send(preflight.body(Body::empty()).unwrap()).await;
    assert_eq!(got.status, StatusCode::METHOD_NOT_ALLOWED);
    let origin = [("origin", "https://elsewhere.example")];
    let answered = open.post_with("/embed", r#"{"inputs": "a"}"#, &origin).await;
    assert_eq!(answered.status, StatusCode::OK);
    for got in [got, answered] {
        let cors = got.headers.keys().find(|name| name.as_str().starts_with("access-control-"));
        assert!(cors.is_none(), "{cors:?}");
    }
}

#[tokio::test]
async fn the_description_says_how_a_key_is_sent_where_one_is_needed() {
    let document = Keyed::new(&EACH, &[]).get("admin", "/openapi.json").await.json();
    assert_eq!(document["security"], json!([{ "bearer": [] }, { "key": [] }]));
    assert_eq!(document["paths"]["/health"]["get"]["security"], json!([]));
    assert_eq!(document["components"]["securitySchemes"]["key"]["name"], "x-api-key");
    assert!(document["paths"]["/embed"]["post"]["responses"]["401"].is_object());
    assert!(Bench::new().get("/openapi.json").await.json()["security"].is_null());
}

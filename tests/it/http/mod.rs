//! The HTTP contract, route by route, over a store in a temporary folder and a model that computes nothing real.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]

mod answers;
mod connections;
mod doors;
mod families;
mod keys;
mod lifecycle;
mod operations;
mod overload;
mod page;
mod quotas;
mod refusals;
mod search;
mod tenants;

use axum::Router;
use axum::body::Body;
use http_body_util::BodyExt;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use hyper::{Request, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;
use vecmemo::batch::{self, Embedder};
use vecmemo::cache::Cache;
use vecmemo::engine::{Model, fake};
use vecmemo::http::{self, Config, Service};
use vecmemo::store::{self, Store};

pub(crate) const DIMS: usize = 16;

/// A service over an empty store, called without a connection.
pub(crate) struct Bench {
    pub(crate) router: Router,
    pub(crate) service: Service,
    pub(crate) cache: Cache,
    _folder: TempDir,
}

/// An answer, read to its end.
pub(crate) struct Got {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Got {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers)).to_str().unwrap()
    }
}

/// A model with the prompts and lengths that the tests name.
pub(crate) fn model() -> Model {
    let mut model = fake::model(DIMS);
    model.card.name = "fake".to_owned();
    model.card.source = "vecmemo/fake".to_owned();
    model.card.max_tokens = 32;
    model.card.normalize = true;
    model.card.prompts = [("query".to_owned(), "query: ".to_owned())].into();
    model.card.default_prompt = None;
    model.card.matryoshka_dims = vec![4];
    model
}

pub(crate) fn cache_of(model: Model, config: batch::Config) -> (Cache, TempDir) {
    let folder = TempDir::new().unwrap();
    let store_config = store::Config { capacity_entries: 4096, ..store::Config::default() };
    let store = Store::open(folder.path(), &model.card.version, model.card.dims, &store_config).unwrap();
    (Cache::new(store, Embedder::start(model, config)), folder)
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(model(), Config::default())
    }

    pub(crate) fn with(model: Model, config: Config) -> Self {
        Self::queueing(model, config, batch::Config::default())
    }

    pub(crate) fn queueing(model: Model, config: Config, batch: batch::Config) -> Self {
        let (cache, folder) = cache_of(model, batch);
        let service = Service::new(cache.clone(), config);
        Self::around(service, cache, folder)
    }

    pub(crate) fn around(service: Service, cache: Cache, folder: TempDir) -> Self {
        Self { router: http::router(service.clone()), service, cache, _folder: folder }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Got {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Got { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Got {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Got {
        self.send(Request::delete(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &str) -> Got {
        let request = Request::put(path).header(CONTENT_TYPE, "application/json");
        self.send(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Got {
        self.post_with(path, body, &[]).await
    }

    pub(crate) async fn post_with(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> Got {
        let mut request = Request::post(path).header(CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    pub(crate) async fn post_for(&self, path: &str, body: &str, accept: &str) -> Got {
        self.post_with(path, body, &[(ACCEPT.as_str(), accept)]).await
    }

    /// How many texts the model has computed, by the service's own account.
    pub(crate) async fn computed(&self) -> u64 {
        self.get("/stats").await.json()["items"]["computed"].as_u64().unwrap()
    }
}

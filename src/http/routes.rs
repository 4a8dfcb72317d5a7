//! Which handler answers which method and path.

use std::future::Future;

use axum::Router;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::response::Response;
use axum::routing::{delete, get, post};

use super::call::{self, Answered, Call};
use super::errors::Error;
use super::route::Route;
use super::{
    Service, body, embed, entries, erase, events, invalidate, lookup, migrations, openai, operations, page, reload,
    search, switch, tokenize,
};

/// The whole service as a router, to be served by [`super::serve`] or called in a test.
pub fn router(service: Service) -> Router {
    complete(work().merge(both()).merge(operators_page()).merge(operators()), service)
}

/// What is served beside a listener of the operators' own.
pub(super) fn public(service: Service) -> Router {
    complete(work().merge(both()), service)
}

/// What is served on the operators' own listener.
pub(super) fn admin(service: Service) -> Router {
    complete(both().merge(operators_page()).merge(operators()), service)
}

/// What clients ask.
fn work() -> Router<Service> {
    Router::new()
        .route("/embed", post(handler(Route::Embed, embed::embed)))
        .route("/", post(handler(Route::Root, embed::root)))
        .route("/v1", post(handler(Route::Root, embed::root)))
        .route("/v1/embeddings", post(handler(Route::Embeddings, openai::embeddings)))
        .route("/embeddings", post(handler(Route::Embeddings, openai::embeddings)))
        .route("/v1/models", get(handler(Route::Models, openai::models)))
        .route("/tokenize", post(handler(Route::Tokenize, tokenize::tokenize)))
        .route("/lookup", post(handler(Route::Lookup, lookup::lookup)))
        .route("/similar", get(handler(Route::Similar, search::similar)))
        .route(
            "/entries/{key}",
            get(handler(Route::Entries, entries::entry)).delete(handler(Route::Entries, entries::remove)),
        )
        .route("/events", post(handler(Route::Events, events::events)))
}

/// What both ask. Invalidation is among it: it is the pipelines that know what has changed, and each ends its own.
fn both() -> Router<Service> {
    Router::new()
        .route("/search", post(handler(Route::Search, search::search)))
        .route("/invalidate", post(handler(Route::Invalidate, invalidate::invalidate)))
        .route("/info", get(handler(Route::Info, operations::info)))
        .route("/openapi.json", get(handler(Route::OpenApi, operations::openapi)))
}

/// The operators' page, with what it shows.
fn operators_page() -> Router<Service> {
    Router::new()
        .route("/", get(handler(Route::Page, page::page)))
        .route("/page/{file}", get(handler(Route::Page, page::file)))
}

/// What operators and their tools ask.
fn operators() -> Router<Service> {
    Router::new()
        .route("/erase", post(handler(Route::Erase, erase::erase)))
        .route("/erasures/{id}", get(handler(Route::Erasure, erase::erasure)))
        .route("/admin/reload", post(handler(Route::Reload, reload::reload)))
        .route("/admin/cache", get(handler(Route::Switch, switch::show)).put(handler(Route::Switch, switch::set)))
        .route(
            "/admin/migrations",
            get(handler(Route::Migrations, migrations::list)).post(handler(Route::Migrations, migrations::start)),
        )
        .route("/admin/migrations/{alias}", delete(handler(Route::Migration, migrations::stop)))
        .route("/admin/migrations/{alias}/texts", post(handler(Route::MigrationTexts, migrations::texts)))
        .route(
            "/admin/aliases/{alias}",
            get(handler(Route::Alias, migrations::alias)).put(handler(Route::Alias, migrations::switch)),
        )
        .route("/admin/models/{model}", delete(handler(Route::Model, migrations::delete)))
        .route("/stats", get(handler(Route::Stats, operations::stats)))
        .route("/metrics", get(handler(Route::Metrics, operations::metrics)))
}

/// With what every listener answers.
fn complete(routes: Router<Service>, service: Service) -> Router {
    routes
        .route("/health", get(handler(Route::Health, operations::health)))
        .route("/ready", get(handler(Route::Ready, operations::ready)))
        .method_not_allowed_fallback(handler(Route::Unknown, wrong_method))
        .fallback(handler(Route::Unknown, nothing_here))
        .with_state(service)
}

/// What [`call::answer`] makes of a handler, as axum wants it.
fn handler<F, Handling>(route: Route, handle: F) -> impl Handler<((), State<Service>, Request), Service>
where
    F: Fn(Call, Request) -> Handling + Copy + Send + Sync + 'static,
    Handling: Future<Output = Result<Answered, Error>> + Send + 'static,
{
    Wrapped { route, handle }
}

#[derive(Clone, Copy)]
struct Wrapped<F> {
    route: Route,
    handle: F,
}

impl<F, Handling> Handler<((), State<Service>, Request), Service> for Wrapped<F>
where
    F: Fn(Call, Request) -> Handling + Copy + Send + Sync + 'static,
    Handling: Future<Output = Result<Answered, Error>> + Send + 'static,
{
    type Future = std::pin::Pin<Box<dyn Future<Output = Response> + Send>>;

    fn call(self, request: Request, service: Service) -> Self::Future {
        Box::pin(call::answer(service, self.route, request, self.handle))
    }
}

async fn nothing_here(call: Call, request: Request) -> Result<Answered, Error> {
    let path = shortened(&request);
    body::dispose(&call.service, request.into_body()).await;
    Err(Error::NoRoute { path })
}

async fn wrong_method(call: Call, request: Request) -> Result<Answered, Error> {
    let (method, path) = (request.method().to_string(), shortened(&request));
    body::dispose(&call.service, request.into_body()).await;
    Err(Error::Method { method, path })
}

/// The path, for a message.
fn shortened(request: &Request) -> String {
    request.uri().path().chars().take(200).collect()
}

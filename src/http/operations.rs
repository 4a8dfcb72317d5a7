//! What operators and their tools ask: `/stats`, `/info`, `/health`, `/ready`, `/metrics`, `/openapi.json`.

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Map, Value, json};

use crate::access::Scope;
use crate::cache::{Cache, Holdings, Served};

use super::call::{Answered, Call};
use super::errors::Error;
use super::limits::Price;
use super::memory::Memory;
use super::pipeline;
use super::shape::allowed_dims;
use super::wire::flag;

/// The cache's figures since the start, and of the last minute, quarter of an hour and hour.
///
/// A tenant's key without the scope `admin` is told what the tenant has, and nothing of the others.
/// With `ages=true` also how many entries have which age, for which every record is read; with `census=true` also the
/// namespaces and tags with most entries, as they were some seconds ago, counted or estimated.
#[utoipa::path(
    get, path = "/stats", tag = "operations",
    params(
        ("ages" = Option<bool>, Query, description = "Count entries by age, which reads every record"),
        ("census" = Option<bool>, Query, description = "Name the namespaces and tags with most entries"),
        ("model" = Option<String>, Query, description = "Of one model only"),
    ),
    responses((status = 200, description = "Entries, bytes, hit rates, evictions, memory, queue", body = Object))
)]
pub(super) async fn stats(call: Call, request: Request) -> Result<Answered, Error> {
    let with_ages = flag(request.uri().query(), "ages")?;
    let with_census = flag(request.uri().query(), "census")?;
    let shared = &call.service.shared;
    let models = pipeline::models(&call, None)?;
    if let Some(tenant) = call.caller.reach().tenant().filter(|_| !call.caller.may(Scope::Admin)) {
        let (tenant, account) = (tenant.to_owned(), call.caller.account().cloned());
        let own = call.blocking(move || {
            let Holdings { entries, bytes } = models.iter().map(|model| model.cache.holdings(&tenant)).sum();
            let mut own = json!({ "tenant": tenant, "entries": entries, "bytes": bytes });
            if let (Some(account), Some(own)) = (&account, own.as_object_mut()) {
                own.insert("used".to_owned(), json!(account.figures()));
                own.insert("limits".to_owned(), json!(account.limits()));
            }
            own
        });
        return Ok(pipeline::json(&own.await?).into());
    }
    let price = shared.config.price.clone();
    let figures = move |model: &Served| {
        let counted = model.cache.stats();
        let mut stats = serde_json::to_value(&counted).expect("the figures have string keys");
        if with_ages {
            stats["ages"] = json!(model.cache.ages());
        }
        if with_census {
            stats["census"] = json!(*model.cache.census());
        }
        if let Some(Price { per_million_tokens, currency }) = &price {
            let cost = |tokens: u64| tokens as f64 * per_million_tokens / 1e6;
            stats["money"] = json!({
                "currency": currency,
                "per_million_tokens": per_million_tokens,
                "spent": cost(counted.tokens - counted.tokens_saved),
                "saved": cost(counted.tokens_saved),
            });
        }
        stats
    };
    let gathering = call.blocking(move || {
        let mut all = models.iter().map(|model| (model.alias.to_string(), figures(model)));
        let (first, mut stats) = all.next().expect("there is a model");
        let rest: Map<String, Value> = all.collect();
        if !rest.is_empty() {
            let each = std::iter::once((first, stats.clone())).chain(rest).collect();
            stats["models"] = Value::Object(each);
        }
        stats
    });
    let mut stats = gathering.await?;
    if let Some(stats) = stats.as_object_mut() {
        let http = json!({
            "connections": shared.metrics.connections.get(),
            "requests_in_flight": shared.metrics.in_flight.get(),
            "request_memory_bytes": shared.request_memory.reserved_bytes(),
            "answer_memory_bytes": shared.answer_memory.reserved_bytes(),
            "latency": shared.latency.last_minute(),
            "waiting_memory_bytes": shared.waiting_memory.reserved_bytes(),
            "uptime_seconds": super::unix_seconds().saturating_sub(shared.started_unix),
        });
        stats.insert("http".to_owned(), http);
        let accounts = shared.config.access.accounts();
        if !accounts.is_empty() {
            let used = accounts.iter().map(|account| (account.tenant().to_owned(), json!(account.figures())));
            stats.insert("tenants".to_owned(), Value::Object(used.collect()));
        }
    }
    Ok(pipeline::json(&stats).into())
}

/// The default model, all models in brief, and the service's limits.
#[utoipa::path(
    get, path = "/info", tag = "operations",
    params(("model" = Option<String>, Query, description = "The model; the default one if not given")),
    responses((status = 200, description = "Model and limits", body = Object))
)]
pub(super) async fn info(call: Call, _request: Request) -> Result<Answered, Error> {
    let shared = &call.service.shared;
    let (model, config) = (pipeline::model(&call, None)?, &shared.config);
    let card = model.cache.card();
    let prompts: Vec<&String> = card.prompts.keys().collect();
    let brief = |served: &Served| {
        let card = served.cache.card();
        json!({
            "name": &*served.alias,
            "model_id": card.source,
            "fingerprint": card.version.to_string(),
            "dims": card.dims,
            "max_input_length": card.max_tokens,
            "loaded": served.cache.stats().weights.loaded,
        })
    };
    let models: Vec<_> = shared.catalogue.aliases().iter().map(brief).collect();
    let info = json!({
        "model_id": card.source,
        "served_model_name": &*model.alias,
        "model_sha": null,
        "model_dtype": card.precision,
        "model_type": { "embedding": { "pooling": card.pooling } },
        "fingerprint": card.version.to_string(),
        "dims": card.dims,
        "dimensions": allowed_dims(card),
        "normalize": card.normalize,
        "device": card.device.get().as_str(),
        "kernel": &*card.device.kernel(),
        "prompts": prompts,
        "default_prompt": card.default_prompt,
        "licence": card.licence,
        "max_input_length": card.max_tokens,
        "max_client_batch_size": config.batch_texts_max,
        "max_concurrent_requests": config.connections_max,
        "max_body_bytes": config.body_bytes_max,
        "auto_truncate": config.auto_truncate,
        "models": models,
        "version": env!("CARGO_PKG_VERSION"),
    });
    Ok(pipeline::json(&info).into())
}

/// Whether the program runs.
#[utoipa::path(
    get, path = "/health", tag = "operations",
    responses((status = 200, description = "It runs", body = Object))
)]
pub(super) async fn health(_call: Call, _request: Request) -> Result<Answered, Error> {
    Ok(pipeline::json(&json!({ "status": "alive" })).into())
}

/// Whether a request would be served.
#[utoipa::path(
    get, path = "/ready", tag = "operations",
    responses((status = 200, description = "It would", body = Object))
)]
pub(super) async fn ready(call: Call, _request: Request) -> Result<Answered, Error> {
    let models = call.service.shared.catalogue.models();
    let readiness = if call.service.is_draining() {
        Err("the service is shutting down".to_owned())
    } else {
        models.iter().try_for_each(|model| model.cache.readiness().map_err(|reason| named(&models, model, &reason)))
    };
    match readiness {
        // A store that can no longer write costs hits, not answers: it is said, and does not take the service out.
        Ok(()) => {
            let said = |trouble: fn(&Cache) -> Option<String>| {
                let troubles: Vec<String> =
                    models.iter().filter_map(|model| Some(named(&models, model, &trouble(&model.cache)?))).collect();
                if troubles.is_empty() { "ok".to_owned() } else { troubles.join("; ") }
            };
            let cache = if models.iter().all(|model| model.cache.is_enabled()) { "on" } else { "off" };
            let (store, model) = (said(Cache::store_trouble), said(Cache::model_trouble));
            Ok(pipeline::json(&json!({ "status": "ready", "store": store, "cache": cache, "model": model })).into())
        }
        Err(reason) => Err(Error::NotReady(reason)),
    }
}

/// What is to be said of a model, with its name where there are several.
fn named(models: &[Served], model: &Served, what: &str) -> String {
    if models.len() == 1 { what.to_owned() } else { format!("{}: {what}", model.alias) }
}

/// Everything that is counted, as Prometheus reads it.
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "OpenMetrics text", content_type = "application/openmetrics-text", body = String))
)]
pub(super) async fn metrics(call: Call, _request: Request) -> Result<Answered, Error> {
    let shared = &call.service.shared;
    let memories = [&shared.request_memory, &shared.answer_memory, &shared.waiting_memory];
    shared.metrics.set_memory(memories.map(Memory::reserved_bytes));
    let mut text = String::with_capacity(32 << 10);
    prometheus_client::encoding::text::encode(&mut text, &shared.registry).expect("memory can be written to");
    if shared.catalogue.models().len() > 1 {
        text = super::metrics::gathered(&text);
    }
    let mut response = Response::new(Body::from(text));
    let content_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    Ok(response.into())
}

/// This description.
#[utoipa::path(
    get, path = "/openapi.json", tag = "operations",
    responses((status = 200, description = "An OpenAPI document", body = Object))
)]
pub(super) async fn openapi(call: Call, _request: Request) -> Result<Answered, Error> {
    let mut response = Response::new(Body::from(call.service.shared.openapi.clone()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response.into())
}

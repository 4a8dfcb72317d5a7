//! What operators and their tools ask: `/stats`, `/info`, `/health`, `/ready`, `/metrics`, `/openapi.json`.

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::json;

use super::call::{Answered, Call};
use super::errors::Error;
use super::pipeline;
use super::shape::allowed_dims;
use super::wire::flag;

/// The cache's figures since the start, and of the last minute, quarter of an hour and hour.
///
/// With `ages=true` also how many entries have which age, for which every record is read.
#[utoipa::path(
    get, path = "/stats", tag = "operations",
    params(("ages" = Option<bool>, Query, description = "Count entries by age, which reads every record")),
    responses((status = 200, description = "Entries, bytes, hit rates, evictions, memory, queue", body = Object))
)]
pub(super) async fn stats(call: Call, request: Request) -> Result<Answered, Error> {
    let with_ages = flag(request.uri().query(), "ages")?;
    let (stats, ages) = call.blocking(move |cache| (cache.stats(), with_ages.then(|| cache.ages()))).await?;
    let shared = &call.service.shared;
    let mut stats = serde_json::to_value(stats).expect("the figures have string keys");
    if let Some(stats) = stats.as_object_mut() {
        if let Some(ages) = ages {
            stats.insert("ages".to_owned(), json!(ages));
        }
        let http = json!({
            "connections": shared.metrics.connections.get(),
            "requests_in_flight": shared.metrics.in_flight.get(),
            "request_memory_bytes": shared.request_memory.reserved_bytes(),
            "answer_memory_bytes": shared.answer_memory.reserved_bytes(),
            "uptime_seconds": super::unix_seconds().saturating_sub(shared.started_unix),
        });
        stats.insert("http".to_owned(), http);
    }
    Ok(pipeline::json(&stats).into())
}

/// The served model and the service's limits.
#[utoipa::path(
    get, path = "/info", tag = "operations",
    responses((status = 200, description = "Model and limits", body = Object))
)]
pub(super) async fn info(call: Call, _request: Request) -> Result<Answered, Error> {
    let shared = &call.service.shared;
    let (card, config) = (shared.cache.card(), &shared.config);
    let prompts: Vec<&String> = card.prompts.keys().collect();
    let info = json!({
        "model_id": card.source,
        "served_model_name": card.name,
        "model_sha": null,
        "model_dtype": card.precision,
        "model_type": { "embedding": { "pooling": card.pooling } },
        "fingerprint": card.version.to_string(),
        "dims": card.dims,
        "dimensions": allowed_dims(card),
        "normalize": card.normalize,
        "device": card.device.as_str(),
        "prompts": prompts,
        "default_prompt": card.default_prompt,
        "licence": card.licence,
        "max_input_length": card.max_tokens,
        "max_client_batch_size": config.batch_texts_max,
        "max_concurrent_requests": config.connections_max,
        "max_body_bytes": config.body_bytes_max,
        "auto_truncate": config.auto_truncate,
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
    let readiness = if call.service.is_draining() {
        Err("the service is shutting down".to_owned())
    } else {
        call.service.shared.cache.readiness()
    };
    match readiness {
        // A store that can no longer write costs hits, not answers: it is said, and does not take the service out.
        Ok(()) => {
            let store = call.service.shared.cache.store_trouble();
            let cache = if call.service.shared.cache.is_enabled() { "on" } else { "off" };
            let store = store.as_deref().unwrap_or("ok");
            Ok(pipeline::json(&json!({ "status": "ready", "store": store, "cache": cache })).into())
        }
        Err(reason) => Err(Error::NotReady(reason)),
    }
}

/// Everything that is counted, as Prometheus reads it.
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "OpenMetrics text", content_type = "application/openmetrics-text", body = String))
)]
pub(super) async fn metrics(call: Call, _request: Request) -> Result<Answered, Error> {
    let shared = &call.service.shared;
    shared.metrics.set_memory(shared.request_memory.reserved_bytes(), shared.answer_memory.reserved_bytes());
    let mut text = String::with_capacity(32 << 10);
    prometheus_client::encoding::text::encode(&mut text, &shared.registry).expect("memory can be written to");
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

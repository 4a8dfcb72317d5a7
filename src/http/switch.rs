//! `GET` and `PUT /admin/cache`: whether the cache is switched on. Off, everything is computed and nothing is read or
//! stored; what is stored stays.

use axum::extract::Request;
use serde::{Deserialize, Serialize};

use super::accept;
use super::body;
use super::call::{Answered, Audit, Call};
use super::errors::Error;
use super::pipeline;

/// Whether the cache is on.
#[derive(Clone, Copy, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CacheSwitch {
    /// On: read and stored. Off: everything is computed.
    enabled: bool,
}

/// Says whether the cache is switched on.
#[utoipa::path(
    get, path = "/admin/cache", tag = "operations",
    responses((status = 200, description = "Whether it is on", body = CacheSwitch))
)]
pub(super) async fn show(call: Call, _request: Request) -> Result<Answered, Error> {
    Ok(pipeline::json(&CacheSwitch { enabled: call.service.shared.catalogue.default().cache.is_enabled() }).into())
}

/// Switches the cache on or off.
#[utoipa::path(
    put, path = "/admin/cache", tag = "operations",
    request_body = CacheSwitch,
    responses((status = 200, description = "Whether it is on now", body = CacheSwitch))
)]
pub(super) async fn set(call: Call, request: Request) -> Result<Answered, Error> {
    let (parts, body) = request.into_parts();
    body::expect_json(&parts.headers)?;
    accept::json(&parts.headers)?;
    let received = body::read(&call, &parts.headers, body).await?;
    let asked: CacheSwitch = body::parse(&received.bytes)?;
    for model in call.service.shared.catalogue.models() {
        model.cache.set_enabled(asked.enabled);
    }
    let action = if asked.enabled { "switch on" } else { "switch off" };
    let answered = Answered::from(pipeline::json(&asked));
    Ok(answered.audited(Audit { action, to: "cache".to_owned(), matched: 0, changed: 0 }))
}

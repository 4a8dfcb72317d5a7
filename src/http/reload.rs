//! `POST /admin/reload`: the configuration read again while requests run, as on SIGHUP.

use std::fmt;
use std::sync::Arc;

use axum::extract::Request;
use serde::Serialize;

use super::accept;
use super::call::{Answered, Audit, Call};
use super::errors::Error;
use super::pipeline;

/// Reads the configuration again and takes over what can be taken over while requests run; all of it, or nothing and why.
#[derive(Clone)]
pub struct Reload(Arc<Reloading>);

type Reloading = dyn Fn() -> Result<Reloaded, String> + Send + Sync;

/// What has changed in the configuration since it was last read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Reloaded {
    /// Settings that are in effect now.
    pub applied: Vec<String>,
    /// Settings that a restart is needed for.
    pub restart_needed: Vec<String>,
}

impl Reload {
    /// How that is done. It may block for a file.
    #[must_use]
    pub fn new(reloading: impl Fn() -> Result<Reloaded, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(reloading))
    }

    /// Does it.
    ///
    /// # Errors
    /// When the configuration cannot be read or makes no sense; then nothing has changed.
    pub fn run(&self) -> Result<Reloaded, String> {
        (self.0)()
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reload")
    }
}

/// Reads the configuration again.
///
/// Policies, rules for events, keys, tenants' limits and the certificate take effect at once; the answer names what else has changed and needs a restart. Requests that run
/// end under what they began with. A configuration that makes no sense changes nothing.
#[utoipa::path(
    post, path = "/admin/reload", tag = "operations",
    responses((status = 200, description = "What has changed", body = Reloaded))
)]
pub(super) async fn reload(call: Call, request: Request) -> Result<Answered, Error> {
    accept::json(request.headers())?;
    let Some(reload) = call.service.shared.config.reload.clone() else {
        return Err(Error::invalid(
            "configuration",
            "this service was put together by a program, not from a configuration",
        ));
    };
    let reloaded = call.blocking(move || reload.run()).await?;
    let reloaded = reloaded.map_err(|problem| Error::invalid("configuration", problem))?;
    let to = format!("{:?}", reloaded.applied);
    let answered = Answered::from(pipeline::json(&reloaded));
    let changed = reloaded.applied.len();
    Ok(answered.audited(Audit { action: "reload", to, matched: changed, changed }))
}

//! What a tenant may have, where requests meet it: refused with 429 past a limit, and told how much is left.
//!
//! The headers are those of the IETF's draft "RateLimit header fields for HTTP" (draft-ietf-httpapi-ratelimit-headers-10):
//!
//! ```text
//! RateLimit-Policy: "requests";q=50;w=1, "tokens";q=10000;w=1
//! RateLimit: "requests";r=49;t=1, "tokens";r=10000;t=0
//! ```

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

use crate::access::{Account, Adding, Beginning};
use crate::cache::{self, Holdings, Inputs, Mode, Request};

use super::call::Call;
use super::errors::Error;
use super::headers::Summary;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");

/// What a text's tokens are taken for when nobody has counted them: a token for so many bytes.
const BYTES_A_TOKEN: usize = 4;

/// Says what the tenant's rates are and what is left of them.
pub(super) fn describe(headers: &mut HeaderMap, account: &Account, now: Duration) {
    let (mut policy, mut left) = (String::new(), String::new());
    for rate in account.left(now) {
        let comma = if policy.is_empty() { "" } else { ", " };
        write!(policy, "{comma}\"{}\";q={};w=1", rate.what, rate.per_second).expect("memory can be written to");
        let seconds = rate.full_in.as_millis().div_ceil(1000);
        write!(left, "{comma}\"{}\";r={};t={seconds}", rate.what, rate.now).expect("memory can be written to");
    }
    if let (false, Ok(policy), Ok(left)) =
        (policy.is_empty(), HeaderValue::try_from(policy), HeaderValue::try_from(left))
    {
        headers.insert(POLICY, policy);
        headers.insert(LEFT, left);
    }
}

/// What computing for a tenant costs it: known when it is answered, estimated when it never is.
pub(super) struct Bill {
    account: Arc<Account>,
    began: tokio::time::Instant,
    /// What is charged when nobody settles it: the deadline passed or the client left, and the work may have been done.
    tokens: u64,
}

impl Bill {
    /// Opens one, if the request is a tenant's.
    pub(super) fn open(call: &Call, inputs: Inputs<'_>) -> Option<Self> {
        let account = call.caller.account()?;
        let tokens: usize = match inputs {
            Inputs::Texts(texts) => texts.iter().map(|text| text.len() / BYTES_A_TOKEN + 1).sum(),
            Inputs::Tokens(sequences) => sequences.iter().map(Vec::len).sum(),
        };
        Some(Self { account: Arc::clone(account), began: call.service.shared.began, tokens: tokens as u64 })
    }

    /// Settles it for an answer.
    pub(super) fn settle(mut self, summary: &Summary) {
        self.account.answered(summary.items as u64, summary.hits as u64, summary.tokens);
        self.tokens = summary.tokens.saturating_sub(summary.cached_tokens);
    }

    /// Settles it for so many tokens.
    pub(super) fn settle_tokens(mut self, tokens: u64) {
        self.tokens = tokens;
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        self.account.charge(self.tokens, self.began.elapsed());
    }
}

/// Whether the tenant may have anything computed now.
///
/// # Errors
/// When it has to pay for what it had before.
pub(super) fn may_compute(call: &Call) -> Result<(), Error> {
    let account = call.caller.account();
    account.map_or(Ok(()), |account| account.check_tokens(call.service.shared.began.elapsed()).map_err(Error::Quota))
}

/// Room for what a request may have computed and stored. Where there is none, it is changed to one that is answered from the cache alone:
/// what a tenant has it may go on using. [`Room::explain`] says why there is no answer then.
///
/// # Errors
/// When there is no room, and the request wants no answer of the cache.
pub(super) async fn room(call: &Call, request: &mut Request<'_>) -> Result<Room, Error> {
    let Some(account) = call.caller.account().filter(|_| request.mode != Mode::Only) else {
        return Ok(Room::Enough(Held::default()));
    };
    if request.namespace.tenant() != account.tenant() {
        // What is pinned is never evicted: in a namespace of others only policies say so.
        request.pinned = None;
    }
    if let Err(quota) = may_compute(call) {
        return from_cache_alone(request, quota);
    }
    let stores = matches!(request.mode, Mode::Use | Mode::Refresh) && request.namespace.tenant() == account.tenant();
    if !stores {
        return Ok(Room::Enough(Held::default()));
    }
    let mut held = Held::default();
    let (models, tenant) = (call.service.shared.catalogue.models(), account.tenant().to_owned());
    if account.limits().namespaces_max.is_some()
        && !models.iter().any(|model| model.cache.has_namespace(&request.namespace))
    {
        let beginning = account.beginning(&request.namespace);
        let most = models.iter().map(|model| model.cache.namespaces_of(&tenant)).max().unwrap_or(0);
        let checked = beginning.check(most);
        held.beginning = Some(beginning);
        if let Err(exceeded) = checked {
            return from_cache_alone(request, Error::Quota(exceeded));
        }
    }
    if !account.bounds_entries() {
        return Ok(Room::Enough(held));
    }
    let adding = account.adding(request.inputs.len() as u64);
    let entry_bytes = models.iter().map(|model| model.cache.entry_bytes()).max().unwrap_or(0);
    let counting = call.blocking(move || models.iter().map(|model| model.cache.holdings(&tenant)).sum());
    let Holdings { entries, bytes } = counting.await?;
    match adding.check(entry_bytes, entries, bytes) {
        Ok(()) => Ok(Room::Enough(Held { adding: Some(adding), ..held })),
        Err(exceeded) => from_cache_alone(request, Error::Quota(exceeded)),
    }
}

fn from_cache_alone(request: &mut Request<'_>, quota: Error) -> Result<Room, Error> {
    if request.mode != Mode::Use {
        return Err(quota);
    }
    request.mode = Mode::Only;
    Ok(Room::None(quota))
}

/// What a request may come to add.
#[derive(Default)]
#[expect(dead_code, reason = "held, not read")]
pub(super) struct Held {
    adding: Option<Adding>,
    beginning: Option<Beginning>,
}

/// Whether there is room for what a request may have computed and stored.
pub(super) enum Room {
    /// There is, and it is held as long as this is.
    Enough(#[expect(dead_code, reason = "held, not read")] Held),
    /// There is not.
    None(Error),
}

impl Room {
    /// What an error of the cache means: a text that is not cached had no room.
    pub(super) fn explain(self, error: cache::Error) -> Error {
        match (self, error) {
            (Self::None(quota), cache::Error::Missing { .. }) => quota,
            (_, error) => error.into(),
        }
    }
}

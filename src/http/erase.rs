//! `POST /erase`: entries, and every trace of them, are made to go; the answer is the receipt. `GET /erasures/{id}`: a receipt
//! again, and whether anything of what it names is there.

use axum::extract::Request;
use serde::{Deserialize, Serialize};

use crate::cache::{self, Erasure, ErasureError, KnownExport, Named, Receipt, is_id};

use super::accept;
use super::body;
use super::call::{Answered, Audit, Call};
use super::errors::Error;
use super::invalidate::REASON_CHARS_MAX;
use super::lookup::parsed_keys;
use super::pipeline;
use super::wire::{Text, Texts, check_tags};

/// Which entries, by exactly one of `keys`, `inputs`, `tags` and `namespace`; `namespace` may also say whose `inputs` are meant.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EraseRequest<'a> {
    /// Entries under these keys, in hexadecimal.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    keys: Option<Texts<'a>>,
    /// Entries of these texts, with whatever prompt, in `namespace` (the default one if it is not given).
    #[serde(borrow)]
    #[schema(value_type = Object)]
    inputs: Option<Texts<'a>>,
    /// Entries with one of these tags.
    tags: Option<Vec<String>>,
    /// Entries of this namespace; the default one's name is empty.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    namespace: Option<Text<'a>>,
    /// Of this model only: its name or fingerprint. Without it, of every model.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    model: Option<Text<'a>>,
    /// Whether other spellings of the same texts, which have the same vector, are erased too.
    copies: Option<bool>,
    /// Who asks, for the receipt: at most 200 characters.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, max_length = 200)]
    by: Option<Text<'a>>,
    /// Why, for the receipt and the log: at most 200 characters.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, max_length = 200)]
    reason: Option<Text<'a>>,
}

/// A receipt, and what is there now.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct ErasureAnswer {
    /// The latest receipt of the erasure.
    #[schema(value_type = ErasureReceipt)]
    receipt: Receipt,
    /// Whether the receipt and the file of its keys are as they were written.
    intact: bool,
    /// Entries that are there under keys which were erased: those that were asked for again since.
    present: usize,
}

/// The receipt of an erasure, as JSON; `src/cache/erasure/receipt.rs` describes each field.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct ErasureReceipt {
    /// What this is, and of which version.
    format: String,
    /// The erasure's name; the same on every machine.
    id: String,
    /// When it was asked for, in seconds since 1970.
    asked: u64,
    /// When it was completed.
    completed: u64,
    /// Who asked.
    by: Option<String>,
    /// Why.
    reason: Option<String>,
    /// What was asked for, veiled.
    #[schema(value_type = Object)]
    selector: cache::Selected,
    /// Fingerprints of the models that were looked at.
    models: Vec<String>,
    /// How many keys, and a digest.
    #[schema(value_type = Object)]
    keys: cache::ErasedKeys,
    /// What was erased, by place.
    #[schema(value_type = Object)]
    erased: cache::Places,
    /// The shared tier; `null` where there is none.
    #[schema(value_type = Option<Object>)]
    tier: Option<cache::TierState>,
    /// Exports that may hold what was erased.
    #[schema(value_type = Vec<Object>)]
    exports: Vec<KnownExport>,
    /// Entries with the same vector that are still there.
    same_vector: u64,
    /// What is out of reach.
    not_erased: Vec<String>,
    /// What is still to be done.
    pending: Vec<String>,
    /// Whether all of it is on the medium.
    synced: bool,
    /// Whether another process had begun it.
    resumed: bool,
    /// The digest of the receipt before.
    previous: Option<String>,
    /// BLAKE3 of the receipt with an empty digest.
    digest: String,
}

/// Erases entries and every trace of them, and answers with a receipt.
///
/// Answered when it is done, on the medium. What is pending is named in the receipt, and tried until it is done. The operator's alone: a
/// tag and a key are erased whosever they are, and a tenant's texts and namespace by the name `TENANT/NAME`.
#[utoipa::path(
    post, path = "/erase", tag = "cache",
    request_body = EraseRequest<'_>,
    responses((status = 200, description = "The receipt", body = ErasureReceipt))
)]
pub(super) async fn erase(call: Call, request: Request) -> Result<Answered, Error> {
    let (parts, body) = request.into_parts();
    body::expect_json(&parts.headers)?;
    accept::json(&parts.headers)?;
    let received = body::read(&call, &parts.headers, body).await?;
    let asked: EraseRequest<'_> = body::parse(&received.bytes)?;
    let erasure = asked.wanted(&call)?;
    drop(asked);
    let catalogue = call.service.shared.catalogue.clone();
    let receipt = call.blocking(move || catalogue.erase(&erasure)).await??;
    let (matched, changed) = (receipt.keys.count, receipt.erased.entries);
    let to = format!("{}, receipt {}", receipt.selector.kind, receipt.id);
    let answered = Answered::of(pipeline::json(&receipt), matched, matched);
    Ok(answered.audited(Audit { action: "erase", to, matched, changed }))
}

/// An erasure's receipt, and whether anything of what it names is there.
#[utoipa::path(
    get, path = "/erasures/{id}", tag = "cache",
    params(("id" = String, Path, description = "The erasure's name")),
    responses((status = 200, description = "The receipt, and what is there now", body = ErasureAnswer))
)]
pub(super) async fn erasure(call: Call, request: Request) -> Result<Answered, Error> {
    let id = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    if !is_id(&id) {
        return Err(Error::BadRequest { name: "id", message: "no erasure has such a name".to_owned() });
    }
    let catalogue = call.service.shared.catalogue.clone();
    let asked = id.clone();
    let looking = call.blocking(move || {
        let ledger = catalogue.eraser()?.ledger();
        let Some(receipt) = ledger.receipt(&asked).map_err(ErasureError::Ledger)? else { return Ok(None) };
        let veiled = ledger.keys_of(&receipt).ok();
        let is_there = |key: &crate::domain::Key| veiled.as_ref().is_some_and(|veiled| veiled.has(key));
        let keys = catalogue.models().into_iter().flat_map(|model| model.cache.all_keys());
        let present = keys.filter(is_there).count();
        Ok::<_, cache::Error>(Some(ErasureAnswer { intact: receipt.is_intact() && veiled.is_some(), receipt, present }))
    });
    let answer = looking.await??.ok_or(Error::NoErasure { id })?;
    Ok(pipeline::json(&answer).into())
}

impl EraseRequest<'_> {
    fn wanted(&self, call: &Call) -> Result<Erasure, Error> {
        let Self { keys, inputs, tags, namespace: name, model, copies, by, reason } = self;
        let texts_max = call.service.shared.config.batch_texts_max;
        let name = name.as_ref().map(|name| call.namespace(Some(&name.0))).transpose()?;
        let named = match (keys, inputs, tags, name) {
            (Some(keys), None, None, None) => {
                keys.check("keys", texts_max)?;
                Named::Keys(parsed_keys(keys)?)
            }
            (None, Some(texts), None, name) => {
                texts.check("inputs", texts_max)?;
                Named::Texts(texts.texts.iter().map(ToString::to_string).collect(), name.unwrap_or_default())
            }
            (None, None, Some(tags), None) => {
                if tags.is_empty() {
                    return Err(Error::invalid("tags", "at least one tag is needed"));
                }
                check_tags(tags)?;
                Named::Tags(tags.clone())
            }
            (None, None, None, Some(name)) => Named::Namespace(name),
            (None, None, None, None) => return Err(Error::Cache(cache::Error::EmptySelector)),
            _ => return Err(Error::invalid("tags", "one of keys, inputs, tags and namespace is wanted, not several")),
        };
        let model = match model.as_ref().map(|model| &*model.0).or(call.model.as_deref()) {
            None => None,
            Some(model) => Some(pipeline::model(call, Some(model))?.cache.card().version),
        };
        let words = |field: &'static str, text: &Option<Text<'_>>| {
            let text = text.as_ref().map(|text| text.0.to_string());
            match text.as_ref().map(|text| text.chars().count()) {
                Some(count) if count > REASON_CHARS_MAX => {
                    Err(Error::invalid(field, format!("at most {REASON_CHARS_MAX} characters are kept")))
                }
                _ => Ok(text),
            }
        };
        let (by, reason) = (words("by", by)?, words("reason", reason)?);
        Ok(Erasure { named, model, copies: copies.unwrap_or(false), by, reason })
    }
}

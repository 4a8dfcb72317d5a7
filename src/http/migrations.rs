//! `/admin/migrations`, `/admin/aliases/{alias}` and `/admin/models/{model}`: one model taking over from another while both
//! are served.

use axum::RequestExt;
use axum::extract::{Path, Request};
use serde::{Deserialize, Serialize};

use crate::cache::{self, Embedded, Inputs, Progress};
use crate::domain::Lane;

use super::accept;
use super::body;
use super::call::{Answered, Audit, Call};
use super::errors::Error;
use super::pipeline;
use super::wire::{Direction, Text, Texts};

/// Which models.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MigrationRequest {
    /// An alias: what is asked of the model behind it is also embedded under the other.
    #[schema(min_length = 1)]
    from: String,
    /// The other model, by its own name, source or fingerprint.
    #[schema(min_length = 1)]
    to: String,
}

/// How far a migration is.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct MigrationState {
    /// The alias it was begun for.
    alias: String,
    #[serde(flatten)]
    #[schema(value_type = Object)]
    progress: Progress,
}

/// The migrations that run.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct MigrationsAnswer {
    /// By their aliases.
    migrations: Vec<MigrationState>,
}

/// Texts to be embedded under the other model.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MigrationTexts<'a> {
    /// Texts.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    inputs: Texts<'a>,
    /// Whose part of the cache.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    namespace: Option<Text<'a>>,
    /// Which of the models' prompts to put before each text.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    prompt_name: Option<Text<'a>>,
    /// Which end of a text that is too long is cut off; the right one if not given.
    truncation_direction: Option<Direction>,
}

/// What came of texts.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct MigratedTexts {
    /// How many there were.
    texts: usize,
    /// Those that the other model had already.
    cached: usize,
    /// Those that it has now.
    computed: usize,
    /// Those that it could not embed.
    failed: usize,
}

/// Which model answers an alias.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AliasRequest {
    /// A served model, by its own name, source or fingerprint.
    #[schema(min_length = 1)]
    model: String,
}

/// Which model answers an alias.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct AliasAnswer {
    /// What clients ask for.
    alias: String,
    /// The model's own name.
    model: String,
    /// Its fingerprint.
    fingerprint: String,
}

/// What became of a model.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct DeletedModel {
    /// `true`: it is served no more, and its entries are gone from the disk.
    deleted: bool,
    /// Bytes of disk that its space had.
    bytes: u64,
}

/// Says how far migrations are.
#[utoipa::path(
    get, path = "/admin/migrations", tag = "operations",
    responses((status = 200, description = "Those that run", body = MigrationsAnswer))
)]
pub(super) async fn list(call: Call, _request: Request) -> Result<Answered, Error> {
    let migrations = call.service.shared.catalogue.migrations();
    let looking = call.blocking(move || {
        let states = migrations
            .iter()
            .map(|(alias, migration)| MigrationState { alias: alias.to_string(), progress: migration.progress() });
        states.collect()
    });
    Ok(pipeline::json(&MigrationsAnswer { migrations: looking.await? }).into())
}

/// Begins to embed under one model what is asked of another.
///
/// One that runs already is answered as it is.
#[utoipa::path(
    post, path = "/admin/migrations", tag = "operations",
    request_body = MigrationRequest,
    responses((status = 200, description = "It runs", body = MigrationState))
)]
pub(super) async fn start(call: Call, request: Request) -> Result<Answered, Error> {
    let received = json_body(&call, request).await?;
    let asked: MigrationRequest = body::parse(&received.bytes)?;
    let migration = call.service.shared.catalogue.migrate(&asked.from, &asked.to)?;
    let to = format!("{:?} to {:?}", asked.from, asked.to);
    let progress = call.blocking(move || migration.progress()).await?;
    let answered = Answered::from(pipeline::json(&MigrationState { alias: asked.from, progress }));
    Ok(answered.audited(Audit { action: "migrate", to, matched: 0, changed: 0 }))
}

/// Ends a migration. What has been embedded stays.
#[utoipa::path(
    delete, path = "/admin/migrations/{alias}", tag = "operations",
    params(("alias" = String, Path, description = "The alias it was begun for")),
    responses((status = 200, description = "Those that still run", body = MigrationsAnswer))
)]
pub(super) async fn stop(call: Call, mut request: Request) -> Result<Answered, Error> {
    let alias = named(&mut request).await?;
    call.service.shared.catalogue.stop_migration(&alias)?;
    let answered = list(call, request).await?;
    Ok(answered.audited(Audit { action: "stop migrating", to: format!("{alias:?}"), matched: 0, changed: 0 }))
}

/// Embeds texts under the model that is being filled, with the tags, payload and end of life that they have under the other.
#[utoipa::path(
    post, path = "/admin/migrations/{alias}/texts", tag = "operations",
    params(("alias" = String, Path, description = "The alias the migration was begun for")),
    request_body = MigrationTexts<'_>,
    responses((status = 200, description = "All were tried", body = MigratedTexts))
)]
pub(super) async fn texts(call: Call, mut request: Request) -> Result<Answered, Error> {
    let alias = named(&mut request).await?;
    let received = json_body(&call, request).await?;
    let asked: MigrationTexts<'_> = body::parse(&received.bytes)?;
    asked.inputs.check("inputs", call.service.shared.config.batch_texts_max)?;
    let migration = call.service.shared.catalogue.migration(&alias)?;
    let request = cache::Request {
        namespace: call.namespace(asked.namespace.as_ref().map(|name| &*name.0))?,
        prompt_name: asked.prompt_name.as_ref().map(|name| &*name.0),
        direction: asked.truncation_direction.map(Into::into),
        lane: call.lane.unwrap_or(Lane::WarmUp),
        ..cache::Request::new(Inputs::Texts(&asked.inputs.texts))
    };
    let Embedded { texts, cached, computed, failed } = call.in_time(migration.embed(&request)).await??;
    Ok(Answered::of(pipeline::json(&MigratedTexts { texts, cached, computed, failed }), texts, cached))
}

/// Says which model answers an alias.
#[utoipa::path(
    get, path = "/admin/aliases/{alias}", tag = "operations",
    params(("alias" = String, Path, description = "What clients ask for")),
    responses((status = 200, description = "The model", body = AliasAnswer))
)]
pub(super) async fn alias(call: Call, mut request: Request) -> Result<Answered, Error> {
    let alias = named(&mut request).await?;
    Ok(pipeline::json(&stands_for(&call, &alias)?).into())
}

/// Has an alias answered by a model from now on. Kept over a restart.
#[utoipa::path(
    put, path = "/admin/aliases/{alias}", tag = "operations",
    params(("alias" = String, Path, description = "What clients ask for")),
    request_body = AliasRequest,
    responses((status = 200, description = "The model that answers now", body = AliasAnswer))
)]
pub(super) async fn switch(call: Call, mut request: Request) -> Result<Answered, Error> {
    let alias = named(&mut request).await?;
    let received = json_body(&call, request).await?;
    let AliasRequest { model } = body::parse(&received.bytes)?;
    let to = format!("{alias:?} to {model:?}");
    let (catalogue, of) = (call.service.shared.catalogue.clone(), alias.clone());
    call.blocking(move || catalogue.switch(&of, &model)).await??;
    let answered = Answered::from(pipeline::json(&stands_for(&call, &alias)?));
    Ok(answered.audited(Audit { action: "switch alias", to, matched: 0, changed: 0 }))
}

/// Removes a model that no alias and no migration uses, with all its entries.
#[utoipa::path(
    delete, path = "/admin/models/{model}", tag = "operations",
    params(("model" = String, Path, description = "Its own name, source or fingerprint")),
    responses((status = 200, description = "It is gone", body = DeletedModel))
)]
pub(super) async fn delete(call: Call, mut request: Request) -> Result<Answered, Error> {
    let model = named(&mut request).await?;
    let (catalogue, of) = (call.service.shared.catalogue.clone(), model.clone());
    // Begun, it is finished, whoever waits.
    let deleting = tokio::spawn(async move { catalogue.delete(&of).await });
    let bytes = call.in_time(deleting).await?.map_err(|_| Error::Panicked)??;
    let answered = Answered::from(pipeline::json(&DeletedModel { deleted: true, bytes }));
    Ok(answered.audited(Audit { action: "delete model", to: format!("{model:?}"), matched: 0, changed: 0 }))
}

fn stands_for(call: &Call, alias: &str) -> Result<AliasAnswer, Error> {
    let served = call.service.shared.catalogue.of_alias(alias)?;
    let card = served.cache.card();
    Ok(AliasAnswer { alias: alias.to_owned(), model: card.name.clone(), fingerprint: card.version.to_string() })
}

/// What the address names between its slashes.
async fn named(request: &mut Request) -> Result<String, Error> {
    let Path(name) = request
        .extract_parts::<Path<String>>()
        .await
        .map_err(|error| Error::BadRequest { name: "address", message: error.body_text() })?;
    Ok(name)
}

async fn json_body(call: &Call, request: Request) -> Result<body::Received, Error> {
    let (parts, body) = request.into_parts();
    body::expect_json(&parts.headers)?;
    accept::json(&parts.headers)?;
    body::read(call, &parts.headers, body).await
}

//! `POST /v1/embeddings` and `GET /v1/models`: OpenAI's dialect, which tolerates nulls and unknown fields.

use axum::extract::Request;
use serde::Deserialize;
use serde_json::json;

use crate::cache::{self, Inputs, Served};

use super::accept;
use super::body;
use super::call::{Answered, Call};
use super::encode;
use super::errors::Error;
use super::limits::TokenInputs;
use super::numbers;
use super::pipeline::{self, Embedded, Wanted};
use super::shape::Shape;
use super::wire::{Object, OpenAiInput, Payloads, Reuse, Text, check_count, check_tags, payload, ttl};

/// Texts to embed, as OpenAI's clients ask.
#[derive(Deserialize, utoipa::ToSchema)]
pub(super) struct EmbeddingsRequest<'a> {
    /// A text, or a list of texts; token ids only where the service is set to take them.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    input: OpenAiInput<'a>,
    /// One of the served models, the default one if not given.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    model: Option<Text<'a>>,
    /// `float` for numbers (the default), `base64` for little-endian f32 in base64.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    encoding_format: Option<Text<'a>>,
    /// Cut vectors to this length, if the model was trained for that.
    dimensions: Option<usize>,
    /// Kept with newly stored entries.
    #[serde(default)]
    tags: Option<Vec<String>>,
    /// Whose part of the cache to use.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    namespace: Option<Text<'a>>,
    /// Seconds that newly stored entries live; as the server's policies say if not given.
    ttl: Option<u64>,
    /// JSON kept with newly stored entries: one value for all, or a list with one for each input.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    payload: Option<Payloads<'a>>,
    /// Whether newly stored entries stay when room is needed; as the server's policies say if not given.
    pinned: Option<bool>,
    /// When a near-duplicate's vector will do.
    #[schema(value_type = Option<Reuse>)]
    reuse: Option<Object<Reuse>>,
    /// Which of the model's prompts to put before each text.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    prompt_name: Option<Text<'a>>,
    /// Whether texts that are too long are cut; the server's `auto_truncate` if not given.
    truncate: Option<bool>,
}

/// One vector.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what is written by hand")]
pub(super) struct EmbeddingObject {
    /// `embedding`.
    object: String,
    /// Which input it is of.
    index: usize,
    /// Numbers, or base64 of little-endian f32.
    #[schema(value_type = Object)]
    embedding: (),
}

/// How many tokens there were.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what is written by hand")]
pub(super) struct Usage {
    /// Of all inputs, cached or not.
    prompt_tokens: u64,
    /// The same.
    total_tokens: u64,
    /// Those that cost nothing.
    cached_tokens: u64,
}

/// Vectors, as OpenAI's clients read them.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what is written by hand")]
pub(super) struct EmbeddingsAnswer {
    /// `list`.
    object: String,
    /// In the order of the inputs.
    data: Vec<EmbeddingObject>,
    /// The name of the model that answered.
    model: String,
    /// How many tokens there were.
    usage: Usage,
}

/// A served model.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what is written by hand")]
pub(super) struct ModelObject {
    /// Its name.
    id: String,
    /// `model`.
    object: String,
    /// When it began to be served, in seconds since 1970.
    created: u64,
    /// Where it is from.
    owned_by: String,
}

/// The served models.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what is written by hand")]
pub(super) struct ModelsAnswer {
    /// `list`.
    object: String,
    /// The models.
    data: Vec<ModelObject>,
}

#[derive(Clone, Copy)]
enum Encoding {
    Float,
    Base64,
}

/// Embeds texts, as OpenAI does.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "openai",
    request_body = EmbeddingsRequest<'_>,
    responses((status = 200, description = "One vector an input, in order", body = EmbeddingsAnswer))
)]
pub(super) async fn embeddings(call: Call, request: Request) -> Result<Answered, Error> {
    let (parts, body) = request.into_parts();
    body::expect_json(&parts.headers)?;
    accept::json(&parts.headers)?;
    let received = body::read(&call, &parts.headers, body).await?;
    let asked: EmbeddingsRequest<'_> = body::parse(&received.bytes)?;
    let shared = &call.service.shared;
    let encoding = match asked.encoding_format.as_ref().map(|format| &*format.0) {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(_) => return Err(Error::invalid("encoding_format", "float or base64 is needed")),
    };
    let inputs = match &asked.input {
        OpenAiInput::Texts(texts) => {
            texts.check("input", shared.config.batch_texts_max)?;
            Inputs::Texts(&texts.texts)
        }
        OpenAiInput::Tokens { .. } if shared.config.token_inputs == TokenInputs::Reject => {
            return Err(Error::TokenInputs);
        }
        OpenAiInput::Tokens { sequences, count } => {
            check_count("input", *count, shared.config.batch_texts_max)?;
            if let Some(index) = sequences.iter().position(Vec::is_empty) {
                return Err(Error::invalid(format!("input[{index}]"), "there are no token ids in it"));
            }
            Inputs::Tokens(sequences)
        }
    };
    let embedded = pipeline::embed(&call, asked.wanted(&call, inputs)?).await?;
    let body = written(&embedded, encoding)?;
    Ok(embedded.reply(&call, "application/json", body))
}

impl EmbeddingsRequest<'_> {
    fn wanted<'r>(&'r self, call: &Call, inputs: Inputs<'r>) -> Result<Wanted<'r>, Error> {
        let shared = &call.service.shared;
        let model = pipeline::model(call, self.model.as_ref().map(|model| &*model.0))?;
        let tags = self.tags.as_deref().unwrap_or_default();
        check_tags(tags)?;
        Ok(Wanted {
            model,
            request: cache::Request {
                namespace: call.namespace(self.namespace.as_ref().map(|name| &*name.0))?,
                prompt_name: self.prompt_name.as_ref().map(|name| &*name.0),
                truncate: self.truncate.unwrap_or(shared.config.auto_truncate),
                ttl: ttl(self.ttl)?,
                tags,
                payload: payload(self.payload.as_ref(), inputs.len())?,
                pinned: self.pinned,
                reuse: self.reuse.as_ref().map(|Object(reuse)| reuse.terms()).transpose()?,
                ..cache::Request::new(inputs)
            },
            shape: Shape { normalize: None, dimensions: self.dimensions },
        })
    }
}

fn written(embedded: &Embedded, encoding: Encoding) -> Result<Vec<u8>, Error> {
    let shaped = embedded.shaped()?;
    let row_bytes = match encoding {
        Encoding::Float => shaped.dims * 13,
        Encoding::Base64 => shaped.dims * 6,
    };
    let mut out = Vec::with_capacity(shaped.rows().len() * (row_bytes + 64) + 256 + shaped.dims * 16);
    out.extend_from_slice(b"{\"object\":\"list\",\"data\":[");
    for (index, row) in shaped.rows().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"object\":\"embedding\",\"index\":");
        write_number(&mut out, index as u64);
        out.extend_from_slice(b",\"embedding\":");
        match encoding {
            Encoding::Float => numbers::write_list(&mut out, row),
            Encoding::Base64 => {
                out.push(b'"');
                encode::append_base64(&mut out, row);
                out.push(b'"');
            }
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"],\"model\":");
    out.extend_from_slice(serde_json::Value::from(&*embedded.model.alias).to_string().as_bytes());
    out.extend_from_slice(b",\"usage\":{\"prompt_tokens\":");
    write_number(&mut out, embedded.summary.tokens);
    out.extend_from_slice(b",\"total_tokens\":");
    write_number(&mut out, embedded.summary.tokens);
    out.extend_from_slice(b",\"cached_tokens\":");
    write_number(&mut out, embedded.summary.cached_tokens);
    out.extend_from_slice(b"}}");
    Ok(out)
}

fn write_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Lists the served models.
#[utoipa::path(
    get, path = "/v1/models", tag = "openai",
    responses((status = 200, description = "The served models", body = ModelsAnswer))
)]
pub(super) async fn models(call: Call, _request: Request) -> Result<Answered, Error> {
    let shared = &call.service.shared;
    let model = |served: &Served| {
        json!({
            "id": &*served.alias,
            "object": "model",
            "created": shared.started_unix,
            "owned_by": served.cache.card().source.split('/').next().unwrap_or_default(),
        })
    };
    let models: Vec<_> = shared.catalogue.aliases().iter().map(model).collect();
    Ok(pipeline::json(&json!({ "object": "list", "data": models })).into())
}

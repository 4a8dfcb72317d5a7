//! `POST /embed` and `POST /`: text-embeddings-inference's dialect with our options.

use std::borrow::Cow;
use std::fmt::Write as _;

use axum::extract::Request;
use half::f16;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::request::Parts;
use serde::Deserialize;

use crate::cache::{self, Inputs, Mode};

use super::accept::{self, Format};
use super::body;
use super::call::{Answered, Call};
use super::encode;
use super::errors::Error;
use super::numbers;
use super::pipeline::{self, Embedded, Wanted};
use super::shape::Shape;
use super::wire::{
    CacheUse, Direction, Object, Payloads, Reuse, RootInputs, Text, Texts, check_tags, flag, payload, ttl,
};

/// The length of the vectors of a binary answer.
pub(super) const EMBEDDING_DIMS: HeaderName = HeaderName::from_static("x-embedding-dims");

/// The type of the numbers of a binary answer: `f16` or `f32`, little-endian.
pub(super) const EMBEDDING_DTYPE: HeaderName = HeaderName::from_static("x-embedding-dtype");

/// Texts to embed, and how.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EmbedRequest<'a> {
    /// A text, or a list of texts; one text also answers a list of one vector.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    inputs: RootInputs<'a>,
    /// Whether texts that are too long are cut; the server's `auto_truncate` if not given.
    truncate: Option<bool>,
    /// Which end of a text that is too long is cut off; the right one if not given.
    truncation_direction: Option<Direction>,
    /// Whether vectors are scaled to length one; as the model says (mostly yes) if not given.
    normalize: Option<bool>,
    /// Which of the model's prompts to put before each text.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    prompt_name: Option<Text<'a>>,
    /// Cut vectors to this length, if the model was trained for that.
    dimensions: Option<usize>,
    /// The Inference API's way of giving the options above.
    #[serde(borrow)]
    #[schema(value_type = Option<Parameters<'_>>)]
    parameters: Option<Object<Parameters<'a>>>,
    /// One of the served models, the default one if not given.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    model: Option<Text<'a>>,
    /// Whose part of the cache to use.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    namespace: Option<Text<'a>>,
    /// Kept with newly stored entries.
    #[serde(default)]
    tags: Option<Vec<String>>,
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
    /// How the cache is used.
    cache: Option<CacheUse>,
}

/// The options under `parameters`.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct Parameters<'a> {
    /// As at the top level, which wins.
    truncate: Option<bool>,
    /// As at the top level, which wins.
    truncation_direction: Option<Direction>,
    /// As at the top level, which wins.
    normalize: Option<bool>,
    /// As at the top level, which wins.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    prompt_name: Option<Text<'a>>,
    /// As at the top level, which wins.
    dimensions: Option<usize>,
}

/// One vector and where it came from.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what is written by hand")]
pub(super) struct DetailedItem {
    /// The vector.
    embedding: Vec<f32>,
    /// Where it came from.
    status: String,
    /// The entry's key, in hexadecimal.
    key: String,
    /// The text's length, as the model reads it.
    tokens: u32,
    /// Whether the text was cut to that length.
    truncated: bool,
    /// For a reused vector: how similar it is at least to the text's own, but for the share below.
    similarity: Option<f64>,
    /// For a reused vector: whose it is.
    source_key: Option<String>,
    /// For a reused vector: the share of such vectors that may be less similar.
    violation: Option<f64>,
    /// For a reused vector: how sure that is.
    confidence: Option<f64>,
    /// For a reused vector: what says so; `/stats` has its figures.
    certificate: Option<String>,
}

/// Vectors with their provenance (`?details=true`).
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what is written by hand")]
pub(super) struct DetailedAnswer {
    /// The served model.
    model: String,
    /// Its fingerprint.
    fingerprint: String,
    /// Length of a vector.
    dims: usize,
    /// In the order of the inputs.
    items: Vec<DetailedItem>,
}

/// Embeds texts.
///
/// From the cache what is there, by the model what is not. `Accept` chooses JSON, a NumPy array or raw rows.
#[utoipa::path(
    post, path = "/embed", tag = "embed",
    params(("details" = Option<bool>, Query, description = "Answer an object with each item's provenance")),
    request_body = EmbedRequest<'_>,
    responses((status = 200, description = "One vector an input, in order", body = DetailedAnswer))
)]
pub(super) async fn embed(call: Call, request: Request) -> Result<Answered, Error> {
    let (parts, body) = request.into_parts();
    body::expect_json(&parts.headers)?;
    let output = Output::asked(&parts)?;
    let received = body::read(&call, &parts.headers, body).await?;
    let asked: EmbedRequest<'_> = body::parse(&received.bytes)?;
    match &asked.inputs {
        RootInputs::Texts(texts) => vectors(&call, &asked, texts, output).await,
        RootInputs::Sentences { .. } => {
            Err(Error::invalid("inputs", "a string or a list of strings is needed, not an object (POST / reads those)"))
        }
    }
}

/// Embeds texts, or compares a sentence with others.
///
/// As `/embed` where `inputs` is a text or a list; with `source_sentence` and `sentences` in it, a list of cosine
/// similarities.
#[utoipa::path(
    post, path = "/", tag = "embed",
    request_body = EmbedRequest<'_>,
    responses((status = 200, description = "One vector or similarity an input, in order", body = Vec<f32>))
)]
pub(super) async fn root(call: Call, request: Request) -> Result<Answered, Error> {
    let (parts, body) = request.into_parts();
    body::expect_json(&parts.headers)?;
    let output = Output::asked(&parts);
    let received = body::read(&call, &parts.headers, body).await?;
    let asked: EmbedRequest<'_> = body::parse(&received.bytes)?;
    match &asked.inputs {
        RootInputs::Texts(texts) => vectors(&call, &asked, texts, output?).await,
        RootInputs::Sentences { source_sentence, sentences } => {
            accept::json(&parts.headers)?;
            sentences.check("inputs.sentences", call.service.shared.config.batch_texts_max)?;
            let mut texts = Vec::with_capacity(sentences.texts.len() + 1);
            texts.push(source_sentence.clone());
            texts.extend_from_slice(&sentences.texts);
            let embedded = pipeline::embed(&call, asked.wanted(&call, Inputs::Texts(&texts))?).await?;
            let body = serde_json::to_vec(&similarities(&embedded)).expect("numbers are always written to memory");
            Ok(embedded.reply(&call, "application/json", body))
        }
    }
}

/// What the answer is to look like.
#[derive(Clone, Copy)]
enum Output {
    Plain(Format),
    Detailed,
}

impl Output {
    fn asked(parts: &Parts) -> Result<Self, Error> {
        if flag(parts.uri.query(), "details")? {
            accept::json(&parts.headers).map(|()| Self::Detailed)
        } else {
            accept::vectors(&parts.headers).map(Self::Plain)
        }
    }
}

impl<'a> EmbedRequest<'a> {
    fn wanted<'r>(&'r self, call: &Call, inputs: Inputs<'r>) -> Result<Wanted<'r>, Error> {
        let shared = &call.service.shared;
        let model = pipeline::model(call, self.model.as_ref().map(|model| &*model.0))?;
        let parameters = self.parameters.as_ref().map(|parameters| &parameters.0);
        let tags = self.tags.as_deref().unwrap_or_default();
        check_tags(tags)?;
        let direction = self.truncation_direction.or_else(|| parameters?.truncation_direction);
        let prompt_name = self.prompt_name.as_ref().or_else(|| parameters?.prompt_name.as_ref());
        let truncate = self.truncate.or_else(|| parameters?.truncate);
        Ok(Wanted {
            model,
            request: cache::Request {
                namespace: call.namespace(self.namespace.as_ref().map(|name| &*name.0))?,
                prompt_name: prompt_name.map(|name| &*name.0),
                truncate: truncate.unwrap_or(shared.config.auto_truncate),
                direction: direction.map(Into::into),
                mode: self.cache.map_or(Mode::Use, Into::into),
                ttl: ttl(self.ttl)?,
                tags,
                payload: payload(self.payload.as_ref(), inputs.len())?,
                pinned: self.pinned,
                reuse: self.reuse.as_ref().map(|Object(reuse)| reuse.terms()).transpose()?,
                ..cache::Request::new(inputs)
            },
            shape: Shape {
                normalize: self.normalize.or_else(|| parameters?.normalize),
                dimensions: self.dimensions.or_else(|| parameters?.dimensions),
            },
        })
    }
}

async fn vectors(call: &Call, asked: &EmbedRequest<'_>, texts: &Texts<'_>, output: Output) -> Result<Answered, Error> {
    texts.check("inputs", call.service.shared.config.batch_texts_max)?;
    let embedded = pipeline::embed(call, asked.wanted(call, Inputs::Texts(&texts.texts))?).await?;
    let shaped = embedded.shaped()?;
    let format = match output {
        Output::Plain(format) => format,
        Output::Detailed => {
            let body = detailed(&embedded)?;
            return Ok(embedded.reply(call, "application/json", body));
        }
    };
    let (dims, binary) = (shaped.dims, binary_headers(format));
    let as_stored = matches!(shaped.values, Cow::Borrowed(_)) && cfg!(target_endian = "little");
    let mut answered = if as_stored && format == Format::Octets(encode::Width::F16) {
        embedded.reply_rows(call)
    } else {
        let (content_type, body) = encoded(format, &shaped.values, dims);
        drop(shaped);
        embedded.reply(call, content_type, body)
    };
    if let Some(dtype) = binary {
        name_layout(answered.response.headers_mut(), dims, dtype);
    }
    Ok(answered)
}

/// Rows in a format, and its content type.
pub(super) fn encoded(format: Format, values: &[f16], dims: usize) -> (&'static str, Vec<u8>) {
    match format {
        Format::Json => ("application/json", encode::json(values.chunks_exact(dims), dims)),
        Format::Npy(width) => ("application/x-npy", encode::npy(values, dims, width == encode::Width::F32)),
        Format::Octets(width) => ("application/octet-stream", encode::octets(values, width)),
    }
}

/// The type of the numbers, for formats that do not say it themselves.
pub(super) fn binary_headers(format: Format) -> Option<&'static str> {
    match format {
        Format::Json => None,
        Format::Npy(width) | Format::Octets(width) => Some(width.as_str()),
    }
}

/// Says how to read the rows of a binary answer.
pub(super) fn name_layout(headers: &mut HeaderMap, dims: usize, dtype: &'static str) {
    headers.insert(EMBEDDING_DIMS, dims.into());
    headers.insert(EMBEDDING_DTYPE, HeaderValue::from_static(dtype));
}

fn detailed(embedded: &Embedded) -> Result<Vec<u8>, Error> {
    let shaped = embedded.shaped()?;
    let mut head = String::new();
    let name = serde_json::Value::from(&*embedded.model.alias);
    let (version, dims) = (embedded.model.cache.card().version, shaped.dims);
    write!(head, "{{\"model\":{name},\"fingerprint\":\"{version}\",\"dims\":{dims},\"items\":[")
        .expect("memory can be written to");
    let mut out = head.into_bytes();
    let mut reused = embedded.answer.reused.iter().peekable();
    for (index, (row, item)) in shaped.rows().zip(&embedded.answer.items).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"embedding\":");
        numbers::write_list(&mut out, row);
        let (status, key, tokens, truncated) = (item.status.as_str(), item.key, item.tokens, item.truncated);
        let rest = format!(",\"status\":\"{status}\",\"key\":\"{key}\",\"tokens\":{tokens},\"truncated\":{truncated},");
        out.extend_from_slice(rest.as_bytes());
        let reused = match reused.next_if(|reused| reused.index == index) {
            None => "\"similarity\":null,\"source_key\":null,\"violation\":null,\"confidence\":null,\
                     \"certificate\":null}"
                .to_owned(),
            Some(reused) => format!(
                "\"similarity\":{},\"source_key\":\"{}\",\"violation\":{},\"confidence\":{},\"certificate\":\"{}\"}}",
                reused.min_similarity, reused.source, reused.max_violation, reused.confidence, reused.certificate
            ),
        };
        out.extend_from_slice(reused.as_bytes());
    }
    out.extend_from_slice(b"]}");
    Ok(out)
}

/// The cosine of the first vector with each of the others.
fn similarities(embedded: &Embedded) -> Vec<f32> {
    let answer = &embedded.answer;
    let source = answer.unit(0);
    let dot = |a: &[f16], b: &[f16]| a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum::<f64>();
    let square = dot(source, source);
    (1..answer.items.len())
        .map(|index| {
            let other = answer.unit(index);
            let norms = (square * dot(other, other)).sqrt();
            if norms > 0.0 { (dot(source, other) / norms) as f32 } else { 0.0 }
        })
        .collect()
}

//! `POST /tokenize`: how the served model's tokenizer splits texts.

use axum::extract::Request;
use serde::{Deserialize, Serialize};

use crate::cache::{self, Token};

use super::accept;
use super::body;
use super::call::{Answered, Call};
use super::errors::Error;
use super::pipeline;
use super::wire::{Text, Texts};

/// Bytes of memory the answer may take for each byte of text: a token of one byte is an object of about fifty.
const BYTES_A_BYTE: usize = 64;

/// Texts to split.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenizeRequest<'a> {
    /// A text, or a list of texts; one text also answers a list of one.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    inputs: Texts<'a>,
    /// Whether the tokens that the model puts around a text are wanted too; yes if not given.
    add_special_tokens: Option<bool>,
    /// Which of the model's prompts to put before each text.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    prompt_name: Option<Text<'a>>,
    /// One of the served models, the default one if not given.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    model: Option<Text<'a>>,
}

/// One token.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct TokenObject {
    /// Its id.
    id: u32,
    /// Its text.
    text: String,
    /// Whether the model put it there.
    special: bool,
    /// The character of the text where it starts.
    start: Option<usize>,
    /// The character after its last.
    stop: Option<usize>,
}

/// Splits texts into tokens.
#[utoipa::path(
    post, path = "/tokenize", tag = "embed",
    request_body = TokenizeRequest<'_>,
    responses((status = 200, description = "One list of tokens an input, in order", body = Vec<Vec<TokenObject>>))
)]
pub(super) async fn tokenize(call: Call, request: Request) -> Result<Answered, Error> {
    let (parts, body) = request.into_parts();
    body::expect_json(&parts.headers)?;
    accept::json(&parts.headers)?;
    let received = body::read(&call, &parts.headers, body).await?;
    let asked: TokenizeRequest<'_> = body::parse(&received.bytes)?;
    let shared = &call.service.shared;
    asked.inputs.check("inputs", shared.config.batch_texts_max)?;
    let model = pipeline::model(&call, asked.model.as_ref().map(|model| &*model.0))?;
    let card = model.cache.card();
    let prompt = match asked.prompt_name {
        None => String::new(),
        Some(Text(name)) => match card.prompts.get(&*name) {
            Some(prompt) => prompt.clone(),
            None => {
                let known = card.prompts.keys().cloned().collect();
                return Err(cache::Error::UnknownPrompt { name: name.into_owned(), known }.into());
            }
        },
    };
    let room = call.in_time(shared.answer_memory.reserve(received.bytes.len() * BYTES_A_BYTE)).await?;
    let texts: Vec<String> = asked.inputs.texts.into_iter().map(|text| text.into_owned()).collect();
    let (cache, special) = (model.cache.clone(), asked.add_special_tokens.unwrap_or(true));
    let items = texts.len();
    // Splitting takes milliseconds a text: not for the threads that serve connections.
    let splitting = tokio::task::spawn_blocking(move || {
        let split = texts.iter().enumerate().map(|(index, text)| {
            let tokens = cache.inspect(text, &prompt, special).map_err(|error| match error {
                cache::Error::Tokenizer { message, .. } => cache::Error::Tokenizer { index, message },
                other => other,
            })?;
            Ok(tokens.into_iter().map(TokenObject::from).collect())
        });
        let split: Result<Vec<Vec<TokenObject>>, cache::Error> = split.collect();
        split.map(|tokens| serde_json::to_vec(&tokens).expect("plain fields are always written to memory"))
    });
    let body = call.in_time(splitting).await?.map_err(|_| Error::Panicked)??;
    Ok(Answered::of(pipeline::reply("application/json", body, room), items, 0))
}

impl From<Token> for TokenObject {
    fn from(token: Token) -> Self {
        let Token { id, text, special, start, stop, .. } = token;
        Self { id, text, special, start, stop }
    }
}

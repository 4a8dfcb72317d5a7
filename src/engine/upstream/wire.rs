//! What is sent and what comes back, as bytes. Believes nothing: count, order, length and every number are checked.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::settings::{Dialect, Encoding, Upstream};

/// An answer may be this long for each number, and so much longer beside.
const BYTES_A_NUMBER: u64 = 32;
const BYTES_BESIDE: u64 = 1 << 20;

/// How much of an endpoint's own words is shown.
const COMPLAINT_CHARACTERS_MAX: usize = 200;
/// So many characters in a row that also stand in a text or in the key are no coincidence.
const ECHO_CHARACTERS: usize = 16;
/// Texts and keys shorter than this cannot be told from the words around them.
const ECHO_CHARACTERS_MIN: usize = 4;

/// The route, after the base URL.
pub(super) fn url(upstream: &Upstream) -> String {
    let route = match upstream.dialect {
        Dialect::OpenAi => "embeddings",
        Dialect::Tei => "embed",
    };
    format!("{}/{route}", upstream.base_url.trim_end_matches('/'))
}

/// A request's body.
pub(super) fn request(upstream: &Upstream, texts: &[&str]) -> Vec<u8> {
    let mut body = Map::new();
    match upstream.dialect {
        Dialect::OpenAi => {
            body.insert("model".to_owned(), json!(upstream.model()));
            body.insert("input".to_owned(), json!(texts));
            if upstream.encoding == Encoding::Base64 {
                body.insert("encoding_format".to_owned(), json!("base64"));
            }
        }
        Dialect::Tei => {
            body.insert("inputs".to_owned(), json!(texts));
            // The vector's own length is kept, so it is asked for; a text that is too long is to fail, not to be cut unsaid.
            body.insert("normalize".to_owned(), json!(false));
            body.insert("truncate".to_owned(), json!(false));
        }
    }
    body.extend(upstream.body.clone());
    serde_json::to_vec(&body).expect("JSON values have string keys")
}

/// The longest answer that can be right.
pub(super) fn answer_bytes_max(texts: usize, dims: usize) -> u64 {
    (texts as u64).saturating_mul(dims as u64).saturating_mul(BYTES_A_NUMBER).saturating_add(BYTES_BESIDE)
}

/// Vectors in the order of the texts, and the tokens billed for them, if it is said.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) vectors: Vec<Vec<f32>>,
    pub(super) tokens: Option<u64>,
}

#[derive(Deserialize)]
struct OpenAiAnswer<'a> {
    #[serde(borrow)]
    data: Vec<Item<'a>>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Item<'a> {
    index: Option<usize>,
    #[serde(borrow)]
    embedding: Numbers<'a>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Numbers<'a> {
    Base64(#[serde(borrow)] std::borrow::Cow<'a, str>),
    Floats(Vec<f32>),
}

#[derive(Deserialize)]
struct Usage {
    total_tokens: Option<u64>,
    prompt_tokens: Option<u64>,
}

/// Reads an answer for `count` texts of a model with `dims`.
///
/// The error says what is wrong without showing any of it: an answer may repeat texts.
pub(super) fn answer(dialect: Dialect, body: &[u8], count: usize, dims: usize) -> Result<Answer, String> {
    // `serde_json` would show the value that does not fit.
    let unreadable = |error: serde_json::Error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => "has another shape",
            serde_json::error::Category::Eof => "ends early",
            _ => "is not JSON",
        };
        format!("the answer {what}, at byte {} of line {}", error.column(), error.line())
    };
    let answer = match dialect {
        Dialect::Tei => Answer { vectors: serde_json::from_slice(body).map_err(unreadable)?, tokens: None },
        Dialect::OpenAi => {
            let OpenAiAnswer { data, usage } = serde_json::from_slice(body).map_err(unreadable)?;
            let tokens = usage.and_then(|usage| usage.total_tokens.or(usage.prompt_tokens));
            Answer { vectors: in_order(data, count)?, tokens }
        }
    };
    if answer.vectors.len() != count {
        return Err(format!("{} vectors came for {count} texts", answer.vectors.len()));
    }
    if let Some(vector) = answer.vectors.iter().find(|vector| vector.len() != dims) {
        let found = vector.len();
        return Err(format!(
            "a vector of {found} numbers came, the manifest says dims = {dims}: correct it, or ask for that length in [upstream.body]"
        ));
    }
    if answer.vectors.iter().flatten().any(|number| !number.is_finite()) {
        return Err("a vector has a number that is not finite".to_owned());
    }
    Ok(answer)
}

/// The items by their index, which is 0 to `count`, each once.
fn in_order(items: Vec<Item<'_>>, count: usize) -> Result<Vec<Vec<f32>>, String> {
    let mut vectors = vec![None; count.max(items.len())];
    let found = items.len();
    for (place, item) in items.into_iter().enumerate() {
        let index = item.index.unwrap_or(place);
        match vectors.get_mut(index) {
            Some(vector @ None) if found == count => *vector = Some(numbers(item.embedding)?),
            _ if found != count => break,
            Some(_) => return Err(format!("two vectors came for the text {index}")),
            None => return Err(format!("a vector came for the text {index} of {count}")),
        }
    }
    if found != count {
        return Err(format!("{found} vectors came for {count} texts"));
    }
    Ok(vectors.into_iter().flatten().collect())
}

fn numbers(numbers: Numbers<'_>) -> Result<Vec<f32>, String> {
    match numbers {
        Numbers::Floats(floats) => Ok(floats),
        Numbers::Base64(text) => {
            let bytes = base64_simd::STANDARD.decode_to_vec(text.as_bytes());
            let bytes = bytes.map_err(|_| "a vector is neither numbers nor base64".to_owned())?;
            let (words, rest) = bytes.as_chunks::<4>();
            if !rest.is_empty() {
                return Err(format!("a vector has {} bytes, which is no number of f32", bytes.len()));
            }
            Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
        }
    }
}

/// The endpoint's own words about what was wrong, on one short line; nothing if there are none that can be shown.
pub(super) fn complaint(body: &[u8], plain_text: bool, texts: &[&str], key: Option<&str>) -> Option<String> {
    let words = match serde_json::from_slice::<Value>(body) {
        Ok(value) => {
            let places = ["/error/message", "/error", "/message", "/detail/0/msg", "/detail"];
            places.iter().find_map(|place| value.pointer(place)?.as_str().map(ToOwned::to_owned))?
        }
        // What is written for people in a browser tells nothing on one line.
        Err(_) if plain_text => String::from_utf8_lossy(body).into_owned(),
        Err(_) => return None,
    };
    let line: Vec<&str> =
        words.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    let line = line.join(" ");
    // Before it is shortened: the beginning of an echo is one.
    if texts.iter().copied().chain(key).any(|secret| repeats(&line, secret)) {
        return Some("its message is withheld, because it repeats what was sent".to_owned());
    }
    let short: String = line.chars().take(COMPLAINT_CHARACTERS_MAX).collect();
    (!short.is_empty()).then_some(if short.len() < line.len() { format!("{short}…") } else { short })
}

/// Whether a line has a long enough part of `secret` in it.
fn repeats(line: &str, secret: &str) -> bool {
    let secret: Vec<&str> = secret.split_whitespace().collect();
    let secret = secret.join(" ");
    let length = secret.chars().count();
    if length < ECHO_CHARACTERS_MIN {
        return false;
    }
    if length <= ECHO_CHARACTERS {
        return line.contains(&secret);
    }
    // Only what will be shown counts, and a part that begins in it.
    let starts: Vec<usize> = line.char_indices().map(|(at, _)| at).chain([line.len()]).collect();
    let windows = starts.windows(ECHO_CHARACTERS + 1).take(COMPLAINT_CHARACTERS_MAX);
    windows.into_iter().any(|window| secret.contains(&line[window[0]..window[ECHO_CHARACTERS]]))
}

#[cfg(test)]
mod tests {
    use super::super::settings::tests::upstream;
    use super::*;

    fn openai(body: &str, count: usize) -> Result<Answer, String> {
        answer(Dialect::OpenAi, body.as_bytes(), count, 2)
    }

    #[test]
    fn floats_and_base64_in_any_order_are_read_in_the_order_of_the_texts() {
        let base64 = base64_simd::STANDARD.encode_to_string(bytemuck::cast_slice::<f32, u8>(&[3.0, 4.0]));
        let body = format!(
            r#"{{"data": [{{"index": 1, "embedding": "{base64}"}}, {{"index": 0, "embedding": [1, 2.5]}}], "usage": {{"total_tokens": 7}}}}"#
        );
        let expected = Answer { vectors: vec![vec![1.0, 2.5], vec![3.0, 4.0]], tokens: Some(7) };
        assert_eq!(openai(&body, 2), Ok(expected));
        let unnumbered = openai(r#"{"data": [{"embedding": [1, 2]}, {"embedding": [3, 4]}]}"#, 2).unwrap();
        assert_eq!(unnumbered, Answer { vectors: vec![vec![1.0, 2.0], vec![3.0, 4.0]], tokens: None });
    }

    #[test]
    fn an_answer_that_cannot_be_right_is_refused_and_not_shown() {
        for (body, count, words) in [
            ("<html>secret</html>", 1, "not JSON"),
            (r#"{"data": [{"index": 0, "embedding": [1,"#, 1, "ends early"),
            (r#"{"secret": []}"#, 1, "another shape"),
            (r#"{"data": [{"index": 0, "embedding": [1, null]}]}"#, 1, "another shape"),
            (r#"{"data": [{"index": 0, "embedding": [1, NaN]}]}"#, 1, "not JSON"),
            (r#"{"data": [{"index": 0, "embedding": [1, 1e39]}]}"#, 1, "not finite"),
            (r#"{"data": [{"index": 0, "embedding": "AADAfwAAgD8="}]}"#, 1, "not finite"),
            (r#"{"data": [{"index": 0, "embedding": "secret!"}]}"#, 1, "neither"),
            (r#"{"data": [{"index": 0, "embedding": "AAAA"}]}"#, 1, "3 bytes"),
            (r#"{"data": [{"index": 0, "embedding": [1, 2]}]}"#, 2, "1 vectors came for 2"),
            (
                r#"{"data": [{"index": 0, "embedding": [1, 2]}, {"index": 1, "embedding": [1, 2]}]}"#,
                1,
                "2 vectors came for 1",
            ),
            (r#"{"data": [{"index": 0, "embedding": [1, 2]}, {"index": 0, "embedding": [1, 2]}]}"#, 2, "two vectors"),
            (r#"{"data": [{"index": 5, "embedding": [1, 2]}]}"#, 1, "text 5 of 1"),
            (r#"{"data": [{"index": 0, "embedding": [1, 2, 3]}]}"#, 1, "dims = 2"),
        ] {
            let error = openai(body, count).unwrap_err();
            assert!(error.contains(words) && !error.contains("secret"), "{body}: {error}");
        }
        assert!(answer(Dialect::Tei, b"[[1, 2], [3]]", 2, 2).unwrap_err().contains("dims = 2"));
        assert_eq!(answer(Dialect::Tei, b"[[1, 2]]", 1, 2).unwrap().vectors, [[1.0, 2.0]]);
    }

    #[test]
    fn words_that_repeat_a_text_or_the_key_are_withheld() {
        let shown = |message: &str, text: &str| {
            complaint(message.as_bytes(), true, &[text], Some("sk-0123456789abcdefgh")).unwrap()
        };
        assert_eq!(
            shown(r#"{"error": {"message": "maximum context length is 8192 tokens"}}"#, "long ago"),
            "maximum context length is 8192 tokens"
        );
        assert_eq!(shown(r#"{"error": "batch size 64 > 32", "error_type": "Validation"}"#, "x"), "batch size 64 > 32");
        assert_eq!(
            shown(r#"{"detail": [{"msg": "too long", "input": "my own secret diary"}]}"#, "my own secret diary"),
            "too long"
        );
        let text = "my own secret diary, page one of very many pages";
        for message in [
            r#"{"detail": "cannot read 'my own secret diary'"}"#,
            "cannot read: page\n one of very many pages",
            r#"{"error": {"message": "Incorrect API key provided: sk-0123456789abcdefgh"}}"#,
        ] {
            assert!(shown(message, text).contains("withheld"), "{message}");
        }
        assert!(shown(r#"{"error": "bad: hush"}"#, "hush").contains("withheld"));
        assert_eq!(shown(&"a ".repeat(1000), "b").chars().count(), 201);
        assert_eq!(complaint(b"<html>Bad Gateway</html>", false, &[], None), None);
    }

    #[test]
    fn a_request_says_what_the_dialect_needs_and_what_the_manifest_adds() {
        let body = |more: &str| -> Value { serde_json::from_slice(&request(&upstream(more), &["a"])).unwrap() };
        assert_eq!(
            body("body = { dimensions = 4 }"),
            json!({"model": "m", "input": ["a"], "encoding_format": "base64", "dimensions": 4})
        );
        assert_eq!(body("encoding = \"float\""), json!({"model": "m", "input": ["a"]}));
        let tei = Upstream { dialect: Dialect::Tei, ..upstream("body = { truncate = true }") };
        let body: Value = serde_json::from_slice(&request(&tei, &["a"])).unwrap();
        assert_eq!(body, json!({"inputs": ["a"], "normalize": false, "truncate": true}));
        assert_eq!(url(&tei), "http://127.0.0.1:9/v1/embed");
        assert_eq!(url(&Upstream { base_url: "https://h/v1/".to_owned(), ..upstream("") }), "https://h/v1/embeddings");
    }
}

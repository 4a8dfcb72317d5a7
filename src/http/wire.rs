//! The pieces that request bodies are made of, parsed without copying texts that need no unescaping.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::cache::policy::TTL_SECONDS_MAX;
use crate::cache::{Mode, Payload, ReuseTerms};
use crate::domain::TruncationDirection;
use crate::store::PAYLOAD_BYTES_MAX;

use super::errors::Error;
use super::limits::BATCH_TEXTS_CEILING;

/// A text, borrowed from the body unless it has escapes in it.
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

/// One text or several. Of more than [`BATCH_TEXTS_CEILING`] the rest is only counted.
#[derive(Debug)]
pub(super) struct Texts<'a> {
    pub(super) texts: Vec<Cow<'a, str>>,
    pub(super) count: usize,
}

/// What the route `/` reads under `inputs`.
#[derive(Debug)]
pub(super) enum RootInputs<'a> {
    /// Texts to embed.
    Texts(Texts<'a>),
    /// A sentence to compare others with.
    Sentences {
        /// The one.
        source_sentence: Cow<'a, str>,
        /// The others.
        sentences: Texts<'a>,
    },
}

/// What OpenAI's dialect reads under `input`.
#[derive(Debug)]
pub(super) enum OpenAiInput<'a> {
    /// One text or several.
    Texts(Texts<'a>),
    /// One list of token ids or several.
    Tokens {
        /// The lists.
        sequences: Vec<Vec<u32>>,
        /// How many there are.
        count: usize,
    },
}

impl<'a> Texts<'a> {
    fn one(text: Cow<'a, str>) -> Self {
        Self { texts: vec![text], count: 1 }
    }

    fn push(&mut self, text: Cow<'a, str>) {
        self.count += 1;
        if self.texts.len() < BATCH_TEXTS_CEILING {
            self.texts.push(text);
        }
    }

    fn rest<A: SeqAccess<'a>>(mut self, sequence: &mut A) -> Result<Self, A::Error> {
        while let Some(Text(text)) = sequence.next_element()? {
            self.push(text);
        }
        Ok(self)
    }

    /// Checks that there are some, and not too many.
    ///
    /// # Errors
    /// When there are none or too many.
    pub(super) fn check(&self, field: &'static str, texts_max: usize) -> Result<(), Error> {
        check_count(field, self.count, texts_max)
    }
}

/// Checks a number of items.
///
/// # Errors
/// When there are none or too many.
pub(super) fn check_count(field: &'static str, count: usize, texts_max: usize) -> Result<(), Error> {
    let limit = texts_max.min(BATCH_TEXTS_CEILING);
    match count {
        0 => Err(Error::Empty { field }),
        count if count > limit => Err(Error::BatchTooLarge { field, count, limit }),
        _ => Ok(()),
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }

    fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text)))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Texts<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Texts::one(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Texts::one(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        Texts { texts: Vec::new(), count: 0 }.rest(&mut sequence)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Texts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextsVisitor)
    }
}

struct RootVisitor;

impl<'de> Visitor<'de> for RootVisitor {
    type Value = RootInputs<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a list of strings, or an object with source_sentence and sentences")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(RootInputs::Texts(Texts::one(Cow::Borrowed(text))))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(RootInputs::Texts(Texts::one(Cow::Owned(text.to_owned()))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<Self::Value, A::Error> {
        TextsVisitor.visit_seq(sequence).map(RootInputs::Texts)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        const FIELDS: &[&str] = &["source_sentence", "sentences"];
        let (mut source, mut sentences) = (None, None);
        while let Some(Text(name)) = map.next_key()? {
            match &*name {
                "source_sentence" if source.is_none() => source = Some(map.next_value::<Text<'de>>()?.0),
                "sentences" if sentences.is_none() => sentences = Some(map.next_value()?),
                "source_sentence" => return Err(A::Error::duplicate_field("source_sentence")),
                "sentences" => return Err(A::Error::duplicate_field("sentences")),
                unknown => return Err(A::Error::unknown_field(unknown, FIELDS)),
            }
        }
        Ok(RootInputs::Sentences {
            source_sentence: source.ok_or_else(|| A::Error::missing_field("source_sentence"))?,
            sentences: sentences.ok_or_else(|| A::Error::missing_field("sentences"))?,
        })
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for RootInputs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RootVisitor)
    }
}

/// A JSON object, where serde would take a list of its fields' values too.
pub(super) struct Object<T>(pub(super) T);

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// The first element of a list says what the list is of.
enum First<'a> {
    Text(Cow<'a, str>),
    Id(u32),
    Ids(Vec<u32>),
}

struct FirstVisitor;

impl<'de> Visitor<'de> for FirstVisitor {
    type Value = First<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id or a list of token ids")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(First::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(First::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<Self::Value, E> {
        u32::try_from(id)
            .map(First::Id)
            .map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(id), &"a token id"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = sequence.next_element()? {
            ids.push(id);
        }
        Ok(First::Ids(ids))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for First<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FirstVisitor)
    }
}

struct OpenAiVisitor;

impl<'de> Visitor<'de> for OpenAiVisitor {
    type Value = OpenAiInput<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a list of strings, a list of token ids or a list of such lists")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(OpenAiInput::Texts(Texts::one(Cow::Borrowed(text))))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(OpenAiInput::Texts(Texts::one(Cow::Owned(text.to_owned()))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        match sequence.next_element()? {
            None => Ok(OpenAiInput::Texts(Texts { texts: Vec::new(), count: 0 })),
            Some(First::Text(text)) => Texts::one(text).rest(&mut sequence).map(OpenAiInput::Texts),
            Some(First::Id(id)) => {
                let mut ids = vec![id];
                while let Some(id) = sequence.next_element()? {
                    ids.push(id);
                }
                Ok(OpenAiInput::Tokens { sequences: vec![ids], count: 1 })
            }
            Some(First::Ids(ids)) => {
                let (mut sequences, mut count) = (vec![ids], 1);
                while sequences.len() < BATCH_TEXTS_CEILING {
                    match sequence.next_element()? {
                        Some(ids) => sequences.push(ids),
                        None => return Ok(OpenAiInput::Tokens { count: sequences.len(), sequences }),
                    }
                    count += 1;
                }
                while sequence.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(OpenAiInput::Tokens { sequences, count })
            }
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for OpenAiInput<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OpenAiVisitor)
    }
}

/// Which end of a text is cut off when it is too long.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Direction {
    /// The beginning.
    #[serde(alias = "Left")]
    Left,
    /// The end.
    #[serde(alias = "Right")]
    Right,
}

impl From<Direction> for TruncationDirection {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Left => Self::Left,
            Direction::Right => Self::Right,
        }
    }
}

/// How the cache is used for a request.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum CacheUse {
    /// Answer what is cached, compute and keep what is not.
    Use,
    /// Compute everything, keep nothing.
    Bypass,
    /// Compute everything, replace what is kept.
    Refresh,
    /// Answer what is cached, refuse if anything is not.
    Only,
}

impl From<CacheUse> for Mode {
    fn from(cache: CacheUse) -> Self {
        match cache {
            CacheUse::Use => Self::Use,
            CacheUse::Bypass => Self::Bypass,
            CacheUse::Refresh => Self::Refresh,
            CacheUse::Only => Self::Only,
        }
    }
}

/// When a near-duplicate's vector will do.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reuse {
    /// The lowest cosine similarity between the answered vector and the text's own.
    #[schema(minimum = 0, maximum = 1)]
    min_similarity: f64,
    /// The share of reused vectors that may be below it; 0.05 if not given.
    #[schema(minimum = 0, maximum = 1)]
    max_violation: Option<f64>,
}

impl Reuse {
    /// What it allows.
    ///
    /// # Errors
    /// When a bound is not between 0 and 1.
    pub(super) fn terms(self) -> Result<ReuseTerms, Error> {
        let max_violation = self.max_violation.unwrap_or(ReuseTerms::MAX_VIOLATION.into());
        if !(0.0..=1.0).contains(&self.min_similarity) {
            return Err(Error::invalid("reuse.min_similarity", "a cosine similarity from 0 to 1 is needed"));
        }
        if !(0.0..=1.0).contains(&max_violation) {
            return Err(Error::invalid("reuse.max_violation", "a share of the reused vectors from 0 to 1 is needed"));
        }
        Ok(ReuseTerms { min_similarity: self.min_similarity as f32, max_violation: max_violation as f32 })
    }
}

/// The most tags of a request.
pub(super) const TAGS_MAX: usize = 64;

/// The longest tag.
pub(super) const TAG_CHARS_MAX: usize = 256;

/// What is to be kept with entries: JSON as it was sent, one value for all inputs or one for each.
#[derive(Debug)]
pub(super) enum Payloads<'a> {
    Same(&'a str),
    Each(Vec<Option<String>>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Payloads<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?.get();
        if !text.starts_with('[') {
            return Ok(Self::Same(text));
        }
        let each: Vec<Option<&RawValue>> = serde_json::from_str(text).map_err(D::Error::custom)?;
        Ok(Self::Each(each.into_iter().map(|payload| payload.map(|payload| payload.get().to_owned())).collect()))
    }
}

/// Checks payloads.
///
/// # Errors
/// When one is too long or nested too deeply, or a list is not as long as the inputs are.
pub(super) fn payload<'a>(payloads: Option<&'a Payloads<'a>>, inputs: usize) -> Result<Payload<'a>, Error> {
    let check = |field: &dyn Fn() -> String, payload: &str| {
        if payload.len() > PAYLOAD_BYTES_MAX {
            let message = format!("a payload has at most {PAYLOAD_BYTES_MAX} bytes of JSON, not {}", payload.len());
            return Err(Error::invalid(field(), message));
        }
        // What is read back has to be readable for others: their parsers have bounds, too.
        serde_json::from_str::<serde_json::Value>(payload).map(drop).map_err(|error| Error::invalid(field(), error))
    };
    match payloads {
        None => Ok(Payload::None),
        Some(Payloads::Same(payload)) => {
            check(&|| "payload".to_owned(), payload)?;
            Ok(Payload::Same(payload))
        }
        Some(Payloads::Each(payloads)) => {
            if payloads.len() != inputs {
                let message = format!("a list of payloads has one for each input: {inputs}, not {}", payloads.len());
                return Err(Error::invalid("payload", message));
            }
            for (index, payload) in payloads.iter().enumerate() {
                if let Some(payload) = payload {
                    check(&|| format!("payload[{index}]"), payload)?;
                }
            }
            Ok(Payload::Each(payloads))
        }
    }
}

/// A yes or no of an address's query; no if it is not there.
///
/// # Errors
/// When it is something else.
pub(super) fn flag(query: Option<&str>, name: &'static str) -> Result<bool, Error> {
    let mut pairs = query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "true")));
    match pairs.rfind(|(found, _)| *found == name) {
        None | Some((_, "false")) => Ok(false),
        Some((_, "true")) => Ok(true),
        Some(_) => Err(Error::BadRequest { name, message: "true or false is needed".to_owned() }),
    }
}

/// Checks tags.
///
/// # Errors
/// When there are too many, or one is empty or too long.
pub(super) fn check_tags(tags: &[String]) -> Result<(), Error> {
    if tags.len() > TAGS_MAX {
        return Err(Error::invalid("tags", format!("there may be {TAGS_MAX} tags, not {}", tags.len())));
    }
    match tags.iter().position(|tag| tag.is_empty() || tag.chars().count() > TAG_CHARS_MAX) {
        Some(index) => {
            Err(Error::invalid(format!("tags[{index}]"), format!("a tag has 1 to {TAG_CHARS_MAX} characters")))
        }
        None => Ok(()),
    }
}

/// Checks a time to live in seconds.
///
/// # Errors
/// When it is not between a second and fifty years.
pub(super) fn ttl(seconds: Option<u64>) -> Result<Option<Duration>, Error> {
    match seconds {
        Some(seconds) if !(1..=TTL_SECONDS_MAX).contains(&seconds) => {
            Err(Error::invalid("ttl", format!("a time to live has 1 to {TTL_SECONDS_MAX} seconds, not {seconds}")))
        }
        seconds => Ok(seconds.map(Duration::from_secs)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_borrowed_unless_they_have_escapes() {
        let texts: Texts<'_> = serde_json::from_str(r#"["plain", "a\nb"]"#).unwrap();
        assert!(matches!(texts.texts[0], Cow::Borrowed("plain")));
        assert_eq!((&*texts.texts[1], texts.count), ("a\nb", 2));
        assert_eq!(serde_json::from_str::<Texts<'_>>(r#""""#).unwrap().texts, [""]);
        assert!(serde_json::from_str::<Texts<'_>>(r#"[null]"#).is_err());
    }

    #[test]
    fn items_past_the_ceiling_are_counted_and_not_kept() {
        let body = format!("[{}\"\"]", "\"\",".repeat(BATCH_TEXTS_CEILING + 4));
        let texts: Texts<'_> = serde_json::from_str(&body).unwrap();
        assert_eq!((texts.texts.len(), texts.count), (BATCH_TEXTS_CEILING, BATCH_TEXTS_CEILING + 5));
        let body = format!("[{}[1]]", "[],".repeat(BATCH_TEXTS_CEILING));
        let Ok(OpenAiInput::Tokens { sequences, count }) = serde_json::from_str(&body) else { panic!() };
        assert_eq!((sequences.len(), count), (BATCH_TEXTS_CEILING, BATCH_TEXTS_CEILING + 1));
    }

    #[test]
    fn a_payload_is_kept_as_it_was_sent_and_a_list_has_one_for_each_input() {
        let parse = |json| serde_json::from_str::<Payloads<'_>>(json);
        let whole = parse(r#"{"n": 12345678901234567890123, "a":1.50}"#).unwrap();
        let kept = payload(Some(&whole), 3).unwrap();
        assert_eq!((kept.of(0), kept.of(2)), (kept.of(1), Some(r#"{"n": 12345678901234567890123, "a":1.50}"#)));
        let list = parse(r#"[1, null, [2]]"#).unwrap();
        let kept = payload(Some(&list), 3).unwrap();
        assert_eq!([kept.of(0), kept.of(1), kept.of(2), kept.of(3)], [Some("1"), None, Some("[2]"), None]);
        assert!(payload(Some(&list), 2).unwrap_err().to_string().contains("one for each input: 2, not 3"));
        let long = format!("[1, \"{}\"]", "x".repeat(PAYLOAD_BYTES_MAX - 1));
        let error = payload(Some(&parse(&long).unwrap()), 2).unwrap_err().to_string();
        assert!(error.starts_with("payload[1]: ") && error.contains("at most 4096 bytes"), "{error}");
        let deep = format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200));
        assert!(payload(Some(&parse(&deep).unwrap()), 1).unwrap_err().to_string().starts_with("payload: recursion"));
        assert_eq!(payload(None, 3).unwrap().of(0), None);
    }

    #[test]
    fn openai_input_has_four_forms() {
        let parse = |body| serde_json::from_str::<OpenAiInput<'_>>(body);
        assert!(matches!(parse(r#""a""#), Ok(OpenAiInput::Texts(texts)) if texts.count == 1));
        assert!(matches!(parse(r#"["a", "b"]"#), Ok(OpenAiInput::Texts(texts)) if texts.count == 2));
        let ids = |body, expected: &[&[u32]]| match parse(body) {
            Ok(OpenAiInput::Tokens { sequences, .. }) => assert_eq!(sequences, expected),
            other => panic!("{other:?}"),
        };
        ids("[1, 2]", &[&[1, 2]]);
        ids("[[1, 2], [3]]", &[&[1, 2], &[3]]);
        for mixed in [r#"["a", 1]"#, r#"[1, "a"]"#, "[[1], 2]", "[-1]", "[1.5]", "[4294967296]", "{}", "null"] {
            assert!(parse(mixed).is_err(), "{mixed}");
        }
    }
}

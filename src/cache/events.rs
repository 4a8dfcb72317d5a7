//! What an event invalidates: rules that say so, and the invalidations that they make of an event.
//!
//! ```text
//! {"type": "document.updated", "subject": "7"} ─► rules whose pattern matches the type ─► tags = ["doc:{subject}"] ─► tags = ["doc:7"]
//! ```
//!
//! A rule's texts are templates: `{type}`, `{subject}`, `{id}`, `{source}` and `{data.NAME…}` stand for what the event says, `{{` and `}}`
//! for braces. An event that lacks what a rule needs is refused, and so is one that would put a wildcard into a pattern: an
//! event widens no rule.
//!
//! Pure: invalidates nothing itself.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::invalidate::{Invalidation, InvalidationMode};
use crate::domain::{Namespace, Pattern};

/// Something that has happened elsewhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    /// What, as `document.updated`.
    pub kind: String,
    /// To what.
    pub subject: Option<String>,
    /// What the event is called where it comes from.
    pub id: Option<String>,
    /// Where it comes from.
    pub source: Option<String>,
    /// All else that is said of it: an object, or nothing.
    pub data: Value,
}

/// A rule as written down.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventRule {
    /// A pattern of the events' types: `*` stands for any characters, `?` for one.
    pub on: String,
    /// Entries with one of these tags; templates.
    pub tags: Vec<String>,
    /// Entries with a tag that matches; a template of a pattern.
    pub tag_glob: Option<String>,
    /// Entries of this namespace; a template.
    pub namespace: Option<String>,
    /// Entries of this model, by name or fingerprint; a template.
    pub model: Option<String>,
    /// Entries older than this.
    pub older_than: Option<Duration>,
    /// What is done to them.
    pub mode: InvalidationMode,
}

/// Why rules cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rule {number} for events (on = {on:?}): {problem}")]
pub struct EventRuleError {
    /// Which of the rules, from 1 on.
    pub number: usize,
    /// Its pattern.
    pub on: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Why an event cannot be handled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// A rule needs what the event does not say.
    #[error("an event {kind:?} has to say {{{placeholder}}}: the rule on = {on:?} needs it, as text or a number")]
    Lacks {
        /// The event's type.
        kind: String,
        /// What is missing.
        placeholder: String,
        /// The rule's pattern.
        on: String,
    },
    /// A wildcard where none may come from outside.
    #[error("{value:?} cannot stand in a pattern: * and ? are the rule's to say (on = {on:?})")]
    Wildcard {
        /// What the event says.
        value: String,
        /// The rule's pattern.
        on: String,
    },
    /// What comes of a template is not a namespace.
    #[error("the rule on = {on:?}: {problem}")]
    Namespace {
        /// The rule's pattern.
        on: String,
        /// What is wrong.
        problem: String,
    },
}

/// What an event comes to for one rule.
#[derive(Clone, Debug)]
pub struct Reaction {
    /// Of which model, if of one.
    pub model: Option<String>,
    /// Which entries, and what is done to them.
    pub invalidation: Invalidation,
}

/// Checked rules, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct EventRules(Vec<Checked>);

#[derive(Clone, Debug)]
struct Checked {
    on: Pattern,
    tags: Vec<Template>,
    tag_glob: Option<Template>,
    namespace: Option<Template>,
    model: Option<Template>,
    older_than: Option<Duration>,
    mode: InvalidationMode,
}

impl EventRules {
    /// Checks rules, in their order.
    ///
    /// # Errors
    /// When a rule chooses no entries, or a template is none: the error says which rule's.
    pub fn new(rules: &[EventRule]) -> Result<Self, EventRuleError> {
        let check = |(index, rule): (usize, &EventRule)| {
            Checked::new(rule).map_err(|problem| EventRuleError { number: index + 1, on: rule.on.clone(), problem })
        };
        Ok(Self(rules.iter().enumerate().map(check).collect::<Result<_, _>>()?))
    }

    /// What is to be done for an event, in the rules' order.
    ///
    /// # Errors
    /// When the event lacks what a rule needs, or says what a rule cannot use.
    pub fn reactions(&self, event: &Event) -> Result<Vec<Reaction>, EventError> {
        self.0.iter().filter(|rule| rule.on.matches(&event.kind)).map(|rule| rule.reaction(event)).collect()
    }
}

impl Checked {
    fn new(rule: &EventRule) -> Result<Self, String> {
        let EventRule { on, tags, tag_glob, namespace, model, older_than, mode } = rule;
        if on.is_empty() {
            return Err("on is needed: a pattern of events' types, such as \"document.*\"".to_owned());
        }
        let chooses = tag_glob.is_some() || namespace.is_some() || model.is_some() || older_than.is_some();
        if tags.is_empty() && !chooses {
            return Err(
                "tags, tag_glob, namespace, model or older_than is needed, or it invalidates nothing".to_owned()
            );
        }
        let optional = |text: &Option<String>| text.as_deref().map(Template::new).transpose();
        Ok(Self {
            on: Pattern::new(on),
            tags: tags.iter().map(|text| Template::new(text)).collect::<Result<_, _>>()?,
            tag_glob: optional(tag_glob)?,
            namespace: optional(namespace)?,
            model: optional(model)?,
            older_than: *older_than,
            mode: *mode,
        })
    }

    fn reaction(&self, event: &Event) -> Result<Reaction, EventError> {
        let on = self.on.as_str();
        let optional =
            |template: &Option<Template>| template.as_ref().map(|template| template.fill(event, on)).transpose();
        let tags = self.tags.iter().map(|template| template.fill(event, on)).collect::<Result<Vec<_>, _>>()?;
        let wild = |value: &&String| value.contains(['*', '?']);
        if let Some(value) =
            self.tag_glob.iter().flat_map(|glob| glob.values(event)).collect::<Vec<_>>().iter().find(wild)
        {
            return Err(EventError::Wildcard { value: value.clone(), on: on.to_owned() });
        }
        let namespace = optional(&self.namespace)?;
        let namespace = namespace.map(|name| Namespace::qualified(&name)).transpose();
        let problem = |error: crate::domain::NamespaceError| error.to_string();
        let namespace =
            namespace.map_err(|error| EventError::Namespace { on: on.to_owned(), problem: problem(error) })?;
        let model = optional(&self.model)?;
        let invalidation = Invalidation {
            tags: (!tags.is_empty()).then_some(tags),
            tag_glob: optional(&self.tag_glob)?.map(|glob| Pattern::new(&glob)),
            namespace,
            older_than: self.older_than,
            all: model.is_some(),
            mode: self.mode,
            ..Invalidation::default()
        };
        Ok(Reaction { model, invalidation })
    }
}

/// A text with gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// A name, or several from the outside to the inside.
    Gap(String),
}

impl Template {
    fn new(text: &str) -> Result<Self, String> {
        let known = "{type}, {subject}, {id}, {source} and {data.NAME} are known";
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let (brace, after) = rest[at..].split_at(1);
            if let Some(after) = after.strip_prefix(brace) {
                literal.push_str(brace);
                rest = after;
                continue;
            }
            let gap = if brace == "{" { after.split_once('}') } else { None };
            let Some((name, after)) = gap else {
                return Err(format!("{text:?} has a brace without its other; write {{{{ or }}}} for a brace itself"));
            };
            let is_of_data =
                name.strip_prefix("data.").is_some_and(|path| path.split('.').all(|part| !part.is_empty()));
            if !(["type", "subject", "id", "source"].contains(&name) || is_of_data) {
                return Err(format!("{{{name}}} in {text:?} stands for nothing: {known}"));
            }
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Gap(name.to_owned()));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        if pieces.is_empty() {
            return Err("an empty text chooses nothing".to_owned());
        }
        Ok(Self(pieces))
    }

    fn fill(&self, event: &Event, on: &str) -> Result<String, EventError> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Gap(name) => text.push_str(&event.said(name).ok_or_else(|| EventError::Lacks {
                    kind: event.kind.clone(),
                    placeholder: name.clone(),
                    on: on.to_owned(),
                })?),
            }
        }
        Ok(text)
    }

    /// What the event puts into the gaps.
    fn values(&self, event: &Event) -> Vec<String> {
        let gaps = self.0.iter().filter_map(|piece| match piece {
            Piece::Literal(_) => None,
            Piece::Gap(name) => event.said(name),
        });
        gaps.collect()
    }
}

/// An event as JSON, where it stands by itself.
#[derive(Deserialize)]
struct Written {
    #[serde(rename = "type")]
    kind: String,
    subject: Option<String>,
    id: Option<String>,
    source: Option<String>,
    #[serde(default)]
    data: Value,
}

impl Event {
    /// The event that an entry of a stream says: as JSON, ours or a CloudEvent's, in the field `event`; or in fields named as an event's
    /// parts, of which `data` is JSON. Other fields are passed over.
    ///
    /// # Errors
    /// When it says none, naming the field at fault.
    pub fn from_fields(fields: &[(String, Vec<u8>)]) -> Result<Self, String> {
        let bytes = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_slice());
        let event = match bytes("event") {
            Some(json) => {
                let written: Written = serde_json::from_slice(json).map_err(|error| format!("event: {error}"))?;
                let Written { kind, subject, id, source, data } = written;
                Self { kind, subject, id, source, data }
            }
            None => {
                let text = |name: &str| {
                    let text = bytes(name).map(|bytes| String::from_utf8(bytes.to_vec())).transpose();
                    text.map_err(|_| format!("{name}: it is not UTF-8"))
                };
                let kind = text("type")?.ok_or("type: neither it nor the field event is there")?;
                let data = bytes("data").map(serde_json::from_slice).transpose();
                let data = data.map_err(|error| format!("data: {error}"))?.unwrap_or_default();
                Self { kind, subject: text("subject")?, id: text("id")?, source: text("source")?, data }
            }
        };
        if event.kind.is_empty() { Err("type: a type is not empty".to_owned()) } else { Ok(event) }
    }

    /// What the event says of a placeholder, if it is a text that is not empty, a number, true or false.
    fn said(&self, placeholder: &str) -> Option<String> {
        let said = match placeholder {
            "type" => Some(self.kind.clone()),
            "subject" => self.subject.clone(),
            "id" => self.id.clone(),
            "source" => self.source.clone(),
            path => {
                let inside = |value: Option<&'_ Value>| match value? {
                    Value::String(text) => Some(text.clone()),
                    other @ (Value::Number(_) | Value::Bool(_)) => Some(other.to_string()),
                    Value::Null | Value::Array(_) | Value::Object(_) => None,
                };
                inside(path.split('.').skip(1).try_fold(&self.data, |value, name| value.get(name)))
            }
        };
        said.filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: &str, subject: &str) -> Event {
        Event { kind: kind.to_owned(), subject: Some(subject.to_owned()), ..Event::default() }
    }

    fn rule(on: &str, tag: &str) -> EventRule {
        EventRule { on: on.to_owned(), tags: vec![tag.to_owned()], ..EventRule::default() }
    }

    fn rules(rules: &[EventRule]) -> EventRules {
        EventRules::new(rules).unwrap()
    }

    #[test]
    fn every_rule_whose_pattern_matches_the_type_reacts_in_order() {
        let rules = rules(&[
            rule("document.*", "doc:{subject}"),
            rule("query.*", "query:{subject}"),
            EventRule { mode: InvalidationMode::Soft, ..rule("*", "of:{type}/{{{subject}}}") },
        ]);
        let reactions = rules.reactions(&event("document.updated", "7")).unwrap();
        let tags: Vec<_> = reactions.iter().map(|reaction| reaction.invalidation.tags.clone().unwrap()).collect();
        assert_eq!(tags, [["doc:7"], ["of:document.updated/{7}"]]);
        let modes: Vec<_> = reactions.iter().map(|reaction| reaction.invalidation.mode).collect();
        assert_eq!(modes, [InvalidationMode::Hard, InvalidationMode::Soft]);
        assert!(reactions.iter().all(|reaction| !reaction.invalidation.all && reaction.model.is_none()));
    }

    #[test]
    fn templates_reach_into_the_data_and_choose_by_everything_there_is() {
        let rules = rules(&[EventRule {
            on: "model.replaced".to_owned(),
            namespace: Some("team-{data.team.id}".to_owned()),
            model: Some("{data.model}".to_owned()),
            tag_glob: Some("{source}/*".to_owned()),
            older_than: Some(Duration::from_secs(60)),
            ..EventRule::default()
        }]);
        let event = Event {
            kind: "model.replaced".to_owned(),
            source: Some("wiki".to_owned()),
            data: json!({ "team": { "id": 12 }, "model": "e5" }),
            ..Event::default()
        };
        let [Reaction { model, invalidation }] = &rules.reactions(&event).unwrap()[..] else { panic!() };
        assert_eq!(model.as_deref(), Some("e5"));
        assert!(invalidation.all && invalidation.tags.is_none());
        assert_eq!(invalidation.namespace.as_ref().unwrap().as_str(), "team-12");
        assert_eq!(invalidation.tag_glob.as_ref().unwrap().as_str(), "wiki/*");
        assert_eq!(invalidation.older_than, Some(Duration::from_secs(60)));
    }

    #[test]
    fn an_event_that_lacks_what_a_rule_needs_is_refused_by_name() {
        let rules = rules(&[rule("a", "x:{data.list}"), rule("b", "x:{subject}")]);
        let lacks = |event: &Event| match rules.reactions(event) {
            Err(EventError::Lacks { placeholder, .. }) => placeholder,
            other => panic!("{other:?}"),
        };
        for data in [json!({ "list": [1] }), json!({ "list": null }), json!(7), Value::Null, json!({ "list": "" })] {
            assert_eq!(lacks(&Event { data, ..event("a", "s") }), "data.list");
        }
        assert_eq!(lacks(&event("b", "")), "subject");
        assert!(rules.reactions(&event("c", "")).unwrap().is_empty());
    }

    #[test]
    fn an_event_is_read_from_the_fields_of_a_stream() {
        let fields = |pairs: &[(&str, &str)]| -> Vec<(String, Vec<u8>)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
        };
        let expected = Event { data: json!({ "n": 1 }), ..event("a", "s") };
        let flat = [("type", "a"), ("subject", "s"), ("data", r#"{"n": 1}"#), ("more", "x")];
        let whole = [("event", r#"{"specversion": "1.0", "type": "a", "subject": "s", "data": {"n": 1}}"#)];
        for pairs in [&flat[..], &whole[..]] {
            assert_eq!(Event::from_fields(&fields(pairs)).unwrap(), expected);
        }
        for (pairs, says) in [
            (&[("subject", "s")][..], "type"),
            (&[("type", "")], "type"),
            (&[("type", "a"), ("data", "{")], "data"),
            (&[("event", "[]")], "event"),
            (&[("event", r#"{"subject": "s"}"#)], "type"),
        ] {
            let error = Event::from_fields(&fields(pairs)).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn an_event_does_not_widen_a_pattern() {
        let glob =
            EventRule { on: "a".to_owned(), tag_glob: Some("doc:{subject}/*".to_owned()), ..EventRule::default() };
        let rules = rules(&[glob]);
        assert!(rules.reactions(&event("a", "7")).is_ok());
        for subject in ["*", "7?", "a*b"] {
            assert!(matches!(rules.reactions(&event("a", subject)), Err(EventError::Wildcard { .. })));
        }
        let named = EventRules::new(&[EventRule {
            on: "a".to_owned(),
            namespace: Some("{subject}".to_owned()),
            ..EventRule::default()
        }]);
        assert!(matches!(named.unwrap().reactions(&event("a", "no spaces")), Err(EventError::Namespace { .. })));
    }

    #[test]
    fn rules_that_say_nothing_or_name_what_is_not_there_are_refused_at_the_start() {
        for (bad, says) in [
            (EventRule { on: "a".to_owned(), ..EventRule::default() }, "invalidates nothing"),
            (rule("", "x"), "on is needed"),
            (rule("a", "x:{subjekt}"), "{subjekt}"),
            (rule("a", "x:{subject"), "brace"),
            (rule("a", "x:subject}"), "brace"),
            (rule("a", "{data.}"), "{data.}"),
            (rule("a", ""), "empty"),
        ] {
            let error = EventRules::new(&[rule("fine", "x"), bad]).unwrap_err();
            assert_eq!(error.number, 2);
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}

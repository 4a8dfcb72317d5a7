//! The table `[upstream]` of a manifest: where texts are sent, how many, how often, and what is done when the model there changes.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::{FingerprintBuilder, ModelVersion};

/// An embedding model behind somebody else's HTTP endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// What the endpoint speaks.
    pub dialect: Dialect,
    /// What the routes stand under: with `/v1` for most that speak OpenAI's dialect.
    pub base_url: String,
    /// The environment variable that holds the key; no key is sent if absent. The key itself is never written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_variable: Option<String>,
    /// The header that carries the key as it is; `Authorization: Bearer` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_header: Option<String>,
    /// The model's name there; text-embeddings-inference needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Which version of the model this is, in whatever words: raise it when the model there changes, and no old vector is answered.
    pub version: String,
    /// The most characters read of a text. What is counted as tokens of such a model are characters.
    pub max_characters: usize,
    /// More fields of each request, such as `dimensions` or `input_type`; a part of the fingerprint.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub body: BTreeMap<String, Value>,
    /// How vectors are asked for in OpenAI's dialect; either is read.
    #[serde(default)]
    pub encoding: Encoding,
    /// The most texts in one request.
    #[serde(default = "Upstream::batch_texts_max")]
    pub batch_texts_max: usize,
    /// The most characters in one request. One longer text goes alone.
    #[serde(default = "Upstream::batch_characters_max")]
    pub batch_characters_max: usize,
    /// The most requests at once.
    #[serde(default = "Upstream::requests_parallel")]
    pub requests_parallel: usize,
    /// The most requests begun in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<f64>,
    /// The most tokens sent in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// The most tokens sent in a day (UTC), counted across restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_tokens_per_day: Option<u64>,
    /// How long one try may take.
    #[serde(default = "Upstream::timeout_seconds")]
    pub timeout_seconds: f64,
    /// How long all tries of a request, and the waits between them, may take.
    #[serde(default = "Upstream::deadline_seconds")]
    pub deadline_seconds: f64,
    /// How often a request that failed for a passing reason is tried again.
    #[serde(default = "Upstream::retries")]
    pub retries: u32,
    /// The longest wait before the first of these; each later one may be twice as long.
    #[serde(default = "Upstream::backoff_seconds")]
    pub backoff_seconds: f64,
    /// A text whose vector is compared with the one it had at first, at the start and before computing when `canary_seconds` have passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<String>,
    /// The least cosine at which the vector counts as the same.
    #[serde(default = "Upstream::canary_min_similarity")]
    pub canary_min_similarity: f64,
    /// How long the canary is trusted.
    #[serde(default = "Upstream::canary_seconds")]
    pub canary_seconds: f64,
    /// What is done when it is another.
    #[serde(default)]
    pub on_canary_change: OnChange,
}

/// What an endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// `POST /embeddings`, as OpenAI's API and the many that follow it.
    #[serde(rename = "openai")]
    OpenAi,
    /// `POST /embed`, as text-embeddings-inference.
    Tei,
}

impl Dialect {
    /// Its name in manifests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Tei => "tei",
        }
    }
}

/// How vectors are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Four bytes a number, in base64.
    #[default]
    Base64,
    /// Numbers in JSON; nothing about it is sent, because some endpoints refuse the word.
    Float,
}

/// What is done when the canary's vector is another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnChange {
    /// It is said, and computing goes on.
    #[default]
    Alert,
    /// It is said, and nothing more is computed, so that no vector of the new model is stored among the old.
    Refuse,
    /// As refused while running; the next start takes a new fingerprint.
    Switch,
}

impl Upstream {
    /// What text-embeddings-inference allows if it is not told otherwise.
    fn batch_texts_max() -> usize {
        32
    }

    /// About 50,000 tokens of English: a sixth of what OpenAI takes in one request.
    fn batch_characters_max() -> usize {
        200_000
    }

    fn requests_parallel() -> usize {
        4
    }

    fn timeout_seconds() -> f64 {
        30.0
    }

    /// Somewhat less than the service's own `request_timeout_seconds`, so that the cause is told and not the time alone.
    fn deadline_seconds() -> f64 {
        50.0
    }

    fn retries() -> u32 {
        4
    }

    fn backoff_seconds() -> f64 {
        0.5
    }

    fn canary_min_similarity() -> f64 {
        0.9999
    }

    fn canary_seconds() -> f64 {
        3600.0
    }

    /// Says what is wrong with the table, if anything is.
    pub(in crate::engine) fn fault(&self) -> Option<String> {
        let host = match self.base_url.split_once("://") {
            Some(("http" | "https", rest)) => rest.split(['/', '?', '#']).next().unwrap_or_default(),
            _ => return Some(format!("base_url {:?} does not begin with http:// or https://", self.base_url)),
        };
        let positive = |name, value: f64| {
            (!(value > 0.0 && value <= 1e6))
                .then(|| format!("{name} is {value}, which is not above 0 and at most 1000000"))
        };
        let at_least_one = |name, value: usize| (value == 0).then(|| format!("{name} is 0: at least 1 is needed"));
        let own = ["input", "inputs", "model", "encoding_format"];
        let faults = [
            (host.is_empty() || self.base_url.contains(char::is_whitespace)).then(|| "base_url names no host".to_owned()),
            host.contains('@').then(|| "base_url holds a user or password: put the key into a variable, and its name into key_variable".to_owned()),
            self.base_url.contains(['?', '#']).then(|| "base_url has a query or fragment: it is what the routes stand under".to_owned()),
            self.key_variable.as_ref().filter(|name| !is_variable(name)).map(|_| {
                // Its value is not shown: it may be the key itself.
                "key_variable is not the name of an environment variable (letters, digits, _): the key itself does not belong here".to_owned()
            }),
            self.key_header.as_ref().filter(|name| !is_header(name)).map(|name| format!("key_header {name:?} is not the name of a header")),
            (self.key_header.is_some() && self.key_variable.is_none()).then(|| "key_header is for a key: name its variable in key_variable".to_owned()),
            (self.dialect == Dialect::OpenAi && self.model.is_none()).then(|| "model is missing: say what the endpoint calls it".to_owned()),
            self.version.trim().is_empty().then(|| "version is empty: say which version of the model this is".to_owned()),
            self.body.keys().find(|key| own.contains(&key.as_str())).map(|key| format!("body has {key:?}, which is written from the rest of the manifest")),
            at_least_one("max_characters", self.max_characters),
            at_least_one("batch_texts_max", self.batch_texts_max),
            at_least_one("batch_characters_max", self.batch_characters_max),
            at_least_one("requests_parallel", self.requests_parallel),
            (self.requests_parallel > 64).then(|| format!("requests_parallel is {}: 64 is the most", self.requests_parallel)),
            self.requests_per_second.and_then(|value| positive("requests_per_second", value)),
            self.tokens_per_minute.filter(|&value| value == 0).map(|_| "tokens_per_minute is 0: leave it out for no limit".to_owned()),
            self.budget_tokens_per_day.filter(|&value| value == 0).map(|_| "budget_tokens_per_day is 0: leave it out for no limit".to_owned()),
            positive("timeout_seconds", self.timeout_seconds),
            positive("deadline_seconds", self.deadline_seconds),
            positive("backoff_seconds", self.backoff_seconds),
            positive("canary_seconds", self.canary_seconds),
            (self.retries > 20).then(|| format!("retries is {}: 20 is the most", self.retries)),
            self.canary.as_ref().filter(|text| text.trim().is_empty()).map(|_| "canary is empty: leave it out for none".to_owned()),
            (!(self.canary_min_similarity > 0.0 && self.canary_min_similarity <= 1.0))
                .then(|| format!("canary_min_similarity is {}, which is not above 0 and at most 1", self.canary_min_similarity)),
            (self.canary.is_none() && self.on_canary_change != OnChange::Alert)
                .then(|| "on_canary_change needs a canary: give a text of a sentence or two".to_owned()),
        ];
        faults.into_iter().flatten().next().map(|fault| format!("[upstream] {fault}"))
    }

    /// What the endpoint calls the model, or nothing.
    pub(in crate::engine) fn model(&self) -> &str {
        self.model.as_deref().unwrap_or_default()
    }

    /// The fingerprint: of what is declared, because nothing else can be known, and of `mark`, which a switch changes. Not of
    /// where the endpoint is: the same model behind another address, a proxy or a region, gives the same vectors.
    pub(super) fn fingerprint(&self, dims: usize, mark: Option<&str>) -> ModelVersion {
        let body = serde_json::to_vec(&self.body).expect("JSON values have string keys");
        let fields = FingerprintBuilder::new()
            .field("upstream dialect", self.dialect.as_str().as_bytes())
            .field("upstream model", self.model().as_bytes())
            .field("upstream version", self.version.as_bytes())
            .field("upstream body", &body)
            .field("upstream dims", &(dims as u64).to_le_bytes());
        match mark {
            Some(mark) => fields.field("upstream mark", mark.as_bytes()).finish(),
            None => fields.finish(),
        }
    }

    /// Whether what is sent can be read on its way: not encrypted, and not to this machine.
    pub(super) fn goes_in_the_clear(&self) -> bool {
        let Some(rest) = self.base_url.strip_prefix("http://") else { return false };
        !["127.", "localhost", "[::1]"].iter().any(|local| rest.starts_with(local))
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout_seconds)
    }

    pub(super) fn deadline(&self) -> Duration {
        Duration::from_secs_f64(self.deadline_seconds)
    }

    pub(super) fn backoff(&self) -> Duration {
        Duration::from_secs_f64(self.backoff_seconds)
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn is_header(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::engine::upstream) fn upstream(more: &str) -> Upstream {
        let least = "dialect = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\nmodel = \"m\"\nversion = \"1\"\nmax_characters = 100\n";
        toml::from_str(&format!("{least}{more}")).unwrap()
    }

    #[test]
    fn a_table_that_makes_no_sense_is_refused_with_what_to_do() {
        let mut table = upstream("");
        assert_eq!(table.fault(), None);
        table.base_url = "https://user:secret@host/v1".to_owned();
        let fault = table.fault().unwrap();
        assert!(fault.contains("key_variable") && !fault.contains("secret"), "{fault}");
        table = upstream("key_variable = \"sk-proj-abc\"");
        let fault = table.fault().unwrap();
        assert!(fault.contains("not the name") && !fault.contains("sk-proj"), "{fault}");
        for (line, word) in [
            ("timeout_seconds = 0.0", "timeout_seconds"),
            ("requests_per_second = nan", "requests_per_second"),
            ("budget_tokens_per_day = 0", "budget"),
            ("batch_texts_max = 0", "batch_texts_max"),
            ("on_canary_change = \"refuse\"", "needs a canary"),
            ("canary = \"c\"\ncanary_min_similarity = 1.5", "canary_min_similarity"),
            ("key_header = \"api-key\"", "key_variable"),
            ("body = { input = \"x\" }", "input"),
        ] {
            let fault = upstream(line).fault().unwrap_or_else(|| panic!("{line} is taken"));
            assert!(fault.contains(word), "{line}: {fault}");
        }
        for url in ["ftp://host", "host/v1", "http://", "https://host/v1?api-version=1"] {
            let table = Upstream { base_url: url.to_owned(), ..upstream("") };
            assert!(table.fault().unwrap().contains("base_url"), "{url}");
        }
        let nameless = Upstream { model: None, ..upstream("") };
        assert!(nameless.fault().unwrap().contains("model is missing"));
        assert_eq!(Upstream { dialect: Dialect::Tei, ..nameless }.fault(), None);
    }

    #[test]
    fn only_what_leaves_this_machine_unencrypted_goes_in_the_clear() {
        let clear = |url: &str| Upstream { base_url: url.to_owned(), ..upstream("") }.goes_in_the_clear();
        assert!(clear("http://10.0.0.1/v1"));
        assert!(!clear("https://10.0.0.1/v1") && !clear("http://127.0.0.1:8080") && !clear("http://localhost/v1"));
    }

    #[test]
    fn the_fingerprint_is_of_what_changes_vectors_and_not_of_where_they_come_from() {
        let base = upstream("");
        let elsewhere = Upstream { base_url: "https://proxy/v1".to_owned(), encoding: Encoding::Float, ..base.clone() };
        assert_eq!(base.fingerprint(8, None), elsewhere.fingerprint(8, None));
        let raised = Upstream { version: "2".to_owned(), ..base.clone() };
        let shorter = upstream("body = { dimensions = 4 }");
        let all = [
            base.fingerprint(8, None),
            base.fingerprint(8, Some("a")),
            base.fingerprint(4, None),
            raised.fingerprint(8, None),
            shorter.fingerprint(8, None),
        ];
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
    }
}

//! A pattern over names: tags, namespaces.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use wildmatch::WildMatch;

/// `*` stands for any characters, also none; `?` for exactly one; everything else for itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    text: String,
    compiled: WildMatch,
}

impl Pattern {
    /// Every text is a pattern.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self { text: pattern.to_owned(), compiled: WildMatch::new(pattern) }
    }

    /// Whether a name fits, from its first character to its last.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.compiled.matches(name)
    }

    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What every name that fits begins with.
    #[must_use]
    pub fn literal_prefix(&self) -> &str {
        self.text.split(['*', '?']).next().unwrap_or_default()
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.text.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::new(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_crosses_slashes_and_a_question_mark_is_one_character() {
        let pattern = Pattern::new("doc:reports/*");
        assert!(pattern.matches("doc:reports/2024/june") && pattern.matches("doc:reports/"));
        assert!(!pattern.matches("doc:report") && !pattern.matches("my doc:reports/x"));
        assert_eq!(pattern.literal_prefix(), "doc:reports/");
        assert!(Pattern::new("v?").matches("vé") && !Pattern::new("v?").matches("v"));
    }
}

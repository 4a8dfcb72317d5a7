//! A text as the model reads it.

/// Which end of a long text is cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TruncationDirection {
    /// The end is cut.
    #[default]
    Right,
    /// The beginning is cut.
    Left,
}

/// How long a text may be, and what is cut off if it is longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Truncation {
    /// The end that is cut.
    pub direction: TruncationDirection,
    /// The most tokens kept, special tokens included.
    pub max_tokens: usize,
}

/// A text's token ids, prompt and special tokens included, after truncation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The ids.
    pub ids: Box<[u32]>,
    /// How many there were before truncation.
    pub count_before_truncation: usize,
}

impl Tokens {
    /// Whether the text was cut.
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.count_before_truncation > self.ids.len()
    }
}

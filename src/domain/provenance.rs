//! Where an answered vector came from.

/// How one text of a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// From the store, by the text's key.
    Hit,
    /// From the store, by its token ids: another spelling of a cached text, with the same vector.
    TokenHit,
    /// Computed for another request, or for an earlier duplicate in this one, that was already on its way.
    Joined,
    /// From the tier shared with other machines.
    Remote,
    /// A near-duplicate's vector, within the bound the caller allowed.
    Reused,
    /// By the model, for this text.
    Computed,
}

impl Status {
    /// Every status, in the order metrics list them.
    pub const ALL: [Self; 6] = [Self::Hit, Self::TokenHit, Self::Joined, Self::Remote, Self::Reused, Self::Computed];

    /// The name used in answers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::TokenHit => "token_hit",
            Self::Joined => "joined",
            Self::Remote => "remote",
            Self::Reused => "reused",
            Self::Computed => "computed",
        }
    }
}

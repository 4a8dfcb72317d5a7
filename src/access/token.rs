//! Tokens: what a client sends to say who it is.
//!
//! A token is 32 random bytes, so nobody guesses one, and a fast hash keeps it as well as a slow one would: argon2 and its like make
//! guessing dear where secrets are guessable, which these are not, and would let anybody keep our processors busy by sending junk.

use std::fmt;

use base64_simd::URL_SAFE_NO_PAD;

/// What the hash is keyed with, so that it is no hash of anything else.
const HASH_KEY: &[u8; 32] = b"vecmemo 2026 hash of an API key\0";

/// What tokens begin with, so that they are known for what they are wherever they turn up.
const PREFIX: &str = "vm_";

const RANDOM_BYTES: usize = 32;

/// A token. It is shown once, to who made it.
pub struct Token(String);

/// What is kept of a token. Two are compared in constant time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash(blake3::Hash);

impl Token {
    /// A new one, of the system's randomness.
    ///
    /// # Errors
    /// When the system has none to give.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; RANDOM_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode_to_string(bytes))))
    }

    /// The token itself, to be given to who will use it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is kept of it.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(self.0.as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl TokenHash {
    /// Of what a client has sent.
    #[must_use]
    pub fn of(token: &[u8]) -> Self {
        Self(blake3::keyed_hash(HASH_KEY, token))
    }

    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn parse(digits: &str) -> Option<Self> {
        blake3::Hash::from_hex(digits).ok().map(Self)
    }

    /// Its first bytes: where it is looked for. They say nothing of the token.
    pub(super) fn place(&self) -> u64 {
        u64::from_le_bytes(*self.0.as_bytes().first_chunk().expect("a hash has 32 bytes"))
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_is_like_no_other_and_is_never_printed_by_accident() {
        let (one, other) = (Token::random().unwrap(), Token::random().unwrap());
        assert!(one.reveal().starts_with("vm_") && one.reveal().len() == 46, "{}", one.reveal());
        assert_ne!(one.reveal(), other.reveal());
        assert!(one.hash() != other.hash() && one.hash() == TokenHash::of(one.reveal().as_bytes()));
        assert_eq!(TokenHash::parse(&one.hash().to_string()), Some(one.hash()));
        assert_eq!(format!("{one:?} {:?}", one.hash()), "Token TokenHash");
        assert_eq!(TokenHash::parse("00"), None);
    }
}

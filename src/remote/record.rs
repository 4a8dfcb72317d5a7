//! The bytes of one record. `FORMAT.md` describes them.
//!
//! Promises: what [`Record::encode`] wrote is read back as it was, under the same key alone; any other bytes are a named
//! [`Flaw`], found before anything of their size is allocated. Never panics, whatever the bytes.

use half::f16;
use xxhash_rust::xxh3::Xxh3;

use crate::domain::{Key, TokenKey};

/// The longest record, in bytes: longer ones are neither written nor read.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

const MAGIC: [u8; 3] = *b"vmr";
const VERSION: u8 = 1;

// Where the fields stand: each begins where the one before it ends.
const FLAGS: usize = MAGIC.len() + 1;
const TAGS: usize = FLAGS + 2;
const DIMS: usize = TAGS + 2;
const TOKENS: usize = DIMS + 4;
const EPOCH: usize = TOKENS + 4;
const CREATED: usize = EPOCH + 8;
const EXPIRES: usize = CREATED + 4;
const NORM: usize = EXPIRES + 4;
const PAYLOAD: usize = NORM + 4;
const HEAD: usize = PAYLOAD + 4;
const CHECKSUM: usize = 16;

const TRUNCATED: u16 = 1;
const COPIED: u16 = 1 << 1;
const PINNED: u16 = 1 << 2;
const STALE: u16 = 1 << 3;
const REFRESH_AHEAD: u16 = 1 << 4;
const HAS_TOKEN_KEY: u16 = 1 << 5;
const HAS_PAYLOAD: u16 = 1 << 6;
const FLAGS_KNOWN: u16 = (1 << 7) - 1;

/// One embedding as it travels. All times are the tier's, in Unix seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// The unit vector, `dims` values.
    pub unit: Box<[f16]>,
    /// The length the vector had before it was scaled to one.
    pub norm: f32,
    /// How many tokens the text had.
    pub tokens: u32,
    /// Whether the text was cut to fit the model.
    pub truncated: bool,
    /// Whether the vector was taken over from another entry.
    pub copied: bool,
    /// Whether it is never evicted to make room, where it was computed.
    pub pinned: bool,
    /// Whether it is to be computed again when it is next asked for.
    pub stale: bool,
    /// Whether it is to be computed again shortly before it expires.
    pub refresh_ahead: bool,
    /// The newest invalidation that was known when its computing began. The tier writes what it is given with
    /// [`store`](super::Tier::store) here.
    pub epoch: u64,
    /// When it was computed.
    pub created: u32,
    /// When it ceases to be valid.
    pub expires: Option<u32>,
    /// The name of its token ids.
    pub token_key: Option<TokenKey>,
    /// Names it can be invalidated by.
    pub tags: Vec<String>,
    /// What the caller wants back with it: JSON.
    pub payload: Option<String>,
}

/// Why bytes are not the record that was asked for. Each is a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Flaw {
    /// Not begun like a record of ours.
    #[error("not a record of this program")]
    Foreign,
    /// Of a later version of the format, or with marks that this one does not know.
    #[error("a record of another version")]
    Version,
    /// Shorter than it says, longer, or over [`RECORD_BYTES_MAX`].
    #[error("a record of the wrong length")]
    Length,
    /// Changed since it was written, or written under another key.
    #[error("the checksum over record and key does not match")]
    Checksum,
    /// Of another length than the model's vectors have.
    #[error("a vector of another length")]
    Dims,
    /// A vector or a norm that is not finite, or has no direction.
    #[error("a vector that cannot be")]
    Vector,
    /// A tag or a payload that is not UTF-8.
    #[error("text that is not UTF-8")]
    Text,
}

impl Flaw {
    /// Every flaw, in the order figures list them.
    pub const ALL: [Self; 7] =
        [Self::Foreign, Self::Version, Self::Length, Self::Checksum, Self::Dims, Self::Vector, Self::Text];

    /// The name used in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Version => "version",
            Self::Length => "length",
            Self::Checksum => "checksum",
            Self::Dims => "dims",
            Self::Vector => "vector",
            Self::Text => "text",
        }
    }
}

impl Record {
    /// The bytes to keep under a key; `None` if they would be more than [`RECORD_BYTES_MAX`].
    #[must_use]
    pub fn encode(&self, key: &Key) -> Option<Vec<u8>> {
        let texts: usize = self.tags.iter().map(|tag| 2 + tag.len()).sum();
        let payload = self.payload.as_deref().unwrap_or_default();
        let token_key = if self.token_key.is_some() { 32 } else { 0 };
        let length = HEAD + token_key + 2 * self.unit.len() + texts + payload.len() + CHECKSUM;
        let tags = u16::try_from(self.tags.len()).ok()?;
        if length > RECORD_BYTES_MAX || self.tags.iter().any(|tag| tag.len() > usize::from(u16::MAX)) {
            return None;
        }
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(MAGIC);
        bytes.push(VERSION);
        bytes.extend(self.flags().to_le_bytes());
        bytes.extend(tags.to_le_bytes());
        bytes.extend((self.unit.len() as u32).to_le_bytes());
        bytes.extend(self.tokens.to_le_bytes());
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend(self.created.to_le_bytes());
        bytes.extend(self.expires.unwrap_or(0).to_le_bytes());
        bytes.extend(self.norm.to_le_bytes());
        bytes.extend((payload.len() as u32).to_le_bytes());
        if let Some(token_key) = &self.token_key {
            bytes.extend(token_key.as_bytes());
        }
        bytes.extend(self.unit.iter().flat_map(|value| value.to_le_bytes()));
        for tag in &self.tags {
            bytes.extend((tag.len() as u16).to_le_bytes());
            bytes.extend(tag.as_bytes());
        }
        bytes.extend(payload.as_bytes());
        let checksum = checksum(key, &bytes);
        bytes.extend(checksum);
        Some(bytes)
    }

    fn flags(&self) -> u16 {
        let marks = [
            (self.truncated, TRUNCATED),
            (self.copied, COPIED),
            (self.pinned, PINNED),
            (self.stale, STALE),
            (self.refresh_ahead, REFRESH_AHEAD),
            (self.token_key.is_some(), HAS_TOKEN_KEY),
            (self.payload.is_some(), HAS_PAYLOAD),
        ];
        marks.iter().filter(|(set, _)| *set).fold(0, |flags, (_, mark)| flags | mark)
    }

    /// Reads what was kept under a key.
    ///
    /// # Errors
    /// The first flaw found.
    pub fn decode(key: &Key, dims: usize, bytes: &[u8]) -> Result<Self, Flaw> {
        if !bytes.starts_with(&MAGIC) {
            return Err(Flaw::Foreign);
        }
        if bytes.get(MAGIC.len()) != Some(&VERSION) {
            return Err(Flaw::Version);
        }
        if !(HEAD + CHECKSUM..=RECORD_BYTES_MAX).contains(&bytes.len()) {
            return Err(Flaw::Length);
        }
        let (body, stated) = bytes.split_at(bytes.len() - CHECKSUM);
        if stated != checksum(key, body) {
            return Err(Flaw::Checksum);
        }
        let (head, rest) = body.split_at(HEAD);
        let flags = u16::from_le_bytes(field(head, FLAGS));
        let tags = u16::from_le_bytes(field(head, TAGS));
        let payload = u32::from_le_bytes(field(head, PAYLOAD)) as usize;
        let has = |mark: u16| flags & mark != 0;
        if flags & !FLAGS_KNOWN != 0 {
            return Err(Flaw::Version);
        }
        if u32::from_le_bytes(field(head, DIMS)) as usize != dims {
            return Err(Flaw::Dims);
        }
        let mut rest = Rest(rest);
        let token_key = match has(HAS_TOKEN_KEY) {
            true => Some(TokenKey::from_bytes(field(rest.take(32)?, 0))),
            false => None,
        };
        let unit = rest.take(dims.checked_mul(2).ok_or(Flaw::Length)?)?;
        let norm = f32::from_le_bytes(field(head, NORM));
        let unit: Box<[f16]> = unit.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]])).collect();
        if !(norm.is_normal() && norm > 0.0) || unit.iter().any(|value| !value.is_finite()) {
            return Err(Flaw::Vector);
        }
        if unit.iter().all(|value| value.to_bits() & 0x7fff == 0) {
            return Err(Flaw::Vector);
        }
        let tags = (0..tags)
            .map(|_| {
                let length = u16::from_le_bytes(field(rest.take(2)?, 0));
                text(rest.take(length.into())?)
            })
            .collect::<Result<Vec<String>, Flaw>>()?;
        let payload = text(rest.take(payload)?)?;
        if !rest.0.is_empty() || (!has(HAS_PAYLOAD) && !payload.is_empty()) {
            return Err(Flaw::Length);
        }
        Ok(Self {
            unit,
            norm,
            tokens: u32::from_le_bytes(field(head, TOKENS)),
            truncated: has(TRUNCATED),
            copied: has(COPIED),
            pinned: has(PINNED),
            stale: has(STALE),
            refresh_ahead: has(REFRESH_AHEAD),
            epoch: u64::from_le_bytes(field(head, EPOCH)),
            created: u32::from_le_bytes(field(head, CREATED)),
            expires: Some(u32::from_le_bytes(field(head, EXPIRES))).filter(|&time| time != 0),
            token_key,
            tags,
            payload: has(HAS_PAYLOAD).then_some(payload),
        })
    }
}

/// What has not been read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Flaw> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Flaw::Length)?;
        self.0 = rest;
        Ok(taken)
    }
}

/// The bytes of a field whose place has been checked.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

fn text(bytes: &[u8]) -> Result<String, Flaw> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Flaw::Text)
}

fn checksum(key: &Key, body: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = Xxh3::new();
    hasher.update(key.as_bytes());
    hasher.update(body);
    hasher.digest128().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: [u8; 32] = [7; 32];

    fn key() -> Key {
        Key::from_bytes(KEY)
    }

    fn full() -> Record {
        Record {
            unit: [0.6, -0.8, 0.0].map(f16::from_f32).into(),
            norm: 5.5,
            tokens: 12,
            truncated: true,
            pinned: true,
            epoch: u64::MAX - 1,
            created: 1_700_000_000,
            expires: Some(1_800_000_000),
            token_key: Some(TokenKey::from_bytes([9; 32])),
            tags: vec!["doc:ä".into(), String::new()],
            payload: Some("{\"id\":1}".into()),
            ..Record::default()
        }
    }

    fn resealed(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        bytes.truncate(bytes.len() - CHECKSUM);
        change(&mut bytes);
        let sum = checksum(&key(), &bytes);
        bytes.extend(sum);
        bytes
    }

    #[test]
    fn a_record_reads_back_as_it_was() {
        let plain = Record { unit: [1.0].map(f16::from_f32).into(), norm: 1.0, ..Record::default() };
        for record in [full(), plain] {
            let bytes = record.encode(&key()).unwrap();
            assert_eq!(Record::decode(&key(), record.unit.len(), &bytes), Ok(record));
        }
    }

    #[test]
    fn a_vector_of_384_values_takes_824_bytes() {
        let record = Record { unit: vec![f16::ONE; 384].into(), norm: 1.0, ..Record::default() };
        assert_eq!(record.encode(&key()).unwrap().len(), 824);
    }

    #[test]
    fn each_flaw_is_named() {
        let bytes = full().encode(&key()).unwrap();
        let decode = |bytes: &[u8]| Record::decode(&key(), 3, bytes).unwrap_err();
        let with = |at: usize, byte: u8| decode(&resealed(bytes.clone(), |bytes| bytes[at] = byte));
        assert_eq!(decode(b""), Flaw::Foreign);
        assert_eq!(decode(b"{\"v\":1}"), Flaw::Foreign);
        assert_eq!(with(3, 2), Flaw::Version);
        assert_eq!(with(FLAGS + 1, 0x80), Flaw::Version);
        assert_eq!(decode(&bytes[..HEAD]), Flaw::Length);
        assert_eq!(decode(&resealed(bytes.clone(), |bytes| bytes.push(0))), Flaw::Length);
        assert_eq!(with(TAGS, 9), Flaw::Length);
        assert_eq!(with(PAYLOAD + 3, 255), Flaw::Length);
        assert_eq!(Record::decode(&Key::from_bytes([8; 32]), 3, &bytes), Err(Flaw::Checksum));
        assert_eq!(Record::decode(&key(), 4, &bytes), Err(Flaw::Dims));
        assert_eq!(with(NORM + 3, 0xff), Flaw::Vector);
        assert_eq!(with(HEAD + 32 + 1, 0x7c), Flaw::Vector);
        let zero = Record { unit: vec![f16::NEG_ZERO; 3].into(), norm: 1.0, ..Record::default() };
        assert_eq!(decode(&zero.encode(&key()).unwrap()), Flaw::Vector);
        assert_eq!(with(bytes.len() - CHECKSUM - 1, 0xff), Flaw::Text);
    }

    #[test]
    fn what_would_be_too_long_is_not_encoded() {
        let mut record = full();
        record.payload = Some("x".repeat(RECORD_BYTES_MAX));
        assert_eq!(record.encode(&key()), None);
        let record = Record { tags: vec!["x".repeat(1 << 16)], ..full() };
        assert_eq!(record.encode(&key()), None);
    }

    proptest! {
        /// Sealed again after the change, so that what lies behind the checksum is reached.
        #[test]
        fn any_bytes_are_a_record_or_a_flaw(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in any::<prop::sample::Index>(),
            seal in any::<bool>(),
        ) {
            let mut bytes = full().encode(&key()).unwrap();
            bytes.truncate(bytes.len() - cut.index(8));
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if seal {
                bytes = resealed(bytes, |_| {});
            }
            if let Ok(record) = Record::decode(&key(), 3, &bytes) {
                prop_assert_eq!(record.encode(&key()).map(|bytes| bytes.len()), Some(bytes.len()));
                prop_assert!(seal || record == full());
            }
        }

        #[test]
        fn noise_is_never_a_record(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(Record::decode(&key(), 3, &bytes).is_err());
        }
    }
}

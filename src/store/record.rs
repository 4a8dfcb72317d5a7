//! The 64 bytes that make a row an entry: its key, its facts, and a checksum over both and the row.

use bytemuck::{Pod, Zeroable};
use half::f16;
use xxhash_rust::xxh3::{Xxh3Builder, xxh3_64_with_seed};

use super::config::{Entry, NewEntry};
use crate::domain::Key;

/// A record's size.
pub(super) const RECORD_BYTES: u64 = size_of::<Record>() as u64;
/// The largest sequence number: 40 bits.
pub(super) const SEQUENCE_MAX: u64 = (1 << 40) - 1;
/// The largest namespace number: 24 bits.
pub(super) const NAMESPACE_MAX: u32 = (1 << 24) - 1;

const STATE_LIVE: u8 = 1;
const FLAG_TRUNCATED: u8 = 1;
const FLAG_COPIED: u8 = 1 << 1;
const FLAG_TAGGED: u8 = 1 << 2;
const FLAG_PINNED: u8 = 1 << 3;
const FLAG_REFRESH_AHEAD: u8 = 1 << 4;
const FLAG_STALE: u8 = 1 << 5;
const FLAG_PAYLOAD: u8 = 1 << 6;
const NAMESPACE_BITS: u32 = 24;

#[cfg(target_endian = "big")]
compile_error!("the file is little-endian and read in place: a big-endian machine would need conversions");

/// As on disk, little-endian. All zero: a free slot.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Record {
    pub(super) key: Key,
    checksum: u64,
    /// The sequence in the upper 40 bits, the namespace in the lower 24.
    sequence_and_namespace: u64,
    pub(super) created: u32,
    /// Unix seconds; 0 = never.
    pub(super) expires: u32,
    norm: f32,
    /// How many tokens, 65,535 for more.
    tokens: u16,
    flags: u8,
    state: u8,
}

const _: () = assert!(size_of::<Record>() == 64);
const _: () = assert!(std::mem::offset_of!(Record, checksum) == 32);
const _: () = assert!(std::mem::offset_of!(Record, state) == 63);

impl Record {
    /// Everything but the sequence and the checksum, which [`Record::sealed`] adds.
    pub(super) fn new(entry: &NewEntry<'_>, namespace: u32, now: u32) -> Self {
        assert!(namespace <= NAMESPACE_MAX);
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        Self {
            key: entry.key,
            checksum: 0,
            sequence_and_namespace: u64::from(namespace),
            created: now,
            // An entry that expired in 1970 has expired all the same.
            expires: entry.expires.map_or(0, |expires| expires.max(1)),
            norm: entry.norm,
            tokens: u16::try_from(entry.tokens).unwrap_or(u16::MAX),
            flags: flag(entry.truncated, FLAG_TRUNCATED)
                | flag(entry.copied, FLAG_COPIED)
                | flag(!entry.tags.is_empty(), FLAG_TAGGED)
                | flag(entry.pinned, FLAG_PINNED)
                | flag(entry.refresh_ahead, FLAG_REFRESH_AHEAD)
                | flag(entry.stale, FLAG_STALE)
                | flag(entry.payload.is_some(), FLAG_PAYLOAD),
            state: STATE_LIVE,
        }
    }

    /// With its sequence number and the checksum over itself and its row.
    pub(super) fn sealed(mut self, sequence: u64, row: &[f16]) -> Self {
        assert!(sequence <= SEQUENCE_MAX);
        self.sequence_and_namespace = sequence << NAMESPACE_BITS | u64::from(self.namespace());
        self.checksum = self.computed_checksum(row);
        self
    }

    fn computed_checksum(&self, row: &[f16]) -> u64 {
        const HEAD_BYTES: usize = size_of::<Record>() - size_of::<u64>();
        /// Up to here record and row are put together: hashing in pieces costs twice as much.
        const TOGETHER_BYTES: usize = HEAD_BYTES + 2 * 1024;
        let (bytes, row) = (bytemuck::bytes_of(self), bytemuck::cast_slice(row));
        let (before, after) = (&bytes[..32], &bytes[40..]);
        let seed = self.key.prefix();
        if HEAD_BYTES + row.len() <= TOGETHER_BYTES {
            let mut together = [0; TOGETHER_BYTES];
            together[..before.len()].copy_from_slice(before);
            together[before.len()..HEAD_BYTES].copy_from_slice(after);
            together[HEAD_BYTES..][..row.len()].copy_from_slice(row);
            return xxh3_64_with_seed(&together[..HEAD_BYTES + row.len()], seed);
        }
        let mut hasher = Xxh3Builder::new().with_seed(seed).build();
        [before, after, row].into_iter().for_each(|part| hasher.update(part));
        hasher.digest()
    }

    /// Whether record and row are the ones that were sealed together.
    pub(super) fn is_intact(&self, row: &[f16]) -> bool {
        self.is_live() && self.checksum == self.computed_checksum(row)
    }

    pub(super) fn is_live(&self) -> bool {
        self.state == STATE_LIVE
    }

    /// All zero: never used, or erased.
    pub(super) fn is_free(&self) -> bool {
        bytemuck::cast_ref::<Self, [u64; 8]>(self).iter().all(|&word| word == 0)
    }

    pub(super) fn is_expired(&self, now: u32) -> bool {
        self.expires != 0 && self.expires <= now
    }

    pub(super) fn is_tagged(&self) -> bool {
        self.flags & FLAG_TAGGED != 0
    }

    pub(super) fn has_payload(&self) -> bool {
        self.flags & FLAG_PAYLOAD != 0
    }

    /// Whether the side store has something about it.
    pub(super) fn has_attachments(&self) -> bool {
        self.flags & (FLAG_TAGGED | FLAG_PAYLOAD) != 0
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.flags & FLAG_PINNED != 0
    }

    /// Marks the entry as having in the side store what another record of its key has there.
    pub(super) fn take_attachments_of(&mut self, other: &Self) {
        self.flags |= other.flags & (FLAG_TAGGED | FLAG_PAYLOAD);
    }

    /// Whether it is marked as having all that another record of its key is marked as having.
    pub(super) fn has_attachments_of(&self, other: &Self) -> bool {
        other.flags & (FLAG_TAGGED | FLAG_PAYLOAD) & !self.flags == 0
    }

    /// The same entry, marked to be computed again; to be sealed anew.
    pub(super) fn stale(mut self) -> Self {
        self.flags |= FLAG_STALE;
        self
    }

    pub(super) fn sequence(&self) -> u64 {
        self.sequence_and_namespace >> NAMESPACE_BITS
    }

    pub(super) fn namespace(&self) -> u32 {
        (self.sequence_and_namespace & u64::from(NAMESPACE_MAX)) as u32
    }

    /// What a reader learns of it.
    pub(super) fn entry(&self) -> Entry {
        Entry {
            norm: self.norm,
            tokens: u32::from(self.tokens),
            truncated: self.flags & FLAG_TRUNCATED != 0,
            created: self.created,
            expires: (self.expires != 0).then_some(self.expires),
            copied: self.flags & FLAG_COPIED != 0,
            pinned: self.is_pinned(),
            refresh_ahead: self.flags & FLAG_REFRESH_AHEAD != 0,
            stale: self.flags & FLAG_STALE != 0,
            sequence: self.sequence(),
            namespace: self.namespace(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Namespace;

    #[test]
    fn a_checksum_does_not_depend_on_how_it_is_computed() {
        let namespace = Namespace::default();
        for dims in [1, 91, 92, 93, 384, 1023, 1024, 1025, 3072] {
            let row: Vec<f16> = (0..dims).map(|value| f16::from_bits(value as u16)).collect();
            let record =
                Record::new(&NewEntry::new(Key::from_bytes([9; 32]), &row, 1.0, &namespace), 3, 4).sealed(5, &row);
            let bytes = bytemuck::bytes_of(&record);
            let all = [&bytes[..32], &bytes[40..], bytemuck::cast_slice(&row)].concat();
            assert_eq!(record.checksum, xxh3_64_with_seed(&all, record.key.prefix()), "{dims} dims");
        }
    }

    #[test]
    fn any_flipped_bit_of_record_or_row_breaks_the_seal() {
        let row = [f16::from_f32(0.5), f16::from_f32(-0.25), f16::from_f32(0.125)];
        let namespace = Namespace::default();
        let entry = NewEntry { expires: Some(9), ..NewEntry::new(Key::from_bytes([3; 32]), &row, 2.5, &namespace) };
        let record = Record::new(&entry, NAMESPACE_MAX, 5).sealed(SEQUENCE_MAX, &row);
        assert!(record.is_intact(&row));
        assert_eq!((record.sequence(), record.namespace()), (SEQUENCE_MAX, NAMESPACE_MAX));
        for bit in 0..RECORD_BYTES as usize * 8 {
            let mut changed = record;
            bytemuck::bytes_of_mut(&mut changed)[bit / 8] ^= 1 << (bit % 8);
            assert!(!changed.is_intact(&row), "bit {bit} of the record");
        }
        for bit in 0..row.len() * 16 {
            let mut changed = row;
            bytemuck::cast_slice_mut::<f16, u8>(&mut changed)[bit / 8] ^= 1 << (bit % 8);
            assert!(!record.is_intact(&changed), "bit {bit} of the row");
        }
    }
}

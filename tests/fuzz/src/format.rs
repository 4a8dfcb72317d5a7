//! The bytes of a space, written down a second time from `FORMAT.md`.

use half::f16;
use xxhash_rust::xxh3::{Xxh3Builder, xxh3_64};

use crate::domain::Key;

pub const HEADER_BYTES: usize = 4096;
pub const RECORD_BYTES: usize = 64;
const ALIGNMENT: u64 = 2 << 20;

pub fn rows_offset(capacity: u64) -> u64 {
    (HEADER_BYTES as u64 + capacity * RECORD_BYTES as u64).next_multiple_of(ALIGNMENT)
}

pub fn header(dims: u32, capacity: u64, model: &[u8; 32]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(b"vecmemo\0");
    header[8..12].copy_from_slice(&1_u32.to_le_bytes());
    header[12..16].copy_from_slice(&dims.to_le_bytes());
    header[16..24].copy_from_slice(&capacity.to_le_bytes());
    header[24..32].copy_from_slice(&(HEADER_BYTES as u64).to_le_bytes());
    header[32..40].copy_from_slice(&rows_offset(capacity).to_le_bytes());
    header[40..72].copy_from_slice(model);
    header
}

pub fn seal_header(header: &mut [u8; HEADER_BYTES]) {
    let checksum = xxh3_64(&header[..HEADER_BYTES - 8]);
    header[HEADER_BYTES - 8..].copy_from_slice(&checksum.to_le_bytes());
}

pub fn record_checksum(record: &[u8; RECORD_BYTES], row: &[u8]) -> u64 {
    let seed = u64::from_le_bytes(record[..8].try_into().unwrap());
    let mut hash = Xxh3Builder::new().with_seed(seed).build();
    hash.update(&record[..32]);
    hash.update(&record[40..]);
    hash.update(row);
    hash.digest()
}

pub fn seal_record(record: &mut [u8; RECORD_BYTES], row: &[u8]) {
    let checksum = record_checksum(record, row);
    record[32..40].copy_from_slice(&checksum.to_le_bytes());
}

/// Whether a file's bytes hold an intact live record of the key with this row.
pub fn holds(records: &[([u8; RECORD_BYTES], Vec<u8>)], key: &Key, row: &[f16]) -> bool {
    let row: &[u8] = bytemuck::cast_slice(row);
    records.iter().any(|(record, stored)| {
        let checksum = u64::from_le_bytes(record[32..40].try_into().unwrap());
        record[..32] == key.as_bytes()[..]
            && stored == row
            && record[63] == 1
            && checksum == record_checksum(record, row)
    })
}

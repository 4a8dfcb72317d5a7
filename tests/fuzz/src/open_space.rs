//! Arbitrary bytes as a `.space` file. A share of the inputs is taken for the file as it is; the others describe one: a
//! header that is right but for some bytes, records in some slots, sealed or not, rows, a length.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::domain::Key;
use crate::format::{self, HEADER_BYTES, RECORD_BYTES};
use crate::store::Store;
use crate::{Input, config, empty_folder, served, space_path, version, write_and_reopen};

const DIMS: usize = 4;
const ROW_BYTES: usize = DIMS * 2;

pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let folder = empty_folder();
    let file = File::options().read(true).write(true).create_new(true).open(space_path(&folder)).unwrap();
    let shape = input.byte();
    let capacity = [3, 8, 17, 64][usize::from(shape >> 1 & 3)];
    if shape & 1 == 0 {
        file.write_all_at(input.0, 0).unwrap();
    } else {
        describe(&mut input, &file, shape, capacity);
    }
    let records = records_of(&file, capacity);
    let mut keys: Vec<Key> =
        records.iter().map(|(record, _)| Key::from_bytes(record[..32].try_into().unwrap())).collect();
    keys.sort_unstable_by_key(|key| *key.as_bytes());
    keys.dedup();
    drop(file);

    let Ok(store) = Store::open(&folder, &version(), DIMS, &config(capacity)) else { return };
    for (key, row) in keys.iter().zip(served(&store, &keys)) {
        if let Some(row) = row {
            assert!(format::holds(&records, key, &row), "served, but not in the file: {key:?} {row:?}");
        }
    }
    // Whatever is asked of it, nothing panics.
    store.contains_many(&keys, u32::MAX);
    store.scrub(usize::MAX);
    let mut cursor = crate::store::Cursor::default();
    let mut scanned = 0;
    while let Ok(shown @ 1..) = store.scan(&mut cursor, crate::NOW, 5, |key, _, row| {
        assert!(format::holds(&records, &key, row), "scanned, but not in the file");
    }) {
        scanned += shown;
    }
    assert!(scanned <= capacity as usize);
    let _ = store.ages(crate::NOW);
    let _ = store.info();
    if let Some(key) = keys.first() {
        let _ = store.tags(key);
        let _ = store.remove_many(&[*key]);
        assert_eq!(served(&store, &[*key]), [None], "removed");
    }
    let _ = store.sweep_expired(crate::NOW);
    write_and_reopen(store, &folder, DIMS, capacity);
}

/// Writes the file that the input describes.
fn describe(input: &mut Input<'_>, file: &File, shape: u8, capacity: u64) {
    // In a share, the file's own capacity is another than the one it is opened with.
    let own = if shape & 8 != 0 { u64::from(input.byte() % 80) + 1 } else { capacity };
    let mut header = format::header(DIMS as u32, own, version().as_bytes());
    if shape & 16 != 0 {
        for _ in 0..input.byte() % 8 {
            let place = usize::from(input.byte());
            header[if place < 250 { place } else { HEADER_BYTES - 256 + place }] = input.byte();
        }
    }
    if shape & 32 == 0 {
        format::seal_header(&mut header);
    }
    file.set_len(format::rows_offset(own) + own * ROW_BYTES as u64).unwrap();
    file.write_all_at(&header, 0).unwrap();
    while !input.is_empty() {
        let (slot, control) = (u64::from(input.byte()) % own, input.byte());
        let mut record: [u8; RECORD_BYTES] = [0; RECORD_BYTES];
        if control & 1 == 0 {
            // A plain live record under one of a few keys, so that some are superseded.
            record[..32].copy_from_slice(crate::key(u32::from(control >> 4)).as_bytes());
            record[40..48].copy_from_slice(&(u64::from(input.word()) << 24).to_le_bytes());
            record[63] = 1;
        } else {
            record = input.array();
        }
        if control & 2 != 0 {
            // Expires, flags, state, and the upper half of the sequences.
            record[52..56].copy_from_slice(&input.word().to_le_bytes());
            record[62] = input.byte();
            record[47] = input.byte();
        }
        let row: [u8; ROW_BYTES] = input.array();
        if control & 4 == 0 {
            format::seal_record(&mut record, &row);
        }
        file.write_all_at(&record, HEADER_BYTES as u64 + slot * RECORD_BYTES as u64).unwrap();
        file.write_all_at(&row, format::rows_offset(own) + slot * ROW_BYTES as u64).unwrap();
    }
    if shape & 64 != 0 {
        // Cut somewhere, mostly where something is.
        let (kind, at) = (shape >> 7, u64::from(shape) * 37);
        file.set_len(if kind == 0 { at } else { format::rows_offset(own) + at % (own * ROW_BYTES as u64) }).unwrap();
    }
}

/// What a reader of the format finds in the file, with the file's own capacity if that is plausible.
fn records_of(file: &File, capacity: u64) -> Vec<([u8; RECORD_BYTES], Vec<u8>)> {
    let mut header = [0; HEADER_BYTES];
    let own = match file.read_exact_at(&mut header, 0) {
        Ok(()) => u64::from_le_bytes(header[16..24].try_into().unwrap()),
        Err(_) => capacity,
    };
    let own = if (1..=1 << 16).contains(&own) { own } else { capacity };
    (0..own)
        .map(|slot| {
            let (mut record, mut row) = ([0; RECORD_BYTES], vec![0; ROW_BYTES]);
            // What is behind the end reads as zeros.
            read_at(file, &mut record, HEADER_BYTES as u64 + slot * RECORD_BYTES as u64);
            read_at(file, &mut row, format::rows_offset(own) + slot * ROW_BYTES as u64);
            (record, row)
        })
        .filter(|(record, _)| record[63] != 0)
        .collect()
}

fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) {
    while let Ok(read @ 1..) = file.read_at(bytes, offset) {
        bytes = &mut bytes[read..];
        offset += read as u64;
    }
}

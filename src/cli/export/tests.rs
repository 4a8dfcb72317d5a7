//! Every format gives back what it was given, and leaves nothing half done.

use std::path::Path;

use half::f16;
use proptest::prelude::*;

use super::facts::{Batch, Facts, Manifest, Sink, Source};
use super::npy::{NpySink, NpySource};
use super::parquet::{ParquetSink, ParquetSource};
use super::safetensors::{SafetensorsSink, SafetensorsSource};
use crate::domain::Key;

const FORMATS: [&str; 3] = ["npy", "parquet", "safetensors"];

fn sink(format: &str, place: &Path, dims: usize) -> Box<dyn Sink> {
    match format {
        "npy" => Box::new(NpySink::new(place).unwrap()),
        "parquet" => Box::new(ParquetSink::new(place, dims).unwrap()),
        _ => Box::new(SafetensorsSink::new(place).unwrap()),
    }
}

fn source(format: &str, place: &Path) -> anyhow::Result<Box<dyn Source>> {
    Ok(match format {
        "npy" => Box::new(NpySource::open(place)?),
        "parquet" => Box::new(ParquetSource::open(place)?),
        _ => Box::new(SafetensorsSource::open(place)?),
    })
}

fn manifest(dims: usize) -> Manifest {
    Manifest::new("ab".repeat(32), Some("a model".to_owned()), dims, 1_800_000_000)
}

fn write(format: &str, place: &Path, dims: usize, batch: &Batch) {
    let mut sink = sink(format, place, dims);
    for (facts, row) in batch.facts.iter().zip(batch.rows.chunks(dims)) {
        sink.add(facts.clone(), row).unwrap();
    }
    sink.finish(manifest(dims)).unwrap();
}

fn read(format: &str, place: &Path) -> anyhow::Result<Batch> {
    let mut source = source(format, place)?;
    let mut all = Batch::default();
    loop {
        let batch = source.next()?;
        if batch.facts.is_empty() {
            assert_eq!(source.manifest().count, all.facts.len() as u64);
            return Ok(all);
        }
        all.facts.extend(batch.facts);
        all.rows.extend(batch.rows);
    }
}

fn some_facts() -> impl Strategy<Value = Facts> {
    let flags = any::<[bool; 6]>();
    let times = (any::<u32>(), any::<Option<u32>>());
    let names = ("[a-z]{0,8}", proptest::collection::vec("\\PC{0,6}", 0..4), proptest::option::of("\\PC{0,20}"));
    (any::<[u8; 32]>(), proptest::num::f32::NORMAL, any::<u16>(), flags, times, names).prop_map(
        |(key, norm, tokens, flags, (created, expires), (namespace, tags, payload))| Facts {
            key: Key::from_bytes(key),
            norm,
            tokens: u32::from(tokens),
            truncated: flags[0],
            copied: flags[1],
            pinned: flags[2],
            refresh_ahead: flags[3],
            stale: flags[4],
            created,
            expires,
            namespace,
            tags,
            payload,
            incomplete: flags[5],
            checksum: String::new(),
        },
    )
}

fn some_batch() -> impl Strategy<Value = (usize, Batch)> {
    (1_usize..9, proptest::collection::vec(some_facts(), 0..20)).prop_flat_map(|(dims, facts)| {
        let bits = proptest::collection::vec(0_u16..0x7c00, dims * facts.len());
        bits.prop_map(move |bits| {
            let rows = bits.into_iter().map(|bits| f16::from_bits(bits | (bits & 1) << 15)).collect();
            (dims, Batch { facts: facts.clone(), rows })
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_format_gives_back_what_it_was_given((dims, batch) in some_batch()) {
        for format in FORMATS {
            let folder = tempfile::tempdir().unwrap();
            let place = folder.path().join("export");
            write(format, &place, dims, &batch);
            prop_assert_eq!(&read(format, &place).unwrap(), &batch, "{}", format);
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        }
    }
}

fn facts(n: u32) -> Facts {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&n.to_le_bytes());
    Facts {
        key: Key::from_bytes(key),
        norm: n as f32 + 0.1,
        tokens: n,
        truncated: false,
        copied: false,
        pinned: false,
        refresh_ahead: false,
        stale: false,
        created: n,
        expires: None,
        namespace: String::new(),
        tags: if n.is_multiple_of(3) { vec![n.to_string()] } else { Vec::new() },
        payload: None,
        incomplete: false,
        checksum: String::new(),
    }
}

/// More than are in memory at a time, and more than one row group.
#[test]
fn long_exports_are_read_in_pieces_and_in_order() {
    let dims = 2048;
    let count = 4500;
    let rows = (0..count * dims as u32).map(|at| f16::from_bits((at % 0x3c00) as u16)).collect();
    let batch = Batch { facts: (0..count).map(facts).collect(), rows };
    for format in FORMATS {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("export");
        write(format, &place, dims, &batch);
        assert!(read(format, &place).unwrap() == batch, "{format}");
        assert!(source(format, &place).unwrap().next().unwrap().facts.len() <= 1024, "{format}");
    }
}

#[test]
fn what_stands_at_the_place_is_never_overwritten_and_what_is_given_up_leaves_nothing() {
    for format in FORMATS {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("export");
        let mut given_up = sink(format, &place, 2);
        given_up.add(facts(1), &[f16::ONE, f16::ZERO]).unwrap();
        assert!(!place.exists());
        drop(given_up);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{format}");
        std::fs::write(&place, "somebody's").unwrap();
        let refused = match format {
            "npy" => NpySink::new(&place).map(drop),
            "parquet" => ParquetSink::new(&place, 2).map(drop),
            _ => SafetensorsSink::new(&place).map(drop),
        };
        assert!(refused.unwrap_err().to_string().contains("is there already"), "{format}");
        assert_eq!(std::fs::read(&place).unwrap(), b"somebody's");
    }
}

/// The files of an export: of a folder each, of a file itself.
fn files(place: &Path) -> Vec<std::path::PathBuf> {
    if place.is_dir() {
        std::fs::read_dir(place).unwrap().map(|item| item.unwrap().path()).collect()
    } else {
        vec![place.to_owned()]
    }
}

#[test]
fn an_export_cut_short_or_changed_is_an_error_and_never_a_panic() {
    let row = [f16::from_f32(0.5); 4];
    let batch = Batch { facts: (0..20).map(|n| facts(n).sealed(&row)).collect(), rows: row.repeat(20) };
    for format in FORMATS {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("export");
        write(format, &place, 4, &batch);
        for file in files(&place) {
            let sound = std::fs::read(&file).unwrap();
            for len in (0..sound.len()).step_by(sound.len().div_ceil(40)) {
                std::fs::write(&file, &sound[..len]).unwrap();
                assert!(read(format, &place).is_err(), "{format}: {} cut to {len}", file.display());
            }
            for at in (0..sound.len()).step_by(sound.len().div_ceil(200)) {
                let mut changed = sound.clone();
                changed[at] ^= 0x11;
                std::fs::write(&file, &changed).unwrap();
                let Ok(found) = read(format, &place) else { continue };
                assert_eq!(found.facts.len(), 20);
                for (at, (facts, row)) in found.facts.iter().zip(found.rows.chunks(4)).enumerate() {
                    let same = *facts == batch.facts[at] && *row == batch.rows[at * 4..at * 4 + 4];
                    assert!(same || facts.checksum.is_empty() || !facts.is_as_sealed(row), "{format}: byte {at}");
                }
            }
            std::fs::write(&file, &sound).unwrap();
        }
        assert_eq!(read(format, &place).unwrap(), batch);
    }
}

#[test]
fn files_of_others_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("other");
    let header = br#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    std::fs::write(&place, [&(header.len() as u64).to_le_bytes(), header.as_slice(), b"x"].concat()).unwrap();
    let refused = source("safetensors", &place).err().unwrap();
    assert!(refused.to_string().contains("not exported by vecmemo"), "{refused:#}");
    std::fs::write(&place, u64::MAX.to_le_bytes()).unwrap();
    assert!(source("safetensors", &place).is_err());
    std::fs::write(&place, "PAR1....PAR1").unwrap();
    assert!(source("parquet", &place).is_err());
}

//! Fixtures: texts, and the vectors sentence-transformers makes of them (`scripts/make-golden`, `scripts/make-tiny-models`).

use std::path::{Path, PathBuf};

/// A file or folder under `tests/data`.
pub fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// A text of the fixture.
pub struct Fixture {
    pub id: String,
    pub text: String,
    /// Its length with special tokens, before truncation.
    pub tokens: usize,
}

/// The texts of a JSONL fixture.
pub fn texts(path: &Path) -> Vec<Fixture> {
    let lines = std::fs::read_to_string(path).unwrap();
    let fixture = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let repeat = value["repeat"].as_u64().unwrap_or(1) as usize;
        Fixture {
            id: value["id"].as_str().unwrap().to_owned(),
            text: value["text"].as_str().unwrap().repeat(repeat),
            tokens: value["tokens"].as_u64().unwrap_or(0) as usize,
        }
    };
    lines.lines().map(fixture).collect()
}

/// The rows of a two-dimensional f32 array in NumPy's format, version 1.0.
pub fn npy_rows(path: &Path) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00", "{}", path.display());
    let header_end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..header_end]).unwrap();
    assert!(header.contains("'<f4'") && header.contains("'fortran_order': False"), "{header}");
    let shape = header.split("'shape': (").nth(1).unwrap().split(')').next().unwrap();
    let dims: usize = shape.split(',').nth(1).unwrap().trim().parse().unwrap();
    let values: Vec<f32> =
        bytes[header_end..].chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    values.chunks_exact(dims).map(<[f32]>::to_vec).collect()
}

/// The cosine of the angle between two vectors, in f64.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

//! What every engine is given: keys as hashes are, rows of half precision, and the one way to decode them.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// 32 bytes in which every bit is as good as random, as a hash's are.
pub(crate) type Key = [u8; 32];

/// The Unix second at which everything happens.
pub(crate) const NOW: u32 = 1_800_000_000;

/// The finaliser of SplitMix64: a permutation of the 64-bit numbers without visible order.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The key of entry `index`.
pub(crate) fn key(index: u64) -> Key {
    let words: [u64; 4] = std::array::from_fn(|word| mix(index.wrapping_mul(4).wrapping_add(word as u64)));
    bytemuck::cast(words)
}

/// Where the keys of entries that nobody puts begin.
pub(crate) const ABSENT: u64 = 1 << 40;

/// A sequence of numbers in random order.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        ((u128::from(mix(self.0 ^ 0x5DEE_CE66)) * u128::from(bound)) >> 64) as u64
    }

    /// The key of one of the first `entries` entries.
    pub(crate) fn key(&mut self, entries: u64) -> Key {
        key(self.below(entries))
    }
}

/// Rows cut out of a small pool of random values, so that making a row costs next to nothing beside storing it.
pub(crate) struct Rows {
    pool: Vec<f16>,
    pub(crate) dims: usize,
}

impl Rows {
    pub(crate) fn new(dims: usize) -> Self {
        let pool = (0..dims as u64 + (1 << 16))
            .map(|place| f16::from_f32((mix(place) >> 40) as f32 / (1 << 25) as f32 - 0.25))
            .collect();
        Self { pool, dims }
    }

    pub(crate) fn row(&self, index: u64) -> &[f16] {
        let start = (mix(index ^ 0x55AA) >> 48) as usize;
        &self.pool[start..start + self.dims]
    }

    /// Some entries' keys, and their rows one behind the other.
    pub(crate) fn batch(&self, indices: std::ops::Range<u64>) -> Batch {
        let mut rows = Vec::with_capacity((indices.end - indices.start) as usize * self.dims);
        indices.clone().for_each(|index| rows.extend_from_slice(self.row(index)));
        Batch { keys: indices.map(key).collect(), rows, dims: self.dims }
    }
}

/// Entries to put together.
pub(crate) struct Batch {
    pub(crate) keys: Vec<Key>,
    rows: Vec<f16>,
    dims: usize,
}

impl Batch {
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&Key, &[f16])> {
        self.keys.iter().zip(self.rows.chunks_exact(self.dims))
    }

    /// As `rows`, for engines that know bytes alone.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&Key, &[u8])> {
        self.rows().map(|(key, row)| (key, bytemuck::cast_slice(row)))
    }
}

/// Decodes a row into the caller's buffer: every engine's last step.
#[inline]
pub(crate) fn decode(row: &[f16], out: &mut [f32]) {
    row.convert_to_f32_slice(out);
    std::hint::black_box(out);
}

/// As `decode`, of an engine's bytes, which may lie at an odd address.
#[inline]
pub(crate) fn decode_bytes(bytes: &[u8], out: &mut [f32]) {
    if let Ok(row) = bytemuck::try_cast_slice(bytes) {
        return decode(row, out);
    }
    let mut piece = [f16::ZERO; 64];
    for (bytes, out) in bytes.chunks(2 * piece.len()).zip(out.chunks_mut(piece.len())) {
        let piece = &mut piece[..out.len()];
        bytemuck::cast_slice_mut(piece).copy_from_slice(bytes);
        decode(piece, out);
    }
}

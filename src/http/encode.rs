//! Vectors as bytes: JSON lists, NumPy arrays, raw rows, base64.
//!
//! All of them carry the same f16 values: exactly, or widened to f32, which is exact too.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::numbers;

/// How wide a number is in a binary answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Width {
    /// As stored.
    #[default]
    F16,
    /// Widened, for readers that know no f16.
    F32,
}

impl Width {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// The magic, the version and the length field of NumPy's format 1.0.
const NPY_PREAMBLE_BYTES: usize = 10;

/// Converted at once; a multiple of three floats' bytes is a multiple of base64's groups.
const CHUNK_VALUES: usize = 384;

/// A JSON list of lists.
pub fn json(rows: impl ExactSizeIterator<Item = impl AsRef<[f16]>>, dims: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * (dims * 13 + 2) + 2 + 16 * dims);
    out.push(b'[');
    for (index, row) in rows.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        numbers::write_list(&mut out, row.as_ref());
    }
    out.push(b']');
    out
}

/// One NumPy array of shape `[rows, dims]`, format version 1.0, little-endian.
pub fn npy(values: &[f16], dims: usize, f32_wide: bool) -> Vec<u8> {
    let width = if f32_wide { Width::F32 } else { Width::F16 };
    let rows = values.len().checked_div(dims).unwrap_or(0);
    let header = format!("{{'descr': '<f{}', 'fortran_order': False, 'shape': ({rows}, {dims}), }}", width.bytes());
    // The header ends in a line feed, padded so that the data starts at a multiple of 64.
    let total = (NPY_PREAMBLE_BYTES + header.len() + 1).next_multiple_of(64);
    let mut out = Vec::with_capacity(total + values.len() * width.bytes());
    out.extend_from_slice(b"\x93NUMPY\x01\x00");
    out.extend_from_slice(&((total - NPY_PREAMBLE_BYTES) as u16).to_le_bytes());
    out.extend_from_slice(header.as_bytes());
    out.resize(total - 1, b' ');
    out.push(b'\n');
    append(&mut out, values, width);
    out
}

/// The rows alone, little-endian.
pub(super) fn octets(values: &[f16], width: Width) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() * width.bytes());
    append(&mut out, values, width);
    out
}

/// Appends base64 of the values as little-endian f32: what OpenAI's clients decode.
pub fn append_base64(out: &mut Vec<u8>, values: &[f16]) {
    for chunk in values.chunks(CHUNK_VALUES) {
        let mut wide = [0_f32; CHUNK_VALUES];
        let wide = widen(chunk, &mut wide);
        base64_simd::STANDARD.encode_append(bytemuck::cast_slice::<f32, u8>(wide), out);
    }
}

fn append(out: &mut Vec<u8>, values: &[f16], width: Width) {
    match width {
        Width::F16 if cfg!(target_endian = "little") => out.extend_from_slice(bytemuck::cast_slice(values)),
        Width::F16 => values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Width::F32 => {
            for chunk in values.chunks(CHUNK_VALUES) {
                let mut wide = [0_f32; CHUNK_VALUES];
                out.extend_from_slice(bytemuck::cast_slice::<f32, u8>(widen(chunk, &mut wide)));
            }
        }
    }
}

/// Widens into `room`, in little-endian order whatever the machine's.
fn widen<'a>(values: &[f16], room: &'a mut [f32; CHUNK_VALUES]) -> &'a [f32] {
    let wide = &mut room[..values.len()];
    values.convert_to_f32_slice(wide);
    if cfg!(target_endian = "big") {
        wide.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits().swap_bytes()));
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn finite(bits: Vec<u16>) -> Vec<f16> {
        bits.into_iter().map(f16::from_bits).filter(|value| value.is_finite()).collect()
    }

    fn f32s(bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    }

    proptest! {
        #[test]
        fn all_formats_decode_to_the_same_bits(bits in proptest::collection::vec(any::<u16>(), 0..1000)) {
            let values = finite(bits);
            let exact: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
            let text: Vec<Vec<f32>> = serde_json::from_slice(&json([&values].into_iter(), values.len())).unwrap();
            prop_assert_eq!(&text[0], &exact);
            let mut base64 = Vec::new();
            append_base64(&mut base64, &values);
            prop_assert_eq!(&f32s(&base64_simd::STANDARD.decode_to_vec(&base64).unwrap()), &exact);
            prop_assert_eq!(&f32s(&octets(&values, Width::F32)), &exact);
            let raw = octets(&values, Width::F16);
            let narrow: Vec<f16> =
                raw.chunks_exact(2).map(|two| f16::from_le_bytes(two.try_into().unwrap())).collect();
            prop_assert_eq!(&narrow, &values);
        }

        #[test]
        fn a_numpy_header_says_shape_and_type_and_is_aligned(rows in 0_usize..40, dims in 1_usize..400, wide: bool) {
            let values = vec![f16::ONE; rows * dims];
            let array = npy(&values, dims, wide);
            prop_assert_eq!(&array[..8], b"\x93NUMPY\x01\x00");
            let length = usize::from(u16::from_le_bytes([array[8], array[9]]));
            prop_assert_eq!((10 + length) % 64, 0);
            let header = std::str::from_utf8(&array[10..10 + length]).unwrap();
            let descr = if wide { "<f4" } else { "<f2" };
            let expected = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({rows}, {dims}), }}");
            prop_assert_eq!(header.trim_end(), expected);
            prop_assert!(header.ends_with('\n'));
            prop_assert_eq!(array.len() - 10 - length, rows * dims * if wide { 4 } else { 2 });
        }
    }
}

//! The CPU's arithmetic: products of rows with packed weights, attention, normalisation, each written once and compiled for
//! every instruction set, of which the best is chosen when the program runs.
//!
//! ```text
//! lanes.rs       what an instruction set offers      scalar.rs  avx2.rs  avx512.rs  neon.rs   the sets
//! matrix.rs      products                            rows.rs, attention.rs                     the rest
//! Kernel         one set's functions, with their bounds checked: all that the encoder sees
//! ```
//!
//! A row's results depend on that row alone (attention: on its text), to the last bit.
//!
//! This is one of the few places with `unsafe` code. What keeps it sound: a [`Kernel`] is only handed out on a processor that
//! has its instructions, and its methods check every length before a pointer is formed.

#![expect(unsafe_code, reason = "vector instructions, on memory whose bounds Kernel's methods check")]
#![allow(unsafe_op_in_unsafe_fn, reason = "the bodies are vector instructions from end to end")]

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lanes;
mod matrix;
#[cfg(target_arch = "aarch64")]
mod neon;
mod rows;
mod scalar;

pub(in crate::engine) use attention::{Attention, AttentionScratch};
pub(in crate::engine) use matrix::{Arithmetic, BLOCK_INPUTS, Lines, Matrix, Start};
pub(in crate::engine) use rows::{Activation, ERF_ABOVE, ERF_BELOW};

use attention::attend;
use matrix::{Block, Bytes, Floats, Product, Words, multiply};
use rows::{Rounding, normalize, round_i16, round_u8, round_u8_wide};

type Multiply<A, W> = unsafe fn(&mut Product<'_, A, W>);
type Normalize = unsafe fn(&[f32], &mut [f32], &[f32], &[f32], f32);
type Round<T> = unsafe fn(&mut Rounding<'_, T>, i32);

/// The functions of one instruction set.
pub(in crate::engine) struct Kernel {
    /// Its name, such as `avx2`.
    pub(in crate::engine) name: &'static str,
    /// Rows of a tile: products of a multiple of them waste nothing.
    pub(in crate::engine) rows: usize,
    columns: usize,
    has_bytes: bool,
    multiply_f32: Multiply<f32, f32>,
    multiply_i16: Multiply<i16, i16>,
    multiply_i8: Multiply<u8, i8>,
    round_i16: Round<i16>,
    round_u8: Round<u8>,
    round_u8_wide: Round<i16>,
    attend: unsafe fn(&mut Attention<'_>, &mut AttentionScratch),
    normalize: Normalize,
}

/// Compiles every function for an instruction set.
macro_rules! kernel {
    ($kernel:ident, $module:ident, $name:literal, $lanes:ty $(, $features:literal)?) => {
        mod $module {
            use super::*;

            $(#[target_feature(enable = $features)])?
            unsafe fn multiply_f32(product: &mut Product<'_, f32, f32>) {
                multiply::<$lanes, Floats>(product);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn multiply_i16(product: &mut Product<'_, i16, i16>) {
                multiply::<$lanes, Words>(product);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn multiply_i8(product: &mut Product<'_, u8, i8>) {
                multiply::<$lanes, Bytes>(product);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn round_i16(rounding: &mut Rounding<'_, i16>, limit: i32) {
                super::round_i16::<$lanes>(rounding, limit);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn round_u8(rounding: &mut Rounding<'_, u8>, limit: i32) {
                super::round_u8::<$lanes>(rounding, limit);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn round_u8_wide(rounding: &mut Rounding<'_, i16>, limit: i32) {
                super::round_u8_wide::<$lanes>(rounding, limit);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn attend(attention: &mut Attention<'_>, scratch: &mut AttentionScratch) {
                super::attend::<$lanes>(attention, scratch);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn normalize(x: &[f32], out: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
                super::normalize::<$lanes>(x, out, weight, bias, epsilon);
            }

            pub(super) static KERNEL: Kernel = Kernel {
                name: $name,
                rows: <$lanes as lanes::Lanes>::ROWS,
                columns: 2 * <$lanes as lanes::Lanes>::WIDTH,
                has_bytes: <$lanes as lanes::Lanes>::HAS_BYTES,
                multiply_f32,
                multiply_i16,
                multiply_i8,
                round_i16,
                round_u8,
                round_u8_wide,
                attend,
                normalize,
            };
        }
        static $kernel: &Kernel = &$module::KERNEL;
    };
}

kernel!(SCALAR, for_any, "scalar", scalar::Scalar);
#[cfg(target_arch = "x86_64")]
kernel!(AVX2, for_avx2, "avx2", avx2::Avx2, "avx2,fma");
#[cfg(target_arch = "x86_64")]
kernel!(AVX512, for_avx512, "avx512", avx512::Avx512, "avx512f,avx512bw,avx512dq,avx512vl,fma");
#[cfg(target_arch = "x86_64")]
kernel!(
    AVX512_VNNI,
    for_avx512_vnni,
    "avx512-vnni",
    avx512::Avx512Vnni,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma"
);
#[cfg(target_arch = "aarch64")]
kernel!(NEON, for_neon, "neon", neon::Neon, "neon");

/// Rows rounded to integers, kept between a rounding and the products that read it.
pub(in crate::engine) struct Rounded {
    words: Lines<i16>,
    bytes: Lines<u8>,
    scales: Vec<f32>,
    zeros: Vec<i32>,
}

impl Rounded {
    pub(in crate::engine) fn new() -> Self {
        Self { words: Lines::zeroed(0), bytes: Lines::zeroed(0), scales: Vec::new(), zeros: Vec::new() }
    }
}

/// A product's result: `out = activation(start + x · weightsᵀ + bias)`.
pub(in crate::engine) struct Into<'a> {
    pub(in crate::engine) start: Start<'a>,
    pub(in crate::engine) bias: bool,
    pub(in crate::engine) activation: Option<Activation>,
    pub(in crate::engine) out: &'a mut [f32],
}

impl Kernel {
    /// Those this processor has the instructions of, best first.
    pub(in crate::engine) fn supported() -> Vec<&'static Self> {
        let mut kernels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("fma");
            if has_avx512 && is_x86_feature_detected!("avx512vnni") {
                kernels.push(AVX512_VNNI);
            }
            if has_avx512 {
                kernels.push(AVX512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                kernels.push(AVX2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        kernels.push(NEON);
        kernels.push(SCALAR);
        kernels
    }

    /// Packs a linear layer's weights `[outputs, inputs]` for this kernel.
    pub(in crate::engine) fn pack(&self, weights: &[f32], bias: &[f32], arithmetic: Arithmetic) -> Matrix {
        Matrix::pack(weights, bias, arithmetic, self.columns, self.has_bytes)
    }

    /// All outputs of a linear layer for `rows` rows `x`: rounded first, if the weights are integers.
    pub(in crate::engine) fn multiply(
        &self,
        matrix: &Matrix,
        x: &[f32],
        rows: usize,
        rounded: &mut Rounded,
        to: Into<'_>,
    ) {
        self.round(matrix, x, rows, rounded);
        let last = matrix.blocks.len() - 1;
        let mut start = to.start;
        for block in 0..=last {
            let whole = Into {
                start,
                bias: to.bias && block == 0,
                activation: to.activation.filter(|_| block == last),
                out: &mut *to.out,
            };
            let x = &x[block * BLOCK_INPUTS..];
            self.multiply_rounded(matrix, block, 0..matrix.outputs, x, matrix.inputs, rows, rounded, whole);
            start = Start::Result;
        }
    }

    /// Rounds rows for the products with a matrix whose weights are integers; does nothing for others.
    pub(in crate::engine) fn round(&self, matrix: &Matrix, x: &[f32], rows: usize, rounded: &mut Rounded) {
        for block in 0..matrix.blocks.len() {
            let first = block * BLOCK_INPUTS;
            self.round_block(matrix, block, &x[first..], matrix.inputs, rows, rounded);
        }
    }

    /// Rounds one block's inputs, which are rows `stride` apart.
    pub(in crate::engine) fn round_block(
        &self,
        matrix: &Matrix,
        block: usize,
        x: &[f32],
        stride: usize,
        rows: usize,
        rounded: &mut Rounded,
    ) {
        let blocks = matrix.blocks.len();
        let inputs = BLOCK_INPUTS.min(matrix.inputs - block * BLOCK_INPUTS);
        let room = blocks * BLOCK_INPUTS * rows;
        rounded.scales.resize(rounded.scales.len().max(rows * blocks), 0.0);
        rounded.zeros.resize(rounded.zeros.len().max(rows * blocks), 0);
        let Rounded { words, bytes, scales, zeros } = rounded;
        let (scales, zeros) = (&mut scales[block..], &mut zeros[block..]);
        let first = block * BLOCK_INPUTS * rows;
        macro_rules! round {
            ($out:expr, $panels:expr, $round:expr) => {{
                let out_stride = $panels.inputs;
                let (out, scale_stride) = ($out, blocks);
                let mut rounding = Rounding { rows, x, inputs, stride, out, out_stride, scales, zeros, scale_stride };
                rounding.check();
                // SAFETY: the bounds are checked, and a kernel is handed out only where its instructions are.
                unsafe { ($round)(&mut rounding, $panels.limit) };
            }};
        }
        match &matrix.blocks[block] {
            Block::F32(_) => {}
            Block::I16(panels) | Block::I8Wide(panels) => {
                words.reserve(room);
                let out = &mut words[first..first + rows * panels.inputs];
                clear_padding(out, inputs, panels.inputs);
                let is_i16 = matches!(matrix.blocks[block], Block::I16(_));
                round!(out, panels, if is_i16 { self.round_i16 } else { self.round_u8_wide });
            }
            Block::I8(panels) => {
                bytes.reserve(room);
                round!(&mut bytes[first..first + rows * panels.inputs], panels, self.round_u8);
            }
        }
    }

    /// Some outputs of one block of a linear layer, for rows that have been rounded (f32: for `x`, rows `stride` apart).
    /// The outputs begin at a whole panel; `to.out` has rows of as many values as there are outputs.
    #[expect(clippy::too_many_arguments, reason = "a product has this many sides")]
    pub(in crate::engine) fn multiply_rounded(
        &self,
        matrix: &Matrix,
        block: usize,
        outputs: std::ops::Range<usize>,
        x: &[f32],
        stride: usize,
        rows: usize,
        rounded: &Rounded,
        to: Into<'_>,
    ) {
        let blocks = matrix.blocks.len();
        let at = block * BLOCK_INPUTS * rows;
        let Into { start, bias, activation, out } = to;
        let (first, outputs) = (outputs.start, outputs.len());
        let bias = bias.then_some(matrix.bias.as_slice());
        let (scales, zeros) = match matrix.blocks[block] {
            Block::F32(_) => (&[][..], &[][..]),
            _ => (&rounded.scales[block..], &rounded.zeros[block..]),
        };
        macro_rules! product {
            ($left:expr, $left_stride:expr, $weights:expr, $multiply:expr) => {{
                let mut product = Product {
                    rows,
                    left: $left,
                    left_stride: $left_stride,
                    scales,
                    zeros,
                    scale_stride: blocks,
                    weights: $weights,
                    first,
                    outputs,
                    bias,
                    start,
                    activation,
                    out,
                    out_stride: outputs,
                };
                product.check(self.columns, $weights.values.len());
                if !matches!(matrix.blocks[block], Block::F32(_)) {
                    product.check_scales(self.columns);
                }
                // SAFETY: the bounds are checked, and a kernel is handed out only where its instructions are.
                unsafe { $multiply(&mut product) };
            }};
        }
        match &matrix.blocks[block] {
            Block::F32(panels) => product!(x, stride, panels, self.multiply_f32),
            Block::I16(panels) | Block::I8Wide(panels) => {
                product!(&rounded.words[at..], panels.inputs, panels, self.multiply_i16);
            }
            Block::I8(panels) => product!(&rounded.bytes[at..], panels.inputs, panels, self.multiply_i8),
        }
    }

    /// One head's attention.
    pub(in crate::engine) fn attend(&self, mut attention: Attention<'_>, scratch: &mut AttentionScratch) {
        attention.check();
        // SAFETY: the bounds are checked, and a kernel is handed out only where its instructions are.
        unsafe { (self.attend)(&mut attention, scratch) };
    }

    /// `(x − mean) / √(variance + epsilon) × weight + bias` of each row of as many values as `weight` has.
    pub(in crate::engine) fn normalize(&self, x: &[f32], out: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
        assert!(x.len() == out.len() && weight.len() == bias.len() && !weight.is_empty());
        // SAFETY: the bounds are checked, and a kernel is handed out only where its instructions are.
        unsafe { (self.normalize)(x, out, weight, bias, epsilon) };
    }
}

/// Zeros past the inputs of each row, where a group of inputs is not full.
fn clear_padding(out: &mut [i16], inputs: usize, stride: usize) {
    if inputs < stride {
        out.chunks_exact_mut(stride).for_each(|row| row[inputs..].fill(0));
    }
}

#[cfg(test)]
mod tests;

//! Every kernel this processor can run, against plain f64 arithmetic, and against the scalar one.

use proptest::prelude::*;

use super::*;

/// Repeatable values between −1 and 1.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = || {
        // xorshift64: Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8(14), 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| draw()).collect()
}

/// `x · weightsᵀ + bias` in f64.
fn product(x: &[f32], weights: &[f32], bias: &[f32]) -> Vec<f64> {
    let inputs = weights.len() / bias.len();
    let dot = |row: &[f32], weights: &[f32]| -> f64 {
        row.iter().zip(weights).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let row =
        |row| weights.chunks_exact(inputs).zip(bias).map(move |(weights, &bias)| dot(row, weights) + f64::from(bias));
    x.chunks_exact(inputs).flat_map(row).collect()
}

fn multiply_with(kernel: &Kernel, arithmetic: Arithmetic, x: &[f32], weights: &[f32], bias: &[f32]) -> Vec<f32> {
    let matrix = kernel.pack(weights, bias, arithmetic);
    let rows = x.len() / matrix.inputs;
    let mut out = vec![f32::NAN; rows * bias.len()];
    let to = Into { start: Start::Zero, bias: true, activation: None, out: &mut out };
    kernel.multiply(&matrix, x, rows, &mut Rounded::new(), to);
    out
}

/// The error of a product relative to the norms of its factors, at its worst.
fn worst(found: &[f32], expected: &[f64], x: &[f32], weights: &[f32], outputs: usize) -> f64 {
    let norm = |values: &[f32]| values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    let inputs = weights.len() / outputs;
    let off = |(index, (&found, expected)): (usize, (&f32, &f64))| {
        let (row, output) = (index / outputs, index % outputs);
        let size = norm(&x[row * inputs..][..inputs]) * norm(&weights[output * inputs..][..inputs]);
        (f64::from(found) - expected).abs() / size.max(1e-9)
    };
    found.iter().zip(expected).enumerate().map(off).fold(0.0, f64::max)
}

/// Rows, inputs and outputs around every edge: tiles, panels, groups, blocks.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 384, 384),
    (5, 33, 17),
    (6, 32, 48),
    (7, 385, 16),
    (13, 64, 31),
    (14, 768, 96),
    (29, 1000, 40),
    (64, 384, 64),
];

#[test]
fn products_are_those_of_f64_arithmetic_within_each_arithmetics_precision() {
    for kernel in Kernel::supported() {
        for (rows, inputs, outputs) in SHAPES {
            let (x, weights) = (noise(rows * inputs, 1), noise(inputs * outputs, 2));
            let bias = noise(outputs, 3);
            let expected = product(&x, &weights, &bias);
            for (arithmetic, bound) in [(Arithmetic::F32, 2e-6), (Arithmetic::I16, 1e-4), (Arithmetic::I8, 1.2e-2)] {
                let found = multiply_with(kernel, arithmetic, &x, &weights, &bias);
                let off = worst(&found, &expected, &x, &weights, outputs);
                assert!(off <= bound, "{} {arithmetic:?} {rows} × {inputs} × {outputs}: {off:.2e}", kernel.name);
            }
        }
    }
}

#[test]
fn integer_products_are_the_same_on_every_kernel() {
    for (rows, inputs, outputs) in SHAPES {
        let (x, weights) = (noise(rows * inputs, 4), noise(inputs * outputs, 5));
        let bias = vec![0.0; outputs];
        for arithmetic in [Arithmetic::I16, Arithmetic::I8] {
            let expected = multiply_with(SCALAR, arithmetic, &x, &weights, &bias);
            for kernel in Kernel::supported() {
                let found = multiply_with(kernel, arithmetic, &x, &weights, &bias);
                for (found, expected) in found.iter().zip(&expected) {
                    // The sums are exact; what a block's sum is multiplied by may differ in its last bit.
                    let off = (found - expected).abs();
                    assert!(
                        off <= 1e-5 * expected.abs().max(1.0),
                        "{} {arithmetic:?}: {found} for {expected}",
                        kernel.name
                    );
                }
            }
        }
    }
}

/// The largest inputs and weights there can be: a sum that overflowed would be far off.
#[test]
fn no_integer_sum_overflows() {
    for kernel in Kernel::supported() {
        for (inputs, signs) in [(384, false), (384, true), (1536, false)] {
            let value = |index: usize| if signs && index % 2 == 1 { -3.0 } else { 3.0 };
            let x: Vec<f32> = (0..inputs * 3).map(|index| value(index % inputs)).collect();
            let weights: Vec<f32> = (0..inputs * 32).map(|index| value(index % inputs)).collect();
            let bias = vec![0.0; 32];
            for (arithmetic, bound) in [(Arithmetic::I16, 1e-3), (Arithmetic::I8, 1e-2)] {
                for found in multiply_with(kernel, arithmetic, &x, &weights, &bias) {
                    let expected = 9.0 * inputs as f32;
                    assert!((found - expected).abs() <= bound * expected, "{} {arithmetic:?}: {found}", kernel.name);
                }
            }
        }
    }
}

#[test]
fn a_product_starts_from_what_it_is_told_and_ends_with_the_activation() {
    let (rows, inputs, outputs) = (7, 40, 37);
    let (x, weights, bias) = (noise(rows * inputs, 6), noise(inputs * outputs, 7), noise(outputs, 8));
    let before = noise(rows * outputs, 9);
    let plain = product(&x, &weights, &bias);
    for kernel in Kernel::supported() {
        let matrix = kernel.pack(&weights, &bias, Arithmetic::F32);
        for start in [Start::Zero, Start::Result, Start::Rows(&before)] {
            let mut out = before.clone();
            let to = Into { start, bias: true, activation: Some(Activation::Relu), out: &mut out };
            kernel.multiply(&matrix, &x, rows, &mut Rounded::new(), to);
            for ((found, plain), &before) in out.iter().zip(&plain).zip(&before) {
                let sum = plain + if matches!(start, Start::Zero) { 0.0 } else { f64::from(before) };
                assert!((f64::from(*found) - sum.max(0.0)).abs() < 1e-5, "{}: {found} for {sum}", kernel.name);
            }
        }
    }
}

/// `x/2 (1 + erf(x/√2))` by the series of the error function, in f64.
fn gelu(x: f64) -> f64 {
    let z = x / std::f64::consts::SQRT_2;
    let (mut term, mut sum) = (z, z);
    for n in 1..200 {
        term *= -z * z / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    let erf = if z.abs() > 5.0 { z.signum() } else { sum * std::f64::consts::FRAC_2_SQRT_PI };
    0.5 * x * (1.0 + erf)
}

#[test]
fn activations_are_within_4e_7_of_their_definitions() {
    let values: Vec<f32> = (-6000..6000).map(|step| step as f32 / 1000.0).collect();
    for kernel in Kernel::supported() {
        let matrix = kernel.pack(&[1.0], &[0.0], Arithmetic::F32);
        for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            let mut out = vec![0.0; values.len()];
            let to = Into { start: Start::Zero, bias: true, activation: Some(activation), out: &mut out };
            kernel.multiply(&matrix, &values, values.len(), &mut Rounded::new(), to);
            for (&x, found) in values.iter().zip(out) {
                let x = f64::from(x);
                let expected = match activation {
                    Activation::Gelu => gelu(x),
                    Activation::GeluTanh => {
                        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
                    }
                    Activation::Relu => x.max(0.0),
                };
                let off = (f64::from(found) - expected).abs();
                assert!(
                    off <= 4e-7 * x.abs().max(1.0),
                    "{} {activation:?} of {x}: {found} for {expected}",
                    kernel.name
                );
            }
        }
    }
}

#[test]
fn rows_are_normalised_to_mean_and_variance() {
    for kernel in Kernel::supported() {
        for size in [1, 3, 16, 31, 32, 100, 384] {
            let (x, weight, bias) = (noise(size * 3, 10), noise(size, 11), noise(size, 12));
            let mut out = vec![f32::NAN; x.len()];
            kernel.normalize(&x, &mut out, &weight, &bias, 1e-5);
            for (row, out) in x.chunks_exact(size).zip(out.chunks_exact(size)) {
                let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / size as f64;
                let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / size as f64;
                for (index, (&x, &found)) in row.iter().zip(out).enumerate() {
                    let unit = (f64::from(x) - mean) / (variance + 1e-5).sqrt();
                    let expected = unit * f64::from(weight[index]) + f64::from(bias[index]);
                    assert!(
                        (f64::from(found) - expected).abs() < 1e-5,
                        "{} {size}: {found} for {expected}",
                        kernel.name
                    );
                }
            }
        }
    }
}

/// Attention in f64, for all tokens of a text and one head.
fn attention(
    projections: &[f32],
    size: usize,
    head: usize,
    head_size: usize,
    distances: Option<&[f32]>,
) -> Vec<Vec<f64>> {
    let length = projections.len() / (3 * size);
    let at = |token: usize, part: usize, value: usize| {
        f64::from(projections[token * 3 * size + part * size + head * head_size + value])
    };
    let attended = |query: usize| {
        let score = |key: usize| -> f64 {
            let product: f64 = (0..head_size).map(|value| at(query, 0, value) * at(key, 1, value)).sum();
            product + distances.map_or(0.0, |distances| f64::from(distances[(distances.len() - 1) / 2 + key - query]))
        };
        let scores: Vec<f64> = (0..length).map(score).collect();
        let largest = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mixed = |value| weights.iter().enumerate().map(|(key, weight)| weight / sum * at(key, 2, value)).sum();
        (0..head_size).map(mixed).collect()
    };
    (0..length).map(attended).collect()
}

#[test]
fn attention_is_that_of_f64_arithmetic() {
    for kernel in Kernel::supported() {
        for (length, heads, head_size) in [(1, 1, 4), (2, 3, 8), (17, 2, 26), (64, 2, 32), (75, 1, 64), (300, 1, 32)] {
            let size = heads * head_size;
            let projections: Vec<f32> = noise(length * 3 * size, 13).into_iter().map(|value| value * 0.7).collect();
            let far = noise(2 * (length + 5) - 1, 14);
            for distances in [None, Some(far.as_slice())] {
                for head in 0..heads {
                    let expected = attention(&projections, size, head, head_size, distances);
                    let (first, count) = (length / 3, length - length / 3);
                    let mut out = vec![f32::NAN; count * size];
                    let wanted = Attention {
                        projections: &projections,
                        size,
                        head,
                        head_size,
                        first,
                        count,
                        distances,
                        out: &mut out,
                    };
                    kernel.attend(wanted, &mut AttentionScratch::new());
                    for (row, expected) in out.chunks_exact(size).zip(&expected[first..]) {
                        for (found, expected) in row[head * head_size..].iter().zip(expected) {
                            let off = (f64::from(*found) - expected).abs();
                            assert!(off < 1e-5, "{} {length} tokens: {found} for {expected}", kernel.name);
                        }
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Bit for bit: whatever rows stand beside a row, and wherever it stands among them.
    #[test]
    fn a_rows_product_is_its_own(rows in 1usize..40, inputs in 1usize..800, outputs in 1usize..100, seed in 0u64..1000) {
        let (x, weights, bias) = (noise(rows * inputs, seed), noise(inputs * outputs, seed + 1), noise(outputs, seed + 2));
        for kernel in Kernel::supported() {
            for arithmetic in [Arithmetic::F32, Arithmetic::I16, Arithmetic::I8] {
                let together = multiply_with(kernel, arithmetic, &x, &weights, &bias);
                for (row, together) in x.chunks_exact(inputs).zip(together.chunks_exact(outputs)) {
                    let alone = multiply_with(kernel, arithmetic, row, &weights, &bias);
                    prop_assert!(alone.iter().zip(together).all(|(a, b)| a.to_bits() == b.to_bits()));
                }
            }
        }
    }
}

//! The activation between a layer's two feed-forward matrices, with the bias added in the same pass.
//!
//! Candle's own erf-GELU computes one value at a time in f64 on one thread, and took more time than the matrices. This one
//! is plain f32 arithmetic that the compiler turns into vectors, compiled for several instruction sets and chosen at run time,
//! and split over the threads of rayon.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

/// Values below which splitting costs more than it saves.
const CHUNK_VALUES: usize = 16 << 10;

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activation {
    /// `x/2 (1 + erf(x/√2))`.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// `f(x + bias)` for rows `x` of the bias's length.
    pub(super) fn with_bias(self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            return x.apply_op2_no_bwd(bias, &self);
        }
        let x = x.broadcast_add(bias)?;
        match self {
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::Relu => x.relu(),
        }
    }
}

impl CustomOp2 for Activation {
    fn name(&self) -> &'static str {
        "activation-with-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, bias) = match (x, bias) {
            (CpuStorage::F32(x), CpuStorage::F32(bias)) => (contiguous(x, x_layout)?, contiguous(bias, bias_layout)?),
            _ => bail!("the activation is for f32"),
        };
        if bias.is_empty() || !x.len().is_multiple_of(bias.len()) {
            bail!("rows of {} values do not fit a bias of {}", x.len(), bias.len());
        }
        let mut out = vec![0.0; x.len()];
        let rows = (CHUNK_VALUES / bias.len()).max(1) * bias.len();
        out.par_chunks_mut(rows).zip(x.par_chunks(rows)).for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(bias.len()).zip(x.chunks_exact(bias.len())) {
                match self {
                    Self::Gelu => gelu(out, x, bias),
                    Self::GeluTanh => gelu_tanh(out, x, bias),
                    Self::Relu => relu(out, x, bias),
                }
            }
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

fn contiguous<'a>(values: &'a [f32], layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("the activation needs contiguous rows"),
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma", "aarch64+neon"))]
fn gelu(out: &mut [f32], x: &[f32], bias: &[f32]) {
    for ((out, &x), &bias) in out.iter_mut().zip(x).zip(bias) {
        let x = x + bias;
        *out = 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma", "aarch64+neon"))]
fn gelu_tanh(out: &mut [f32], x: &[f32], bias: &[f32]) {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    for ((out, &x), &bias) in out.iter_mut().zip(x).zip(bias) {
        let x = x + bias;
        *out = 0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh());
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma", "aarch64+neon"))]
fn relu(out: &mut [f32], x: &[f32], bias: &[f32]) {
    for ((out, &x), &bias) in out.iter_mut().zip(x).zip(bias) {
        *out = (x + bias).max(0.0);
    }
}

/// The error function as a quotient of polynomials, within about 1e-7 of it. The coefficients are those of Eigen's `erf`
/// for float (also used by XLA), valid where |x| ≤ 4; beyond it the function is ±1 in f32.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let mut above = -2.726_142_3e-10;
    for coefficient in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_5e-5, -7.349_906e-4, -2.954_6e-3, -1.609_603_3e-2] {
        above = above * square + coefficient;
    }
    let mut below = -1.456_607_2e-5;
    for coefficient in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329_3e-3, -1.426_473_9e-2] {
        below = below * square + coefficient;
    }
    x * above / below
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// The error function is within about 1e-7, and is multiplied by half the value: the bound grows with it.
    #[test]
    fn each_activation_is_within_3e_7_of_candles_own() {
        let values: Vec<f32> = (-6000..6000).map(|step| step as f32 / 1000.0).collect();
        let x = Tensor::from_vec(values, (1200, 10), &Device::Cpu).unwrap();
        let bias = Tensor::new(&[0.1f32, -0.2, 0.3, 0.0, 1.0, -1.0, 2.0, 0.5, -0.5, 0.01], &Device::Cpu).unwrap();
        let sum = x.broadcast_add(&bias).unwrap();
        for (activation, expected) in [
            (Activation::Gelu, sum.gelu_erf().unwrap()),
            (Activation::GeluTanh, sum.gelu().unwrap()),
            (Activation::Relu, sum.relu().unwrap()),
        ] {
            let found = activation.with_bias(&x, &bias).unwrap();
            let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for ((found, expected), value) in flat(&found).into_iter().zip(flat(&expected)).zip(flat(&sum)) {
                let off = (found - expected).abs();
                assert!(off <= 3e-7 * value.abs().max(1.0), "{activation:?} of {value}: {found} for {expected}");
            }
        }
    }
}

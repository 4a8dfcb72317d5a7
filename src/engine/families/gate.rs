//! Gated feed-forward layers: `activation(gate) · up`, fused, in f32.
//!
//! Candle's own erf-GELU computes one value at a time in f64; this one is compiled for several instruction sets.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;

use super::super::kernel::{ERF_ABOVE, ERF_BELOW};

/// What the gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// `x/2 (1 + erf(x/√2))`.
    Gelu,
    /// `x / (1 + e⁻ˣ)`.
    Silu,
}

impl Gate {
    /// From rows of gates followed by as many values to rows of gated values: `[tokens, 2 × inner]` to `[tokens, inner]`.
    pub(super) fn apply(self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(&self)
    }
}

impl CustomOp1 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, (tokens, width)) = match (x, layout.contiguous_offsets()) {
            (CpuStorage::F32(x), Some((start, end))) => (&x[start..end], layout.shape().dims2()?),
            _ => bail!("the gate is for contiguous f32"),
        };
        let inner = width / 2;
        let mut out = vec![0.0; tokens * inner];
        for (out, row) in out.chunks_exact_mut(inner).zip(x.chunks_exact(width)) {
            let (gate, up) = row.split_at(inner);
            match self {
                Self::Gelu => gelu(out, gate, up),
                Self::Silu => silu(out, gate, up),
            }
        }
        Ok((CpuStorage::F32(out), (tokens, inner).into()))
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma", "aarch64+neon"))]
fn gelu(out: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = 0.5 * gate * (1.0 + erf(gate * std::f32::consts::FRAC_1_SQRT_2)) * up;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+fma", "x86_64+avx2+fma", "aarch64+neon"))]
fn silu(out: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + (-gate).exp()) * up;
    }
}

/// The error function, within about 1e-7.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let mut above = ERF_ABOVE[0];
    for coefficient in &ERF_ABOVE[1..] {
        above = above * square + coefficient;
    }
    let mut below = ERF_BELOW[0];
    for coefficient in &ERF_BELOW[1..] {
        below = below * square + coefficient;
    }
    x * above / below
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn each_gate_is_within_1e_6_of_candles_own_activation_times_the_value() {
        let values: Vec<f32> = (-6000..6000).map(|step| step as f32 / 500.0).collect();
        let x = Tensor::from_vec(values, (600, 20), &Device::Cpu).unwrap();
        let (gate, up) = (x.narrow(1, 0, 10).unwrap(), x.narrow(1, 10, 10).unwrap());
        for (op, activated) in [(Gate::Gelu, gate.gelu_erf().unwrap()), (Gate::Silu, gate.silu().unwrap())] {
            let expected = (activated * &up).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let found = op.apply(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (found, expected) in found.into_iter().zip(expected) {
                assert!((found - expected).abs() <= 1e-6 * expected.abs().max(12.0), "{op:?}: {found} for {expected}");
            }
        }
    }
}

//! What is done to whole rows: layer normalisation, activations, softmax's exponential, rounding to integers.

use super::lanes::Lanes;

/// Which function stands between a layer's two feed-forward matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Activation {
    /// `x/2 (1 + erf(x/√2))`.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

#[inline(always)]
pub(super) unsafe fn activate<L: Lanes>(activation: Activation, x: L::F) -> L::F {
    match activation {
        Activation::Gelu => {
            let half = L::mul(x, L::splat(0.5));
            L::fma(half, erf::<L>(L::mul(x, L::splat(std::f32::consts::FRAC_1_SQRT_2))), half)
        }
        // x/2 (1 + tanh u) = x / (1 + exp(−2u)), u = √(2/π) (x + 0.044715 x³)
        Activation::GeluTanh => {
            const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;
            let inner = L::fma(L::mul(L::mul(x, x), x), L::splat(0.044_715), x);
            let power = exp::<L>(L::mul(inner, L::splat(-TWICE_SQRT_2_OVER_PI)));
            L::div(x, L::add(power, L::splat(1.0)))
        }
        Activation::Relu => L::max(x, L::splat(0.0)),
    }
}

/// The error function divided by x, as a quotient of polynomials in x², highest powers first: Eigen's `erf` for float (also
/// used by XLA), within about 1e-7 where |x| ≤ 4; beyond it the function is ±1 in f32.
pub(in crate::engine) const ERF_ABOVE: [f32; 7] =
    [-2.726_142_3e-10, 2.770_681_4e-8, -2.101_024e-6, -5.692_506_5e-5, -7.349_906e-4, -2.954_6e-3, -1.609_603_3e-2];
/// What [`ERF_ABOVE`] is divided by.
pub(in crate::engine) const ERF_BELOW: [f32; 5] =
    [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329_3e-3, -1.426_473_9e-2];

/// The error function, within about 1e-7.
#[inline(always)]
unsafe fn erf<L: Lanes>(x: L::F) -> L::F {
    let x = L::min(L::max(x, L::splat(-4.0)), L::splat(4.0));
    let square = L::mul(x, x);
    let mut above = L::splat(ERF_ABOVE[0]);
    for &coefficient in &ERF_ABOVE[1..] {
        above = L::fma(above, square, L::splat(coefficient));
    }
    let mut below = L::splat(ERF_BELOW[0]);
    for &coefficient in &ERF_BELOW[1..] {
        below = L::fma(below, square, L::splat(coefficient));
    }
    L::div(L::mul(x, above), below)
}

/// The exponential, within 2 units in the last place between −87 and 88, where it is cut off. The argument is reduced to
/// |r| ≤ ln 2 / 2 in two steps; the polynomial is Cephes' `expf`.
#[inline(always)]
pub(super) unsafe fn exp<L: Lanes>(x: L::F) -> L::F {
    let x = L::min(L::max(x, L::splat(-87.0)), L::splat(88.0));
    let power = L::round(L::mul(x, L::splat(std::f32::consts::LOG2_E)));
    let rest = L::fma(power, L::splat(-0.693_359_4), x);
    let rest = L::fma(power, L::splat(2.121_944_4e-4), rest);
    let mut sum = L::splat(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
        sum = L::fma(sum, rest, L::splat(coefficient));
    }
    let sum = L::add(L::fma(L::mul(sum, rest), rest, rest), L::splat(1.0));
    L::mul(sum, L::power_of_two(power))
}

/// `(x − mean) / √(variance + epsilon) × weight + bias` of each row of `size` values, into `out`.
///
/// # Safety
/// `x` and `out` hold `rows × size` values, `weight` and `bias` `size`; the processor has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn normalize<L: Lanes>(x: &[f32], out: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    let size = weight.len();
    let whole = size - size % L::WIDTH;
    for (x, out) in x.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
        let (x, out) = (x.as_ptr(), out.as_mut_ptr());
        let mut sums = [L::splat(0.0); 2];
        for at in (0..whole).step_by(L::WIDTH) {
            let lane = at / L::WIDTH % 2;
            sums[lane] = L::add(sums[lane], L::load(x.add(at)));
        }
        let mut sum = L::sum(L::add(sums[0], sums[1]));
        for at in whole..size {
            sum += *x.add(at);
        }
        let mean = sum / size as f32;
        let means = L::splat(mean);
        let mut squares = [L::splat(0.0); 2];
        for at in (0..whole).step_by(L::WIDTH) {
            let lane = at / L::WIDTH % 2;
            let off = L::sub(L::load(x.add(at)), means);
            squares[lane] = L::fma(off, off, squares[lane]);
        }
        let mut square = L::sum(L::add(squares[0], squares[1]));
        for at in whole..size {
            square += (*x.add(at) - mean) * (*x.add(at) - mean);
        }
        let factor = 1.0 / (square / size as f32 + epsilon).sqrt();
        let factors = L::splat(factor);
        for at in (0..whole).step_by(L::WIDTH) {
            let unit = L::mul(L::sub(L::load(x.add(at)), means), factors);
            let scaled = L::fma(unit, L::load(weight.as_ptr().add(at)), L::load(bias.as_ptr().add(at)));
            L::store(out.add(at), scaled);
        }
        for at in whole..size {
            *out.add(at) = (*x.add(at) - mean) * factor * weight.get_unchecked(at) + bias.get_unchecked(at);
        }
    }
}

/// The smallest and largest of 0 and `count` values.
#[inline(always)]
unsafe fn bounds<L: Lanes>(x: *const f32, count: usize) -> (f32, f32) {
    let whole = count - count % L::WIDTH;
    let (mut least, mut most) = (L::splat(0.0), L::splat(0.0));
    for at in (0..whole).step_by(L::WIDTH) {
        let value = L::load(x.add(at));
        least = L::max(least, L::sub(L::splat(0.0), value));
        most = L::max(most, value);
    }
    let (mut least, mut most) = (-L::largest(least), L::largest(most));
    for at in whole..count {
        least = least.min(*x.add(at));
        most = most.max(*x.add(at));
    }
    (least, most)
}

/// Rows as integers.
pub(super) struct Rounding<'a, T> {
    /// Rows of `inputs` values, `stride` apart.
    pub(super) rows: usize,
    pub(super) x: &'a [f32],
    pub(super) inputs: usize,
    pub(super) stride: usize,
    /// The integers: rows `out_stride` apart; what is past `inputs` is zero.
    pub(super) out: &'a mut [T],
    pub(super) out_stride: usize,
    /// What each row was divided by, and the integer that stands for 0.
    pub(super) scales: &'a mut [f32],
    pub(super) zeros: &'a mut [i32],
    pub(super) scale_stride: usize,
}

impl<T> Rounding<'_, T> {
    pub(super) fn check(&self) {
        let last = self.rows - 1;
        assert!(self.rows > 0 && self.inputs <= self.out_stride && self.inputs <= self.stride);
        assert!(self.x.len() >= last * self.stride + self.inputs);
        assert!(self.out.len() >= last * self.out_stride + self.inputs);
        assert!(self.scales.len() > last * self.scale_stride && self.zeros.len() > last * self.scale_stride);
    }
}

/// To integers between `−limit` and `limit`.
///
/// # Safety
/// [`Rounding::check`] has passed; the processor has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn round_i16<L: Lanes>(rounding: &mut Rounding<'_, i16>, limit: i32) {
    for row in 0..rounding.rows {
        let x = rounding.x.as_ptr().add(row * rounding.stride);
        let out = rounding.out.as_mut_ptr().add(row * rounding.out_stride);
        let (least, most) = bounds::<L>(x, rounding.inputs);
        let scale = (most.max(-least) / limit as f32).max(f32::MIN_POSITIVE);
        rounding.scales[row * rounding.scale_stride] = scale;
        scale_to_i16::<L>(x, rounding.inputs, scale, (-limit as f32, limit as f32), out);
    }
}

/// To integers that are those of [`round_u8`] less the row's zero.
///
/// # Safety
/// As [`round_i16`].
#[inline(always)]
pub(super) unsafe fn round_u8_wide<L: Lanes>(rounding: &mut Rounding<'_, i16>, _: i32) {
    for row in 0..rounding.rows {
        let x = rounding.x.as_ptr().add(row * rounding.stride);
        let out = rounding.out.as_mut_ptr().add(row * rounding.out_stride);
        let (scale, zero) = byte_scale::<L>(x, rounding.inputs);
        rounding.scales[row * rounding.scale_stride] = scale;
        scale_to_i16::<L>(x, rounding.inputs, scale, (-zero, 255.0 - zero), out);
    }
}

/// To integers between 0 and 255, with the one that stands for 0 in each row.
///
/// # Safety
/// As [`round_i16`].
#[inline(always)]
pub(super) unsafe fn round_u8<L: Lanes>(rounding: &mut Rounding<'_, u8>, _: i32) {
    for row in 0..rounding.rows {
        let x = rounding.x.as_ptr().add(row * rounding.stride);
        let out = rounding.out.as_mut_ptr().add(row * rounding.out_stride);
        let (scale, zero) = byte_scale::<L>(x, rounding.inputs);
        rounding.scales[row * rounding.scale_stride] = scale;
        rounding.zeros[row * rounding.scale_stride] = zero as i32;
        let (scale, whole) = (1.0 / scale, rounding.inputs - rounding.inputs % L::WIDTH);
        let (least, most, zeros) = (L::splat(-zero), L::splat(255.0 - zero), L::splat(zero));
        for at in (0..whole).step_by(L::WIDTH) {
            let value = L::round(L::mul(L::load(x.add(at)), L::splat(scale)));
            L::store_u8(out.add(at), L::add(L::min(L::max(value, least), most), zeros));
        }
        for at in whole..rounding.inputs {
            let value = (*x.add(at) * scale).round_ties_even();
            *out.add(at) = (value.clamp(-zero, 255.0 - zero) + zero) as u8;
        }
        for at in rounding.inputs..rounding.out_stride {
            // Multiplied by weights of zero, whatever it is; the zero of the row keeps it out of sight.
            *out.add(at) = 0;
        }
    }
}

#[inline(always)]
unsafe fn byte_scale<L: Lanes>(x: *const f32, count: usize) -> (f32, f32) {
    let (least, most) = bounds::<L>(x, count);
    let scale = ((most - least) / 255.0).max(f32::MIN_POSITIVE);
    (scale, (-least / scale).round_ties_even().clamp(0.0, 255.0))
}

#[inline(always)]
unsafe fn scale_to_i16<L: Lanes>(x: *const f32, count: usize, scale: f32, (least, most): (f32, f32), out: *mut i16) {
    let (scale, whole) = (1.0 / scale, count - count % L::WIDTH);
    for at in (0..whole).step_by(L::WIDTH) {
        let value = L::round(L::mul(L::load(x.add(at)), L::splat(scale)));
        L::store_i16(out.add(at), L::min(L::max(value, L::splat(least)), L::splat(most)));
    }
    for at in whole..count {
        *out.add(at) = (*x.add(at) * scale).round_ties_even().clamp(least, most) as i16;
    }
}

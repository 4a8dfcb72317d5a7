//! Weights in the order in which a kernel reads them, and the product of rows with them.
//!
//! ```text
//! weights [outputs, inputs] ─► blocks of inputs ─► panels of as many outputs as two vectors hold:
//!   panel: input 0: w w w w … (one for each output) │ input 1: w w w w … │ …        read once, in order, for each tile
//! tile:    ROWS rows × one panel of sums, all in registers, over all inputs of a block
//! ```
//!
//! Each value of a product is one chain of sums over the inputs, whatever rows stand beside it: a row's product does not
//! depend on the batch, to the last bit.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

use super::lanes::Lanes;
use super::rows::{Activation, activate};

/// Inputs of a block: a panel of f32 then takes 24 KiB (AVX2), so that it stays in the first cache.
pub(in crate::engine) const BLOCK_INPUTS: usize = 384;

/// The most values a vector has.
pub(super) const WIDTH_MAX: usize = 16;

/// The most rows a tile has.
const ROWS_MAX: usize = 14;

/// Bytes of a cache line.
pub(super) const LINE_BYTES: usize = 64;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

/// Values that begin at the start of a cache line.
pub(in crate::engine) struct Lines<T> {
    lines: Vec<Line>,
    length: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Lines<T> {
    pub(in crate::engine) fn zeroed(length: usize) -> Self {
        let lines = vec![Line::zeroed(); (length * size_of::<T>()).div_ceil(LINE_BYTES)];
        Self { lines, length, of: PhantomData }
    }

    /// Makes room for `length` values; what stands in them is any values at all.
    pub(in crate::engine) fn reserve(&mut self, length: usize) {
        if length > self.length {
            *self = Self::zeroed(length);
        }
    }
}

impl<T: Pod> Deref for Lines<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.length]
    }
}

impl<T: Pod> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.length]
    }
}

/// How numbers are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Arithmetic {
    /// As they are.
    F32,
    /// As integers of about 13 bits: a scale for each row and block of inputs, and one for each output. The sums are exact.
    I16,
    /// As 8-bit integers: signed weights, unsigned inputs with a scale and a zero for each row and block.
    I8,
}

/// One block's weights, packed.
pub(in crate::engine) enum Block {
    F32(Panels<f32>),
    I16(Panels<i16>),
    /// As [`Block::I16`] with numbers of 8 bits, for processors that don't multiply bytes: the same sums.
    I8Wide(Panels<i16>),
    I8(Panels<i8>),
}

/// Packed weights.
pub(in crate::engine) struct Panels<T> {
    pub(super) values: Lines<T>,
    /// Inputs, filled up with zeros to whole groups.
    pub(super) inputs: usize,
    /// For integers: what each output's weights were divided by.
    pub(super) scales: Vec<f32>,
    /// For bytes: the sum of each output's weights.
    pub(super) sums: Vec<i32>,
    /// For integers: the largest input with which no sum can overflow.
    pub(super) limit: i32,
}

/// A linear layer: `x · weightsᵀ + bias`.
pub(in crate::engine) struct Matrix {
    pub(in crate::engine) inputs: usize,
    pub(in crate::engine) outputs: usize,
    pub(in crate::engine) blocks: Vec<Block>,
    /// Filled up to whole panels.
    pub(super) bias: Vec<f32>,
}

impl Matrix {
    /// Packs weights `[outputs, inputs]` for a kernel with panels of `columns` outputs.
    pub(super) fn pack(weights: &[f32], bias: &[f32], arithmetic: Arithmetic, columns: usize, has_bytes: bool) -> Self {
        let outputs = bias.len();
        let inputs = weights.len() / outputs;
        let mut padded = bias.to_vec();
        padded.resize(outputs.next_multiple_of(columns), 0.0);
        let block = |start: usize| {
            let rows: Vec<&[f32]> =
                weights.chunks_exact(inputs).map(|row| &row[start..inputs.min(start + BLOCK_INPUTS)]).collect();
            match arithmetic {
                Arithmetic::F32 => Block::F32(pack_f32(&rows, columns)),
                Arithmetic::I16 => Block::I16(pack_i16(&rows, columns)),
                Arithmetic::I8 if has_bytes => Block::I8(pack_i8(&rows, columns)),
                Arithmetic::I8 => Block::I8Wide(pack_i8_wide(&rows, columns)),
            }
        };
        let blocks = (0..inputs).step_by(BLOCK_INPUTS).map(block).collect();
        Self { inputs, outputs, blocks, bias: padded }
    }
}

/// Puts `value(output, input)` where the kernels look for it.
fn arrange<T: Pod>(
    outputs: usize,
    inputs: usize,
    columns: usize,
    group: usize,
    value: impl Fn(usize, usize) -> T,
) -> Lines<T> {
    let padded = inputs.next_multiple_of(group);
    let mut values = Lines::zeroed(outputs.next_multiple_of(columns) * padded);
    for output in 0..outputs {
        let (panel, column) = (output / columns, output % columns);
        for input in 0..inputs {
            let place = panel * columns * padded + (input / group) * columns * group + column * group + input % group;
            values[place] = value(output, input);
        }
    }
    values
}

fn pack_f32(rows: &[&[f32]], columns: usize) -> Panels<f32> {
    let inputs = rows[0].len();
    let values = arrange(rows.len(), inputs, columns, 1, |output, input| rows[output][input]);
    Panels { values, inputs, scales: Vec::new(), sums: Vec::new(), limit: 0 }
}

/// Weights as integers between `−range` and `range`, with a scale for each output.
fn integers(rows: &[&[f32]], range: f32, columns: usize) -> (Vec<Vec<i32>>, Vec<f32>) {
    let largest = |row: &&[f32]| row.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
    let mut scales: Vec<f32> = rows.iter().map(|row| (largest(row) / range).max(f32::MIN_POSITIVE)).collect();
    let rounded = |(row, scale): (&&[f32], &f32)| -> Vec<i32> {
        row.iter().map(|weight| (weight / scale).round_ties_even() as i32).collect()
    };
    let integers = rows.iter().zip(&scales).map(rounded).collect();
    scales.resize(rows.len().next_multiple_of(columns), 0.0);
    (integers, scales)
}

/// The largest sum of any output's weights without their signs.
fn largest_sum(integers: &[Vec<i32>]) -> i64 {
    integers.iter().map(|row| row.iter().map(|weight| i64::from(weight.abs())).sum()).max().unwrap_or(0).max(1)
}

fn pack_i16(rows: &[&[f32]], columns: usize) -> Panels<i16> {
    // Bits are shared out evenly between weights and inputs: as many as the sums of these very weights leave room for.
    const RANGE_MAX: f32 = 32_767.0;
    let (trial, _) = integers(rows, RANGE_MAX, columns);
    let share = largest_sum(&trial) as f32 / RANGE_MAX;
    let range = (i32::MAX as f32 / share).sqrt().min(RANGE_MAX).floor();
    let (weights, scales) = integers(rows, range, columns);
    let limit = (i64::from(i32::MAX) / largest_sum(&weights)).min(RANGE_MAX as i64) as i32;
    let inputs = rows[0].len();
    let values = arrange(rows.len(), inputs, columns, 2, |output, input| weights[output][input] as i16);
    Panels { values, inputs: inputs.next_multiple_of(2), scales, sums: Vec::new(), limit }
}

fn pack_i8(rows: &[&[f32]], columns: usize) -> Panels<i8> {
    let (weights, scales) = integers(rows, 127.0, columns);
    let mut sums: Vec<i32> = weights.iter().map(|row| row.iter().sum()).collect();
    sums.resize(scales.len(), 0);
    let inputs = rows[0].len();
    let values = arrange(rows.len(), inputs, columns, 4, |output, input| weights[output][input] as i8);
    Panels { values, inputs: inputs.next_multiple_of(4), scales, sums, limit: 255 }
}

fn pack_i8_wide(rows: &[&[f32]], columns: usize) -> Panels<i16> {
    let (weights, scales) = integers(rows, 127.0, columns);
    let inputs = rows[0].len();
    let values = arrange(rows.len(), inputs, columns, 2, |output, input| weights[output][input] as i16);
    Panels { values, inputs: inputs.next_multiple_of(2), scales, sums: Vec::new(), limit: 255 }
}

/// What a sum starts from, besides the bias.
#[derive(Clone, Copy)]
pub(in crate::engine) enum Start<'a> {
    /// Nothing.
    Zero,
    /// What stands in the result's place.
    Result,
    /// Other rows, of the result's shape.
    Rows(&'a [f32]),
}

/// `out = activation(start + left · weightsᵀ + bias)` for some of the outputs.
pub(super) struct Product<'a, A, W> {
    pub(super) rows: usize,
    /// Rows of inputs, `left_stride` apart.
    pub(super) left: &'a [A],
    pub(super) left_stride: usize,
    /// For integers: each row's scale, and for bytes its zero, `scale_stride` apart.
    pub(super) scales: &'a [f32],
    pub(super) zeros: &'a [i32],
    pub(super) scale_stride: usize,
    pub(super) weights: &'a Panels<W>,
    /// The first output, which begins a panel, and how many.
    pub(super) first: usize,
    pub(super) outputs: usize,
    /// Of all outputs of the matrix.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) start: Start<'a>,
    pub(super) activation: Option<Activation>,
    /// Rows of `outputs` values, `out_stride` apart.
    pub(super) out: &'a mut [f32],
    pub(super) out_stride: usize,
}

impl<A, W> Product<'_, A, W> {
    /// Panics unless all that the kernels will touch is there.
    pub(super) fn check(&self, columns: usize, length: usize) {
        let Self { rows, left, left_stride, weights, first, outputs, out, out_stride, .. } = self;
        let (rows, outputs) = (*rows, *outputs);
        assert!(rows > 0 && outputs > 0 && weights.inputs <= *left_stride && outputs <= *out_stride);
        assert!(left.len() >= (rows - 1) * left_stride + weights.inputs);
        assert!(out.len() >= (rows - 1) * out_stride + outputs);
        let padded = outputs.next_multiple_of(columns);
        assert!(first % columns == 0 && length >= (first + padded) * weights.inputs);
        assert!(self.bias.is_none_or(|bias| bias.len() >= first + padded));
        if let Start::Rows(rows_before) = self.start {
            assert!(rows_before.len() >= (rows - 1) * out_stride + outputs);
        }
    }

    /// As [`Product::check`] for what integers need besides.
    pub(super) fn check_scales(&self, columns: usize) {
        let padded = self.first + self.outputs.next_multiple_of(columns);
        assert!(self.scales.len() > (self.rows - 1) * self.scale_stride && self.weights.scales.len() >= padded);
    }
}

/// What a tile is computed with.
pub(super) trait Tile {
    /// An input and a weight.
    type A: Pod;
    type W: Pod;

    /// Writes `ROWS` rows of two vectors of sums, `stride` apart, to `out`, for the panel that begins at output `column`.
    ///
    /// # Safety
    /// [`Product::check`] has passed, `row` and `ROWS` are within its rows, `column` within its outputs.
    unsafe fn tile<L: Lanes, const ROWS: usize>(
        product: &Product<'_, Self::A, Self::W>,
        row: usize,
        column: usize,
        out: *mut f32,
    );
}

/// Inputs that are multiplied before the loop looks whether there are more.
const UNROLLED: usize = 4;

// The two loops below multiply nothing to find their places: a build with overflow checks would check that, once a number.

/// Sums of f32 products: `count` inputs, rows `left_stride` apart, to rows `out_stride` apart.
///
/// # Safety
/// All that is thereby named can be read, or written.
#[inline(always)]
pub(super) unsafe fn tile_f32<L: Lanes, const ROWS: usize>(
    count: usize,
    left: *const f32,
    left_stride: usize,
    panel: *const f32,
    out: *mut f32,
    out_stride: usize,
) {
    let mut sums = [[L::splat(0.0); 2]; ROWS];
    let mut rows = [left; ROWS];
    for (row, place) in rows.iter_mut().enumerate() {
        *place = left.add(row * left_stride);
    }
    let mut panel = panel;
    let whole = count - count % UNROLLED;
    let mut input = 0;
    while input < whole {
        for next in 0..UNROLLED {
            let weights = panel.wrapping_add(next * 2 * L::WIDTH);
            add_products::<L, ROWS>(&mut sums, &rows, input.wrapping_add(next), weights);
        }
        input = input.wrapping_add(UNROLLED);
        panel = panel.wrapping_add(UNROLLED * 2 * L::WIDTH);
    }
    for input in whole..count {
        add_products::<L, ROWS>(&mut sums, &rows, input, panel);
        panel = panel.wrapping_add(2 * L::WIDTH);
    }
    for (row, [first, second]) in sums.into_iter().enumerate() {
        L::store(out.add(row * out_stride), first);
        L::store(out.add(row * out_stride + L::WIDTH), second);
    }
}

/// One input of each row, times its weights.
#[inline(always)]
unsafe fn add_products<L: Lanes, const ROWS: usize>(
    sums: &mut [[L::F; 2]; ROWS],
    rows: &[*const f32; ROWS],
    input: usize,
    weights: *const f32,
) {
    let weights = [L::load(weights), L::load(weights.wrapping_add(L::WIDTH))];
    for row in 0..ROWS {
        let value = L::splat(rows[row].wrapping_add(input).read_unaligned());
        sums[row][0] = L::fma(value, weights[0], sums[row][0]);
        sums[row][1] = L::fma(value, weights[1], sums[row][1]);
    }
}

/// f32 by f32.
pub(super) struct Floats;

impl Tile for Floats {
    type A = f32;
    type W = f32;

    #[inline(always)]
    unsafe fn tile<L: Lanes, const ROWS: usize>(
        product: &Product<'_, f32, f32>,
        row: usize,
        column: usize,
        out: *mut f32,
    ) {
        let inputs = product.weights.inputs;
        let left = product.left.as_ptr().add(row * product.left_stride);
        let panel = product.weights.values.as_ptr().add((product.first + column) * inputs);
        tile_f32::<L, ROWS>(inputs, left, product.left_stride, panel, out, 2 * L::WIDTH);
    }
}

/// The sums of a tile of integers, each vector of weights holding `GROUP` inputs a lane.
#[inline(always)]
unsafe fn integer_tile<L: Lanes, T: IntegerTile, const ROWS: usize>(
    product: &Product<'_, T::A, T::W>,
    row: usize,
    column: usize,
    out: *mut f32,
) {
    let column = product.first + column;
    let (inputs, stride) = (product.weights.inputs, product.left_stride);
    let left = product.left.as_ptr().add(row * stride);
    let panel = product.weights.values.as_ptr().add(column * inputs);
    let mut sums = [[L::zero_i32(); 2]; ROWS];
    let mut rows = [left.cast::<i32>(); ROWS];
    for (row, place) in rows.iter_mut().enumerate() {
        *place = left.add(row * stride).cast();
    }
    let mut panel = panel.cast::<i32>();
    let groups = inputs / T::GROUP;
    let whole = groups - groups % UNROLLED;
    let mut group = 0;
    while group < whole {
        for next in 0..UNROLLED {
            let weights = panel.wrapping_add(next * 2 * L::WIDTH);
            add_dots::<L, T, ROWS>(&mut sums, &rows, group.wrapping_add(next), weights);
        }
        group = group.wrapping_add(UNROLLED);
        panel = panel.wrapping_add(UNROLLED * 2 * L::WIDTH);
    }
    for group in whole..groups {
        add_dots::<L, T, ROWS>(&mut sums, &rows, group, panel);
        panel = panel.wrapping_add(2 * L::WIDTH);
    }
    let scales = product.weights.scales.as_ptr().add(column);
    for (index, sums) in sums.into_iter().enumerate() {
        let scale_place = (row + index) * product.scale_stride;
        let scale = L::splat(*product.scales.get_unchecked(scale_place));
        for (half, sum) in sums.into_iter().enumerate() {
            let sum = T::centre::<L>(product, sum, scale_place, column + half * L::WIDTH);
            let scale = L::mul(scale, L::load(scales.add(half * L::WIDTH)));
            L::store(out.add((2 * index + half) * L::WIDTH), L::mul(L::to_f32(sum), scale));
        }
    }
}

/// One group of inputs of each row, times its weights.
#[inline(always)]
unsafe fn add_dots<L: Lanes, T: IntegerTile, const ROWS: usize>(
    sums: &mut [[L::I; 2]; ROWS],
    rows: &[*const i32; ROWS],
    group: usize,
    weights: *const i32,
) {
    let weights = [L::load_i32(weights), L::load_i32(weights.wrapping_add(L::WIDTH))];
    for row in 0..ROWS {
        let value = L::splat_i32(rows[row].wrapping_add(group).read_unaligned());
        sums[row][0] = T::dot::<L>(sums[row][0], value, weights[0]);
        sums[row][1] = T::dot::<L>(sums[row][1], value, weights[1]);
    }
}

trait IntegerTile: Tile {
    const GROUP: usize;
    unsafe fn dot<L: Lanes>(sum: L::I, a: L::I, b: L::I) -> L::I;
    /// Takes the rows' zeros out of a sum.
    unsafe fn centre<L: Lanes>(
        product: &Product<'_, Self::A, Self::W>,
        sum: L::I,
        scale_place: usize,
        column: usize,
    ) -> L::I;
}

/// i16 by i16.
pub(super) struct Words;

impl Tile for Words {
    type A = i16;
    type W = i16;

    #[inline(always)]
    unsafe fn tile<L: Lanes, const ROWS: usize>(
        product: &Product<'_, i16, i16>,
        row: usize,
        column: usize,
        out: *mut f32,
    ) {
        integer_tile::<L, Self, ROWS>(product, row, column, out);
    }
}

impl IntegerTile for Words {
    const GROUP: usize = 2;

    #[inline(always)]
    unsafe fn dot<L: Lanes>(sum: L::I, a: L::I, b: L::I) -> L::I {
        L::dot_i16(sum, a, b)
    }
    #[inline(always)]
    unsafe fn centre<L: Lanes>(_: &Product<'_, i16, i16>, sum: L::I, _: usize, _: usize) -> L::I {
        sum
    }
}

/// u8 by i8.
pub(super) struct Bytes;

impl Tile for Bytes {
    type A = u8;
    type W = i8;

    #[inline(always)]
    unsafe fn tile<L: Lanes, const ROWS: usize>(
        product: &Product<'_, u8, i8>,
        row: usize,
        column: usize,
        out: *mut f32,
    ) {
        integer_tile::<L, Self, ROWS>(product, row, column, out);
    }
}

impl IntegerTile for Bytes {
    const GROUP: usize = 4;

    #[inline(always)]
    unsafe fn dot<L: Lanes>(sum: L::I, a: L::I, b: L::I) -> L::I {
        L::dot_bytes(sum, a, b)
    }
    #[inline(always)]
    unsafe fn centre<L: Lanes>(product: &Product<'_, u8, i8>, sum: L::I, scale_place: usize, column: usize) -> L::I {
        let zero = L::splat_i32(*product.zeros.get_unchecked(scale_place));
        let weights = L::load_i32(product.weights.sums.as_ptr().add(column));
        L::sub_i32(sum, L::mul_i32(zero, weights))
    }
}

/// Calls a function whose last generic parameter is a number of rows known only now.
macro_rules! with_rows {
    ($rows:expr, $limit:expr, |$N:ident| $call:expr) => {
        with_rows!(@arms $rows, $limit, $N, $call; 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    (@arms $rows:expr, $limit:expr, $N:ident, $call:expr; $($n:literal)*) => {
        match $rows {
            $($n if $n <= $limit => { const $N: usize = $n; $call })*
            _ => unreachable!("a tile has between one row and as many as its kernel's"),
        }
    };
}
pub(super) use with_rows;

/// Computes a product.
///
/// # Safety
/// [`Product::check`] has passed, and the processor has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn multiply<L: Lanes, T: Tile>(product: &mut Product<'_, T::A, T::W>) {
    let columns = 2 * L::WIDTH;
    let mut tile = [0.0f32; ROWS_MAX * 2 * WIDTH_MAX];
    let tile = tile.as_mut_ptr();
    // While a panel is read, row after row, the next one is brought nearer, a share with each tile.
    let panel_bytes = columns * product.weights.inputs * size_of::<T::W>();
    let share = panel_bytes.div_ceil(product.rows.div_ceil(L::ROWS)).next_multiple_of(LINE_BYTES);
    let mut column = 0;
    while column < product.outputs {
        let next = (product.first + column + columns) * product.weights.inputs;
        let mut coming = product.weights.values.as_ptr().wrapping_add(next).cast::<u8>();
        let end = coming.wrapping_add(panel_bytes);
        let mut row = 0;
        while row < product.rows {
            let rows = (product.rows - row).min(L::ROWS);
            let until = coming.wrapping_add(share);
            while coming < until && coming < end {
                L::prefetch(coming);
                coming = coming.wrapping_add(LINE_BYTES);
            }
            with_rows!(rows, L::ROWS, |ROWS| T::tile::<L, ROWS>(product, row, column, tile));
            for index in 0..rows {
                finish::<L, T>(product, row + index, column, tile.add(index * columns));
            }
            row += rows;
        }
        column += columns;
    }
}

/// From sums to results: one row of one panel.
#[inline(always)]
unsafe fn finish<L: Lanes, T: Tile>(product: &mut Product<'_, T::A, T::W>, row: usize, column: usize, sums: *mut f32) {
    let columns = 2 * L::WIDTH;
    let place = row * product.out_stride + column;
    let out = product.out.as_mut_ptr().add(place);
    let start = match product.start {
        Start::Zero => None,
        Start::Result => Some(out.cast_const()),
        Start::Rows(rows) => Some(rows.as_ptr().add(place)),
    };
    let left = product.outputs - column;
    if left >= columns {
        finish_panel::<L>(sums, start, product.bias, product.first + column, product.activation, out);
        return;
    }
    // The last panel is not full: its start and results pass through whole vectors of our own.
    let mut whole = [0.0f32; 2 * WIDTH_MAX];
    if let Some(start) = start {
        std::ptr::copy_nonoverlapping(start, whole.as_mut_ptr(), left);
    }
    let whole_start = start.map(|_| whole.as_ptr());
    finish_panel::<L>(sums, whole_start, product.bias, product.first + column, product.activation, sums);
    std::ptr::copy_nonoverlapping(sums.cast_const(), out, left);
}

#[inline(always)]
unsafe fn finish_panel<L: Lanes>(
    sums: *const f32,
    start: Option<*const f32>,
    bias: Option<&[f32]>,
    column: usize,
    activation: Option<Activation>,
    out: *mut f32,
) {
    for half in 0..2 {
        let at = half * L::WIDTH;
        let mut value = L::load(sums.add(at));
        if let Some(bias) = bias {
            value = L::add(value, L::load(bias.as_ptr().add(column + at)));
        }
        if let Some(start) = start {
            value = L::add(value, L::load(start.add(at)));
        }
        if let Some(activation) = activation {
            value = activate::<L>(activation, value);
        }
        L::store(out.add(at), value);
    }
}

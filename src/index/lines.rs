//! Codes in whole cache lines, so that no vector of them is torn between two.

use bytemuck::{Pod, Zeroable};

const LINE_BYTES: usize = 64;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

/// Values that begin at a cache line.
pub(super) struct Lines<T> {
    lines: Vec<Line>,
    values: usize,
    of: std::marker::PhantomData<T>,
}

impl<T: Pod> Lines<T> {
    pub(super) fn zeroed(values: usize) -> Self {
        let lines = vec![Line::zeroed(); (values * size_of::<T>()).div_ceil(LINE_BYTES)];
        Self { lines, values, of: std::marker::PhantomData }
    }

    pub(super) fn as_slice(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.values]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.values]
    }
}

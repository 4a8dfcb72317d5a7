//! Making a segment: usearch finds each row's neighbours, on the one thread that calls.
//!
//! usearch's own search is not used: it has no bound on what a damaged file makes it do, a slot a thread, and no way to fetch what
//! it will compare next. Its graph is read out and walked here, in less than half of its memory.

#![expect(unsafe_code, reason = "usearch hands its metric pointers to the codes")]

use std::collections::VecDeque;

use usearch::{IndexOptions, MetricKind, ScalarKind};

use super::super::kernel::{CODES_ALIGNED, Kernel};
use super::super::lines::Lines;
use super::super::matrix::Copies;
use super::segment::{LINKS, NO_LINK, Parts};

/// Nodes that are kept while a new one's neighbours are looked for.
const BREADTH: usize = 128;

/// Why there is no segment.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    /// usearch has refused, for want of memory most likely.
    #[error("usearch cannot make a graph of {rows} rows: {message}")]
    Refused { rows: usize, message: String },
    /// Whoever wanted it wants it no more.
    #[error("the building was given up")]
    GivenUp,
}

/// The parts of a segment of these rows, but those that no walk would come by. `goes_on` is asked before each row.
///
/// # Errors
/// When usearch refuses, or `goes_on` says no.
pub(super) fn build(
    rows: &Copies,
    stride: usize,
    kernel: &'static Kernel,
    mut goes_on: impl FnMut() -> bool,
) -> Result<Parts, BuildError> {
    let count = rows.places.len();
    let refused = |error: &dyn std::fmt::Display| BuildError::Refused { rows: count, message: error.to_string() };
    // A vector is a row's codes, and the four bytes of its scale.
    let dims = stride + CODES_ALIGNED;
    let options = IndexOptions {
        dimensions: dims,
        metric: MetricKind::IP,
        quantization: ScalarKind::I8,
        connectivity: LINKS / 2,
        expansion_add: BREADTH,
        expansion_search: BREADTH,
        multi: false,
    };
    let mut graph = usearch::Index::new(&options).map_err(|error| refused(&error))?;
    graph.reserve_capacity_and_threads(count, 1).map_err(|error| refused(&error))?;
    let metric = move |a: *const i8, b: *const i8| {
        // SAFETY: usearch calls this with vectors of the dimensions that it was made for, which live while it does.
        let (a, b) = unsafe { (std::slice::from_raw_parts(a, dims), std::slice::from_raw_parts(b, dims)) };
        1.0 - kernel.pair(&a[..stride], &b[..stride]) as f32 * scale_of(a, stride) * scale_of(b, stride)
    };
    graph.change_metric::<i8>(Box::new(metric));
    let mut vector = vec![0i8; dims];
    for row in 0..count {
        if !goes_on() {
            return Err(BuildError::GivenUp);
        }
        vector[..stride].copy_from_slice(&rows.codes[row * stride..][..stride]);
        let scale = rows.scales[row].to_ne_bytes().map(|byte| byte as i8);
        vector[stride..][..scale.len()].copy_from_slice(&scale);
        graph.add::<i8>(row as u64, &vector).map_err(|error| refused(&error))?;
    }
    let mut links = vec![NO_LINK; count * LINKS];
    let mut keys = [0u64; LINKS];
    for (row, links) in links.chunks_exact_mut(LINKS).enumerate() {
        let found = graph.neighbors(row as u64, 0).drain_into(&mut keys);
        let others = keys[..found].iter().filter(|&&key| key != row as u64 && key < count as u64);
        links.iter_mut().zip(others).for_each(|(link, &key)| *link = key as u32);
    }
    drop(graph);
    Ok(in_order(rows, &links, stride))
}

fn scale_of(vector: &[i8], stride: usize) -> f32 {
    let [a, b, c, d] = [0, 1, 2, 3].map(|at| vector[stride + at] as u8);
    f32::from_ne_bytes([a, b, c, d])
}

/// The rows in the order in which they are met, breadth first; those that are not met are left out.
fn in_order(rows: &Copies, links: &[u32], stride: usize) -> Parts {
    let count = rows.places.len();
    let mut number = vec![NO_LINK; count];
    let mut order: Vec<u32> = Vec::with_capacity(count);
    let mut waiting = VecDeque::new();
    if count > 0 {
        number[0] = 0;
        order.push(0);
        waiting.push_back(0u32);
    }
    while let Some(row) = waiting.pop_front() {
        for &link in links[row as usize * LINKS..][..LINKS].iter().take_while(|&&link| link != NO_LINK) {
            if number[link as usize] == NO_LINK {
                number[link as usize] = order.len() as u32;
                order.push(link);
                waiting.push_back(link);
            }
        }
    }
    let mut parts = Parts {
        codes: Lines::zeroed(order.len() * stride),
        scales: order.iter().map(|&row| rows.scales[row as usize]).collect(),
        links: vec![NO_LINK; order.len() * LINKS],
        places: order.iter().map(|&row| rows.places[row as usize]).collect(),
    };
    let codes = parts.codes.as_mut_slice().chunks_exact_mut(stride);
    for ((&row, codes), renumbered) in order.iter().zip(codes).zip(parts.links.chunks_exact_mut(LINKS)) {
        codes.copy_from_slice(&rows.codes[row as usize * stride..][..stride]);
        let of_row = &links[row as usize * LINKS..][..LINKS];
        for (link, &before) in renumbered.iter_mut().zip(of_row.iter().take_while(|&&link| link != NO_LINK)) {
            *link = number[before as usize];
        }
    }
    parts
}

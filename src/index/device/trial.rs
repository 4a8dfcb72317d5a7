//! A device's first task: made-up rows, whose scores are known. What a device computes is believed only after that.

use half::f16;

use super::arithmetic::length;
use super::{Accelerator, Batch, Fault, WORD_ROWS};
use crate::index::query::Query;

/// Rows: several tiles of any kernel, the last one in part.
const ROWS: usize = 1300;
/// Batches: each kernel has its own sizes.
const QUERIES: [usize; 6] = [1, 9, 17, 33, 70, 150];
/// Queries of a batch whose scores are all compared.
const COMPARED: usize = 2;
const KEEP: usize = 18;

/// Has the device search rows and compares what it finds. Afterwards none of them is allowed.
pub(super) fn try_out(device: &mut dyn Accelerator, dims: usize) -> Result<(), Fault> {
    let mut state = 1u64;
    let mut unit = || {
        let values: Vec<f64> = (0..dims)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f64 / f64::from(1 << 23) - 1.0
            })
            .collect();
        let length = values.iter().map(|value| value * value).sum::<f64>().sqrt();
        values.iter().map(|value| (value / length) as f32).collect::<Vec<f32>>()
    };
    let rows: Vec<Vec<f16>> = (0..ROWS).map(|_| unit().into_iter().map(f16::from_f32).collect()).collect();
    let vectors: Vec<Vec<f32>> = (0..*QUERIES.last().unwrap_or(&0)).map(|_| unit()).collect();
    // Every third place has no row, and rows are not written in order.
    let allowed = |place: usize| place % 3 != 2;
    let places: Vec<u32> = (0..ROWS as u32).rev().collect();
    let values: Vec<f16> = places.iter().flat_map(|&place| &rows[place as usize]).copied().collect();
    let mut words = vec![0u32; ROWS.div_ceil(WORD_ROWS)];
    (0..ROWS).filter(|&place| allowed(place)).for_each(|place| words[place / WORD_ROWS] |= 1 << (place % WORD_ROWS));

    device.grow(ROWS)?;
    device.write(&places, &values)?;
    device.allow(0, &words)?;
    let length_max = rows.iter().map(|row| length(row)).fold(0.0, f64::max);
    for count in QUERIES {
        let queries: Vec<Query<'_>> = vectors[..count].iter().map(|vector| Query::new(vector, 1)).collect();
        let rounded = device.arithmetic().round(&queries, dims);
        let ceilings = vec![f32::INFINITY; count];
        let found =
            device.nearest(&Batch { vectors: &rounded.vectors, ceilings: &ceilings, keep: KEEP, only: None })?;
        for (query, scored) in found.iter().enumerate().rev().take(COMPARED) {
            let bound = rounded.error(query, length_max);
            let score = |place: usize| -> f64 {
                vectors[query].iter().zip(&rows[place]).map(|(a, b)| f64::from(*a) * f64::from(b.to_f32())).sum()
            };
            let least = scored.iter().map(|scored| scored.score).fold(f32::INFINITY, f32::min);
            let mut returned: Vec<usize> = scored.iter().map(|scored| scored.place as usize).collect();
            returned.sort_unstable();
            returned.dedup();
            let possible = (0..ROWS).filter(|&place| allowed(place)).count();
            let right = returned.len() == KEEP.min(possible)
                && returned.iter().all(|&place| place < ROWS && allowed(place))
                && scored.iter().all(|scored| (f64::from(scored.score) - score(scored.place as usize)).abs() <= bound)
                && (0..ROWS)
                    .filter(|place| allowed(*place) && returned.binary_search(place).is_err())
                    .all(|place| score(place) <= f64::from(least) + bound);
            if !right || found.len() != count {
                return Err(Fault(format!("it computes wrongly: {count} queries were answered with wrong rows")));
            }
        }
    }
    device.allow(0, &vec![0; words.len()])
}

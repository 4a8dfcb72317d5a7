//! How broad walks through a segment have to be: measured on it, against comparing with every row.
//!
//! The queries are no rows of the segment, which would be found too easily, but lie between two of them: nearer to one, and as far from
//! the rows as questions are from answers. (With 100,000 and with 20,000 real rows, questions that were held out need walks of 192
//! and 81 for a recall of 0.99; half of the second row gives 75 and 85, four fifths 455 and 138.)

use super::super::codes::round_query;
use super::super::kernel::{BLOCK_ROWS, Kernel};
use super::super::lines::Lines;
use super::segment::{Breadths, Notes, Segment};

/// Queries that are tried.
const QUERIES: usize = 200;
/// What of the nearest walks have to find.
const RECALL: f64 = 0.99;
/// The part that a query has of its second row.
const OTHER: f32 = 0.65;
/// The narrowest walk and the broadest.
const BREADTHS: (u32, u32) = (12, 4096);

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) breadths: Breadths,
    /// Nodes that walks for few hits compare, on average.
    pub(super) compared: f64,
}

struct Sample {
    query: Lines<i16>,
    /// The least similarity of the 10 nearest, and of the 100.
    least: [f32; 2],
}

/// `None` if `goes_on` says no.
pub(super) fn calibrate(
    segment: &Segment,
    dims: usize,
    kernel: &Kernel,
    mut goes_on: impl FnMut() -> bool,
) -> Option<Measured> {
    let ks = [Breadths::K_FEW, Breadths::K_MAX].map(|k| k.min(segment.nodes()));
    let mut samples = Vec::with_capacity(QUERIES);
    for at in 0..QUERIES.min(segment.nodes()) {
        if !goes_on() {
            return None;
        }
        samples.push(Sample::new(segment, at, dims, kernel, ks));
    }
    let mut notes = Notes::default();
    let mut compared = 0.0;
    let mut breadths = [0; 2];
    for (which, breadth) in breadths.iter_mut().enumerate() {
        *breadth = BREADTHS.0.max(ks[which] as u32);
        loop {
            if !goes_on() {
                return None;
            }
            let (mut found, mut met) = (0, 0);
            for sample in &samples {
                let nearest = segment.walk(kernel, sample.query.as_slice(), *breadth as usize, &mut notes);
                found += nearest.take(ks[which]).filter(|&(similarity, _)| similarity >= sample.least[which]).count();
                met += notes.compared;
            }
            if which == 0 {
                compared = met as f64 / samples.len().max(1) as f64;
            }
            if found as f64 >= RECALL * (ks[which] * samples.len()) as f64 || *breadth >= BREADTHS.1 {
                break;
            }
            *breadth += breadth.div_ceil(8);
        }
    }
    let [few, many] = breadths;
    Some(Measured { breadths: Breadths { few, many: many.max(few) }, compared })
}

impl Sample {
    fn new(segment: &Segment, at: usize, dims: usize, kernel: &Kernel, ks: [usize; 2]) -> Self {
        let nodes = segment.nodes();
        let one = at * nodes / QUERIES.min(nodes);
        // Any other, by a multiplicative hash.
        let other = (one + 1 + (at * 0x9e37_79b1) % nodes) % nodes;
        let [one, other] = [one, other].map(|node| segment.decoded(node as u32, dims));
        let mixed: Vec<f32> = one.iter().zip(&other).map(|(one, other)| one + OTHER * other).collect();
        let length = super::super::query::length(&mixed).max(f64::MIN_POSITIVE) as f32;
        let mixed: Vec<f32> = mixed.iter().map(|value| value / length).collect();
        let mut query = Lines::zeroed(super::super::codes::stride(dims));
        round_query(&mixed, query.as_mut_slice());
        let mut similarities = Vec::with_capacity(nodes);
        let mut products = [0; BLOCK_ROWS];
        let all: Vec<u32> = (0..nodes as u32).collect();
        for some in all.chunks(BLOCK_ROWS) {
            segment.similarities(kernel, query.as_slice(), some, &mut products, |_, similarity| {
                similarities.push(similarity);
            });
        }
        let mut least = |k: usize| *similarities.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
        let least = [least(ks[0]), least(ks[1])];
        Self { query, least }
    }
}

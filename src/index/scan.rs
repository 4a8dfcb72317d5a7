//! One pass over the index: every row that may be in an answer, for many queries at once.
//!
//! ```text
//! threads take chunk after chunk
//!   a chunk is held still for 32 queries
//!     the rows that the filter admits are multiplied in blocks, which stay in the innermost cache
//!       a block's upper bounds are compared with each query's threshold; few blocks have one that reaches it
//! ```
//!
//! Threads are started for a scan that is long enough to pay for it, and end with it: in a pool shared with whoever
//! computes embeddings a search would wait behind a batch, and the system shares processors more fairly than that.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;

use super::chunk::{CHUNK_ROWS, Chunk, Part, Scales, places_of};
use super::codes::{Bounds, QueryScale, round_query, stride};
use super::kernel::{BLOCK_ROWS, Kernel};
use super::lines::Lines;
use super::query::{Filter, Query};
use super::selection::{Candidate, Candidates, Selection};

/// Queries that meet a chunk while it is held still.
const GROUP_QUERIES: usize = 32;
/// Products of codes that are worth another thread: about half a millisecond.
const THREAD_PRODUCTS: usize = 8 << 20;

/// Queries, rounded.
pub(super) struct Rounded<'a> {
    queries: &'a [Query<'a>],
    scales: Vec<QueryScale>,
    codes: Lines<i16>,
    dims: usize,
}

impl<'a> Rounded<'a> {
    pub(super) fn new(queries: &'a [Query<'a>], dims: usize) -> Self {
        let mut codes = Lines::zeroed(queries.len() * stride(dims));
        let of_queries = codes.as_mut_slice().chunks_exact_mut(stride(dims));
        let scales = queries.iter().zip(of_queries).map(|(query, codes)| round_query(query.vector, codes)).collect();
        Self { queries, scales, codes, dims }
    }

    /// One query of several.
    pub(super) fn one(&self, query: usize) -> Rounded<'a> {
        let mut codes = Lines::zeroed(stride(self.dims));
        codes.as_mut_slice().copy_from_slice(self.codes_of(query));
        Self { queries: &self.queries[query..=query], scales: vec![self.scales[query]], codes, dims: self.dims }
    }

    /// A query's codes.
    pub(super) fn codes_of(&self, query: usize) -> &[i16] {
        &self.codes.as_slice()[query * stride(self.dims)..][..stride(self.dims)]
    }
}

/// One pass for one set of queries.
pub(super) struct Scan<'a> {
    pub(super) kernel: &'static Kernel,
    pub(super) chunks: &'a [Arc<RwLock<Chunk>>],
    pub(super) rounded: &'a Rounded<'a>,
    pub(super) filter: &'a Filter<'a>,
    pub(super) part: Part,
    /// Rows that are kept for each that is wanted.
    pub(super) keep_times: usize,
    pub(super) threads_max: usize,
}

impl Scan<'_> {
    /// The candidates of each query.
    pub(super) fn run(&self) -> Vec<Candidates> {
        let rows = self.filter.places.map_or(self.chunks.len() * CHUNK_ROWS, <[u32]>::len);
        let products = rows * self.rounded.dims * self.rounded.queries.len();
        let threads = (products / THREAD_PRODUCTS).clamp(1, self.threads_max);
        let next = AtomicUsize::new(0);
        let mut selections = thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| self.share(&next))).collect();
            let mut selections = self.share(&next);
            for other in others {
                let other = other.join().expect("a scan does not panic");
                selections.iter_mut().zip(other).for_each(|(selection, other)| selection.merge(other));
            }
            selections
        });
        selections.drain(..).map(Selection::finish).collect()
    }

    /// What one thread finds in the chunks that it comes to take.
    fn share(&self, next: &AtomicUsize) -> Vec<Selection> {
        let queries = self.rounded.queries;
        let mut selections: Vec<Selection> =
            queries.iter().map(|query| Selection::new(query, query.k.saturating_mul(self.keep_times))).collect();
        let mut picked = Vec::with_capacity(CHUNK_ROWS);
        let mut products = vec![[0; BLOCK_ROWS]; GROUP_QUERIES.min(queries.len())];
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            let Some(lock) = self.chunks.get(chunk) else { return selections };
            let first = chunk * CHUNK_ROWS;
            if self.filter.places.is_some_and(|places| places_of(places, first).is_empty()) {
                continue;
            }
            for (group, selections) in selections.chunks_mut(GROUP_QUERIES).enumerate() {
                let chunk = lock.read().expect("no thread panics while it holds a chunk");
                chunk.pick(self.filter, self.part, first, &mut picked);
                self.scan(&chunk, first, &picked, group * GROUP_QUERIES, selections, &mut products[..]);
            }
        }
    }

    /// Selects for some queries from the picked rows of a chunk.
    fn scan(
        &self,
        chunk: &Chunk,
        first_place: usize,
        picked: &[u16],
        first_query: usize,
        selections: &mut [Selection],
        products: &mut [[i32; BLOCK_ROWS]],
    ) {
        let Rounded { dims, ref scales, ref codes, .. } = *self.rounded;
        let codes = &codes.as_slice()[first_query * stride(dims)..][..selections.len() * stride(dims)];
        let products = &mut products[..selections.len()];
        let bounds: Vec<Bounds> = scales[first_query..][..selections.len()]
            .iter()
            .map(|scale| Bounds::new(scale, chunk.length_max()))
            .collect();
        let mut known = Scales { scales: [0.0; BLOCK_ROWS], errors: [0.0; BLOCK_ROWS] };
        let mut rest = picked;
        while !rest.is_empty() {
            let (rows, next) = rest.split_at(rest.len().min(BLOCK_ROWS));
            self.kernel.multiply(chunk.block(dims, rows, next), codes, products);
            chunk.scales_of(rows, &mut known);
            for ((selection, products), bounds) in selections.iter_mut().zip(&*products).zip(&bounds) {
                if !any_reaches(selection.threshold(), products, &known, *bounds) {
                    continue;
                }
                for (at, &row) in rows.iter().enumerate() {
                    let (lower, upper) = bounds.of(products[at], known.scales[at], known.errors[at]);
                    if upper >= selection.threshold() {
                        let facts = chunk.facts(row);
                        let place = (first_place + usize::from(row)) as u32;
                        let (sequence, key) = (facts.sequence, facts.key);
                        selection.offer(Candidate { lower, upper, place, sequence, key });
                    }
                }
            }
            rest = next;
        }
    }
}

/// Whether an upper bound of a block reaches the threshold. The block may be taken for longer than it is, which costs a look.
#[inline]
fn any_reaches(threshold: f32, products: &[i32; BLOCK_ROWS], known: &Scales, bounds: Bounds) -> bool {
    let mut any = false;
    for ((&product, &scale), &error) in products.iter().zip(&known.scales).zip(&known.errors) {
        any |= bounds.of(product, scale, error).1 >= threshold;
    }
    any
}

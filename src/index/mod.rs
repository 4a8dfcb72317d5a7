//! The rows most similar to a vector, found exactly.
//!
//! An [`Index`] keeps, of one model's rows, a copy in eight bits a value, by the place that each has in the store. A search
//! reads all of it, half of what the rows are, and knows of each row between which bounds its similarity lies
//! (`codes.rs`). Those whose bounds don't keep them out are few; their rows are asked for, and the answer is made of them.
//!
//! ```text
//! set, clear ─► chunk.rs    1,024 places behind a lock: codes, bounds, facts
//! search ─► scan.rs         chunks × queries, on several threads      kernel/       products of integers
//!           selection.rs    who may be in the answer                  codes.rs      bounds
//!           rescore.rs      who is: by the rows themselves
//! ```
//!
//! Promises: an answer is what comparing the query with every row would give, ties and all, by [`similarity`], which is the
//! same to the bit on every processor. A row that was set before a search began, and stays, is seen by it. Rows are set and
//! cleared while searches run; neither waits for more than a chunk.
//!
//! Never: keeps a row in full, reads a file, knows what a store is, finds a row that is zero or not finite.

mod chunk;
mod codes;
mod kernel;
mod lines;
mod query;
mod rescore;
mod scan;
mod selection;

pub use query::{Cursor, Filter, HITS_MAX, Hit, Query, Rows, SearchError};
pub use rescore::similarity;

use std::num::NonZero;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;

use half::f16;

use crate::domain::Key;
use chunk::{CHUNK_ROWS, Chunk};
use kernel::Kernel;
use rescore::settle;
use scan::{Rounded, Scan};

/// By how much more is kept, if rows are gone that had kept others out.
const WIDEN_TIMES: usize = 4;

/// A row to be found.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Where it is: a small number, one row to each.
    pub place: u32,
    /// What it is called.
    pub key: Key,
    /// Its place in the order of writes.
    pub sequence: u64,
    /// The number of its namespace.
    pub namespace: u32,
    /// When it was written, in Unix seconds.
    pub created: u32,
    /// When it ceases to be valid, in Unix seconds.
    pub expires: Option<u32>,
    /// The vector; of length one, or bounds are wide and searches slow.
    pub unit: &'a [f16],
}

/// One model's rows, for exact search.
pub struct Index {
    dims: usize,
    kernel: &'static Kernel,
    threads_max: usize,
    chunks: RwLock<Vec<Arc<RwLock<Chunk>>>>,
    chunks_with_memory: AtomicUsize,
    rows: AtomicIsize,
}

impl Index {
    /// An index of no rows, which will have `dims` values each. Searches use all processors.
    ///
    /// # Panics
    /// When `dims` is zero.
    #[must_use]
    pub fn new(dims: usize) -> Self {
        assert!(dims > 0, "rows have values");
        Self {
            dims,
            kernel: Kernel::supported()[0],
            threads_max: thread::available_parallelism().map_or(1, NonZero::get),
            chunks: RwLock::default(),
            chunks_with_memory: AtomicUsize::new(0),
            rows: AtomicIsize::new(0),
        }
    }

    /// As it is, but with at most so many threads a search, the caller's included.
    #[must_use]
    pub fn with_threads_max(self, threads_max: NonZero<usize>) -> Self {
        Self { threads_max: threads_max.get(), ..self }
    }

    /// Puts a row in its place, unless a later one is there. A row that is zero or not finite cannot be found: it only
    /// takes its place from the one before.
    ///
    /// # Panics
    /// When the row is not as long as the index's rows.
    pub fn set(&self, row: Row<'_>) {
        assert_eq!(row.unit.len(), self.dims, "a row is as long as the index's rows");
        let lock = self.chunk_with(row.place);
        let mut chunk = lock.write().expect("no thread panics while it holds a chunk");
        let had_memory = chunk.has_memory();
        let change = chunk.set(row.place as usize % CHUNK_ROWS, &row);
        self.rows.fetch_add(change, Ordering::Relaxed);
        self.chunks_with_memory.fetch_add(usize::from(chunk.has_memory() && !had_memory), Ordering::Relaxed);
    }

    /// Empties a place.
    pub fn clear(&self, place: u32) {
        let lock = self.chunks().get(place as usize / CHUNK_ROWS).cloned();
        if let Some(lock) = lock {
            let mut chunk = lock.write().expect("no thread panics while it holds a chunk");
            self.rows.fetch_add(chunk.clear(place as usize % CHUNK_ROWS), Ordering::Relaxed);
        }
    }

    /// How many rows there are, expired ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.load(Ordering::Relaxed).max(0) as usize
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many values a row has.
    #[must_use]
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Bytes of memory that the rows take here.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.chunks_with_memory.load(Ordering::Relaxed) * Chunk::memory_bytes(self.dims)
            + self.chunks().len() * size_of::<(Arc<RwLock<Chunk>>, RwLock<Chunk>)>()
    }

    /// Each query's nearest rows, nearest first: fewer than it wants only if there are no more.
    ///
    /// Rows that the index has and `rows` has not, or not any more, are in no answer, and keep none out of it. Of a row that
    /// is replaced meanwhile, the one that was shown counts.
    ///
    /// # Errors
    /// When a query cannot be answered; then none is.
    pub fn search(
        &self,
        queries: &[Query<'_>],
        filter: &Filter<'_>,
        rows: &dyn Rows,
    ) -> Result<Vec<Vec<Hit>>, SearchError> {
        if let Some((query, k)) =
            queries.iter().map(|query| query.k).enumerate().find(|(_, k)| !(1..=HITS_MAX).contains(k))
        {
            return Err(SearchError::Hits { query, k });
        }
        let chunks = self.chunks().clone();
        let mut answers = vec![Vec::new(); queries.len()];
        let mut open: Vec<usize> = (0..queries.len()).collect();
        let mut keep_times = 1;
        while !open.is_empty() {
            let asked: Vec<Query<'_>> = open.iter().map(|&index| queries[index]).collect();
            let rounded = Rounded::new(&asked, self.dims)?;
            let (kernel, threads_max) = (self.kernel, self.threads_max);
            let scan = Scan { kernel, chunks: &chunks, rounded: &rounded, filter, keep_times, threads_max };
            let mut found = scan.run().into_iter();
            open.retain(|&index| {
                let candidates = found.next().expect("a scan finds candidates for each query");
                let hits = settle(&queries[index], candidates, rows);
                hits.map(|hits| answers[index] = hits).is_none()
            });
            keep_times *= WIDEN_TIMES;
        }
        Ok(answers)
    }

    fn chunks(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<RwLock<Chunk>>>> {
        self.chunks.read().expect("no thread panics while it holds the list of chunks")
    }

    /// The chunk that a place is in, made if need be.
    fn chunk_with(&self, place: u32) -> Arc<RwLock<Chunk>> {
        let at = place as usize / CHUNK_ROWS;
        if let Some(chunk) = self.chunks().get(at) {
            return Arc::clone(chunk);
        }
        let mut chunks = self.chunks.write().expect("no thread panics while it holds the list of chunks");
        if chunks.len() <= at {
            chunks.resize_with(at + 1, Arc::default);
        }
        Arc::clone(&chunks[at])
    }
}

#[cfg(test)]
mod tests;

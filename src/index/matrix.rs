//! Every row in eight bits, by place: what the processor's searchers read.

use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard};

use super::Row;
use super::chunk::{CHUNK_ROWS, Change, Chunk, Cover, Facts};
use super::codes::stride;
use super::query::Filter;

/// Chunks of rows, in the order of places.
pub(super) struct Matrix {
    dims: usize,
    chunks: RwLock<Vec<Arc<RwLock<Chunk>>>>,
    chunks_with_memory: AtomicUsize,
    rows: AtomicIsize,
    covered: AtomicIsize,
}

/// Copies of rows.
#[derive(Default)]
pub(super) struct Copies {
    /// A stride a row.
    pub(super) codes: Vec<i8>,
    /// What a code of one stands for in each.
    pub(super) scales: Vec<f32>,
    /// Where each is.
    pub(super) places: Vec<u32>,
}

/// Chunks that a share of rows is estimated by.
const SAMPLE_CHUNKS: usize = 4;

impl Matrix {
    pub(super) fn new(dims: usize) -> Self {
        Self {
            dims,
            chunks: RwLock::default(),
            chunks_with_memory: AtomicUsize::new(0),
            rows: AtomicIsize::new(0),
            covered: AtomicIsize::new(0),
        }
    }

    pub(super) fn dims(&self) -> usize {
        self.dims
    }

    /// Puts a row in its place, unless a later one is there. Returns the segment that had covered the row before.
    pub(super) fn set(&self, row: &Row<'_>) -> Cover {
        let lock = self.chunk_with(row.place);
        let mut chunk = lock.write().expect("no thread panics while it holds a chunk");
        let had_memory = chunk.has_memory();
        let change = chunk.set(row.place as usize % CHUNK_ROWS, row);
        self.chunks_with_memory.fetch_add(usize::from(chunk.has_memory() && !had_memory), Ordering::Relaxed);
        self.count(change)
    }

    /// Empties a place. Returns the segment that had covered its row.
    pub(super) fn clear(&self, place: u32) -> Cover {
        let lock = self.read().get(place as usize / CHUNK_ROWS).cloned()?;
        let mut chunk = lock.write().expect("no thread panics while it holds a chunk");
        self.count(chunk.clear(place as usize % CHUNK_ROWS))
    }

    fn count(&self, Change { rows, uncovered }: Change) -> Cover {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.covered.fetch_sub(isize::from(uncovered.is_some()), Ordering::Relaxed);
        uncovered
    }

    /// Has a segment cover the row in a place, if it has these codes, and is covered by none or by one that `gives_up` it.
    /// Returns whether it is covered by it now.
    pub(super) fn cover(
        &self,
        segment: Cover,
        (place, codes, scale): (u32, &[i8], f32),
        gives_up: impl Fn(Cover) -> bool,
    ) -> bool {
        let Some(lock) = self.read().get(place as usize / CHUNK_ROWS).cloned() else { return false };
        let mut chunk = lock.write().expect("no thread panics while it holds a chunk");
        let at = place as usize % CHUNK_ROWS;
        let before = chunk.cover(at);
        if before.is_some() && !gives_up(before) || !chunk.cover_by(at, codes, scale, segment) {
            return false;
        }
        let change = isize::from(segment.is_some()) - isize::from(before.is_some());
        self.covered.fetch_add(change, Ordering::Relaxed);
        segment.is_some()
    }

    /// How many rows no segment covers.
    pub(super) fn tail(&self) -> usize {
        self.len().saturating_sub(self.covered.load(Ordering::Relaxed).max(0) as usize)
    }

    /// Copies of the rows that are wanted, by what covers them; at most so many.
    pub(super) fn copies(&self, rows_max: usize, wants: impl Fn(Cover) -> bool) -> Copies {
        let stride = stride(self.dims);
        let mut copies = Copies::default();
        for (chunk, lock) in self.chunks().iter().enumerate() {
            let rows = lock.read().expect("no thread panics while it holds a chunk");
            for (at, _, codes, scale) in rows.rows(stride).filter(|(_, cover, ..)| wants(*cover)) {
                if copies.places.len() == rows_max {
                    return copies;
                }
                copies.codes.extend_from_slice(codes);
                copies.scales.push(scale);
                copies.places.push((chunk * CHUNK_ROWS + at) as u32);
            }
        }
        copies
    }

    /// About what share of the rows a filter admits, by a few chunks that lie apart.
    pub(super) fn share(&self, filter: &Filter<'_>) -> f64 {
        let chunks = self.read();
        let step = (chunks.len() / SAMPLE_CHUNKS).max(1);
        let (mut admitted, mut rows) = (0, 0);
        for lock in chunks.iter().step_by(step) {
            let of_chunk = lock.read().expect("no thread panics while it holds a chunk").admitted(filter);
            (admitted, rows) = (admitted + of_chunk.0, rows + of_chunk.1);
        }
        if rows == 0 { 1.0 } else { admitted as f64 / rows as f64 }
    }

    /// How many rows there are, expired ones included.
    pub(super) fn len(&self) -> usize {
        self.rows.load(Ordering::Relaxed).max(0) as usize
    }

    /// How many places there are up to the last that ever had a row.
    pub(super) fn places(&self) -> usize {
        self.read().len() * CHUNK_ROWS
    }

    /// Bytes of memory that the rows take.
    pub(super) fn memory_bytes(&self) -> usize {
        self.chunks_with_memory.load(Ordering::Relaxed) * Chunk::memory_bytes(self.dims)
            + self.read().len() * size_of::<(Arc<RwLock<Chunk>>, RwLock<Chunk>)>()
    }

    /// The chunks there are now.
    pub(super) fn chunks(&self) -> Vec<Arc<RwLock<Chunk>>> {
        self.read().clone()
    }

    /// The sequence number of the row in a place.
    pub(super) fn sequence_at(&self, place: u32) -> Option<u64> {
        let lock = self.read().get(place as usize / CHUNK_ROWS).cloned()?;
        let chunk = lock.read().expect("no thread panics while it holds a chunk");
        chunk.found(place as usize % CHUNK_ROWS).map(|facts| facts.sequence)
    }

    /// What is in these places, where the filter, its places apart, admits it.
    pub(super) fn facts_of(&self, places: &[u32], filter: &Filter<'_>) -> Vec<Option<Facts>> {
        let chunks = self.read();
        let of = |&place: &u32| {
            let lock = chunks.get(place as usize / CHUNK_ROWS)?;
            let chunk = lock.read().expect("no thread panics while it holds a chunk");
            chunk.facts_at(place as usize % CHUNK_ROWS, filter)
        };
        places.iter().map(of).collect()
    }

    /// Sets the bit of each row that the filter admits, as far as the words go.
    pub(super) fn admit(&self, filter: &Filter<'_>, words: &mut [u32]) {
        let of_chunks = words.chunks_mut(CHUNK_ROWS / u32::BITS as usize);
        for (number, (lock, words)) in self.chunks().iter().zip(of_chunks).enumerate() {
            let chunk = lock.read().expect("no thread panics while it holds a chunk");
            chunk.admit(filter, number * CHUNK_ROWS, words);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Arc<RwLock<Chunk>>>> {
        self.chunks.read().expect("no thread panics while it holds the list of chunks")
    }

    /// The chunk that a place is in, made if need be.
    fn chunk_with(&self, place: u32) -> Arc<RwLock<Chunk>> {
        let at = place as usize / CHUNK_ROWS;
        if let Some(chunk) = self.read().get(at) {
            return Arc::clone(chunk);
        }
        let mut chunks = self.chunks.write().expect("no thread panics while it holds the list of chunks");
        if chunks.len() <= at {
            chunks.resize_with(at + 1, Arc::default);
        }
        Arc::clone(&chunks[at])
    }
}

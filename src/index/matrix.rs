//! Every row in eight bits, by place: what the processor's searchers read.

use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard};

use super::Row;
use super::chunk::{CHUNK_ROWS, Chunk};

/// Chunks of rows, in the order of places.
pub(super) struct Matrix {
    dims: usize,
    chunks: RwLock<Vec<Arc<RwLock<Chunk>>>>,
    chunks_with_memory: AtomicUsize,
    rows: AtomicIsize,
}

impl Matrix {
    pub(super) fn new(dims: usize) -> Self {
        Self { dims, chunks: RwLock::default(), chunks_with_memory: AtomicUsize::new(0), rows: AtomicIsize::new(0) }
    }

    pub(super) fn dims(&self) -> usize {
        self.dims
    }

    /// Puts a row in its place, unless a later one is there.
    pub(super) fn set(&self, row: &Row<'_>) {
        let lock = self.chunk_with(row.place);
        let mut chunk = lock.write().expect("no thread panics while it holds a chunk");
        let had_memory = chunk.has_memory();
        let change = chunk.set(row.place as usize % CHUNK_ROWS, row);
        self.rows.fetch_add(change, Ordering::Relaxed);
        self.chunks_with_memory.fetch_add(usize::from(chunk.has_memory() && !had_memory), Ordering::Relaxed);
    }

    /// Empties a place.
    pub(super) fn clear(&self, place: u32) {
        let lock = self.read().get(place as usize / CHUNK_ROWS).cloned();
        if let Some(lock) = lock {
            let mut chunk = lock.write().expect("no thread panics while it holds a chunk");
            self.rows.fetch_add(chunk.clear(place as usize % CHUNK_ROWS), Ordering::Relaxed);
        }
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

//! The exact searcher of the processor: every row's bounds, and of those that may be in the answer the rows themselves.

use std::num::NonZero;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::chunk::Part;
use super::kernel::Kernel;
use super::matrix::Matrix;
use super::query::{Filter, Hit, Query, Rows, SearchError};
use super::rescore::settle;
use super::scan::{Rounded, Scan};
use super::searcher::{Asked, Device, Meter, Method, Path, Searcher};
use super::selection::Candidates;

/// By how much more is kept, if rows are gone that had kept others out.
const WIDEN_TIMES: usize = 4;

/// Scans the matrix.
pub(super) struct Exact {
    pub(super) matrix: Arc<Matrix>,
    pub(super) kernel: &'static Kernel,
    pub(super) threads_max: usize,
    pub(super) meter: Meter,
}

impl Exact {
    /// With the best instructions there are, on all processors.
    pub(super) fn over(matrix: Arc<Matrix>) -> Self {
        let threads_max = thread::available_parallelism().map_or(1, NonZero::get);
        Self { matrix, kernel: Kernel::supported()[0], threads_max, meter: Meter::default() }
    }

    fn units(asked: &Asked<'_>) -> f64 {
        (asked.places * asked.queries) as f64
    }

    /// The candidates of each query among the rows of a part.
    pub(super) fn scan(
        &self,
        rounded: &Rounded<'_>,
        filter: &Filter<'_>,
        part: Part,
        threads_max: usize,
    ) -> Vec<Candidates> {
        let (kernel, chunks) = (self.kernel, &self.matrix.chunks());
        Scan { kernel, chunks, rounded, filter, part, keep_times: 1, threads_max }.run()
    }
}

impl Searcher for Exact {
    fn path(&self) -> Path {
        Path { method: Method::Exact, device: Device::Cpu }
    }

    fn serves(&self, _: &Asked<'_>) -> bool {
        true
    }

    fn estimate(&self, asked: &Asked<'_>) -> Option<Duration> {
        self.meter.estimate(asked.queries, Self::units(asked))
    }

    fn search(
        &self,
        queries: &[Query<'_>],
        filter: &Filter<'_>,
        rows: &dyn Rows,
    ) -> Result<Vec<Vec<Hit>>, SearchError> {
        let started = Instant::now();
        let chunks = self.matrix.chunks();
        let mut answers = vec![Vec::new(); queries.len()];
        let mut open: Vec<usize> = (0..queries.len()).collect();
        let mut keep_times = 1;
        while !open.is_empty() {
            let asked: Vec<Query<'_>> = open.iter().map(|&index| queries[index]).collect();
            let (rounded, part) = (&Rounded::new(&asked, self.matrix.dims()), Part::All);
            let (kernel, threads_max) = (self.kernel, self.threads_max);
            let scan = Scan { kernel, chunks: &chunks, rounded, filter, part, keep_times, threads_max };
            let mut found = scan.run().into_iter();
            open.retain(|&index| {
                let candidates = found.next().expect("a scan finds candidates for each query");
                let hits = settle(&queries[index], candidates, rows);
                hits.map(|hits| answers[index] = hits).is_none()
            });
            keep_times *= WIDEN_TIMES;
        }
        // What a few places take says little of what many do.
        if !queries.is_empty() && filter.places.is_none() {
            let asked = Asked::new(queries, filter, self.matrix.places());
            self.meter.note(asked.queries, Self::units(&asked), started.elapsed());
        }
        Ok(answers)
    }

    /// None but the index's own.
    fn memory_bytes(&self) -> usize {
        0
    }
}

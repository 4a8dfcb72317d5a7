//! Who answers, and what is said of it.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::super::searcher::{Asked, Searcher};
use super::*;

/// A searcher that says how long it would take, finds nothing, and may fail.
struct Double {
    path: Path,
    estimate: Option<Duration>,
    fails: bool,
    asked: Arc<AtomicUsize>,
}

impl Searcher for Double {
    fn path(&self) -> Path {
        self.path
    }

    fn serves(&self, asked: &Asked<'_>) -> bool {
        !asked.pages
    }

    fn estimate(&self, _: &Asked<'_>) -> Option<Duration> {
        self.estimate
    }

    fn search(&self, queries: &[Query<'_>], _: &Filter<'_>, _: &dyn Rows) -> Result<Vec<Vec<Hit>>, SearchError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.fails {
            true => Err(SearchError::Device { device: self.path.device, message: "out of memory".to_owned() }),
            false => Ok(vec![Vec::new(); queries.len()]),
        }
    }

    fn memory_bytes(&self) -> usize {
        1000
    }
}

const CPU: Path = Path { method: Method::Exact, device: Device::Cpu };
const CUDA: Path = Path { method: Method::Exact, device: Device::Cuda };
const GRAPH: Path = Path { method: Method::Graph, device: Device::Cpu };

/// An index of a row and a double, and how often the double was asked.
fn index(path: Path, estimate: Option<Duration>, fails: bool) -> (Index, Store, Arc<AtomicUsize>) {
    let asked = Arc::default();
    let index = Index::new(2).with_searcher(Box::new(Double { path, estimate, fails, asked: Arc::clone(&asked) }));
    let mut store = Store::default();
    let unit = halves(&[1.0, 0.0]);
    index.set(row(1, &unit));
    store.rows.insert(key(1), (2, unit));
    (index, store, asked)
}

fn path(index: &Index, store: &Store, query: Query<'_>, exact: bool) -> Path {
    index.answer(&[query], &Filter::all(0), store, exact).unwrap().path
}

#[test]
fn the_one_that_is_expected_to_be_through_first_answers() {
    let query = Query::new(&[1.0, 0.0], 1);
    for (estimate, expected) in [(None, CUDA), (Some(Duration::ZERO), CUDA), (Some(Duration::from_secs(9)), CPU)] {
        let (index, store, _) = index(CUDA, estimate, false);
        // The first one measures the processor, which was not measured either.
        assert_eq!(path(&index, &store, query, false), CPU);
        assert_eq!(path(&index, &store, query, false), expected, "{estimate:?}");
    }
}

#[test]
fn what_has_to_be_exact_is() {
    let query = Query::new(&[1.0, 0.0], 1);
    let (index, store, _) = index(GRAPH, Some(Duration::ZERO), false);
    let index = index.with_choice(Choice::Graph);
    assert_eq!(path(&index, &store, query, false), GRAPH);
    assert_eq!(path(&index, &store, query, true), CPU);
    let after = Cursor { similarity: 2.0, key: key(0), sequence: 9 };
    assert_eq!(path(&index, &store, Query { after: Some(after), ..query }, false), CPU);
    let index = index.with_choice(Choice::Exact);
    assert_eq!(path(&index, &store, query, false), CPU);
}

#[test]
fn the_processor_answers_where_a_device_fails() {
    let (index, store, asked) = index(CUDA, None, true);
    let query = Query::new(&[1.0, 0.0], 1);
    for _ in 0..2 {
        let answer = index.answer(&[query], &Filter::all(0), &store, false).unwrap();
        assert_eq!((answer.hits[0].len(), answer.path), (1, CPU));
    }
    assert_eq!((asked.load(Ordering::Relaxed), index.faults()), (1, 1));
}

/// A device that has become quicker, or slower, is noticed.
#[test]
fn the_second_is_asked_now_and_then() {
    let (index, store, first) = index(CUDA, Some(Duration::from_millis(1)), false);
    let second = Arc::new(AtomicUsize::new(0));
    let path = Path { method: Method::Exact, device: Device::Metal };
    let estimate = Some(Duration::from_millis(2));
    let index = index.with_searcher(Box::new(Double { path, estimate, fails: false, asked: Arc::clone(&second) }));
    index.exact.meter.note(1, 1.0, Duration::from_secs(1));
    let vector = [1.0, 0.0];
    for _ in 0..2 * EXPLORE_ONE_IN {
        index.search(&[Query::new(&vector, 1)], &Filter::all(0), &store).unwrap();
    }
    let asked = [first, second].map(|asked| asked.load(Ordering::Relaxed) as u64);
    assert_eq!(asked, [2 * EXPLORE_ONE_IN - 2, 2]);
}

#[test]
fn memory_of_all_searchers_counts() {
    let (index, ..) = index(CUDA, None, false);
    assert_eq!(index.memory_bytes(), index.matrix.memory_bytes() + 1000);
}

//! A search that is asked again, with its answer kept and without.

use std::collections::BTreeMap;

use vecmemo::cache::{Cache, Config, PathChoice, Search, SearchConfig};
use vecmemo::domain::Namespace;
use vecmemo::store::{self, NewEntry, Store};
use vecmemo::{batch, engine};

use super::{DIMS, Held, K, QUERIES, TIMES, key, median, timed};

pub(super) fn measure(held: &Held, queries: &[f32], rounds: usize) {
    let mut took: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let cache = |cache_bytes| {
        let folder = tempfile::tempdir().unwrap();
        let model = engine::fake::model(DIMS);
        let rows = held.0.len() / DIMS;
        let config = store::Config { capacity_entries: 2 * rows as u64, ..store::Config::default() };
        let store = Store::open(folder.path(), &model.card.version, DIMS, &config).unwrap();
        let namespace = Namespace::default();
        for first in (0..rows).step_by(1000) {
            let entries: Vec<NewEntry<'_>> = (first..rows.min(first + 1000))
                .map(|at| NewEntry::new(key(at), held.row(at), 1.0, &namespace))
                .collect();
            store.put_many(&entries, 1).unwrap();
        }
        let search = SearchConfig { cache_bytes, choice: PathChoice::Exact, ..SearchConfig::default() };
        let config = Config { search, ..Config::default() };
        (Cache::with(store, batch::Embedder::start(model, batch::Config::default()), config), folder)
    };
    let caches = [0, 64 << 20].map(|bytes| (bytes, cache(bytes)));
    let wanted = Search { k: K, ..Search::default() };
    for round in 0..rounds {
        for time in 0..TIMES {
            let at = (round * TIMES + time) % QUERIES;
            let query = [queries[at * DIMS..][..DIMS].to_vec()];
            for (bytes, (cache, _)) in &caches {
                cache.search(&query, &wanted).unwrap();
                let (seconds, again) = timed(|| cache.search(&query, &wanted).unwrap());
                assert_eq!(again.results[0].len(), K);
                took.entry(*bytes).or_default().push(seconds);
            }
        }
    }
    let [without, with] = [0, 64 << 20].map(|bytes| median(&took[&bytes]));
    println!(
        "asked again: {:.3} ms; with answers kept {:.4} ms, {:.0} times quicker",
        without * 1e3,
        with * 1e3,
        without / with
    );
}

//! The graph against comparing with every row; beside changes, after churn, and from files that were damaged.

use std::fs;
use std::path::Path as FilePath;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use super::*;

const DIMS: usize = 24;
const ROWS_MIN: usize = 500;
const GRAPH: Path = Path { method: Method::Graph, device: Device::Cpu };
const EXACT: Path = Path { method: Method::Exact, device: Device::Cpu };

fn options(folder: Option<&FilePath>) -> GraphOptions {
    GraphOptions { folder: folder.map(Into::into), rows_min: Some(ROWS_MIN) }
}

/// Rows and the index over them, whose graph stands.
struct Rig {
    rows: Vec<Vec<f16>>,
    index: Index,
    store: Store,
}

impl Rig {
    fn new(rows: Vec<Vec<f16>>, folder: Option<&FilePath>) -> Self {
        let index = Index::new(DIMS).with_graph(options(folder)).with_choice(Choice::Graph);
        let mut rig = Self { rows: Vec::new(), index, store: Store::default() };
        rows.iter().enumerate().for_each(|(place, values)| rig.set(place as u32, values));
        rig.rows = rows;
        rig.index.start();
        rig.index.wait_for_graph();
        rig
    }

    fn set(&mut self, place: u32, values: &[f16]) {
        let row = Row { expires: None, ..row(place, values) };
        self.index.set(row);
        self.store.rows.insert(row.key, (row.sequence, values.to_vec()));
    }

    fn remove(&mut self, place: u32) {
        self.index.clear(place);
        self.store.rows.remove(&key(place));
    }

    fn answer(&self, query: Query<'_>, filter: &Filter<'_>) -> (Vec<Hit>, Path) {
        let mut answer = self.index.answer(&[query], filter, &self.store, false).unwrap();
        (answer.hits.remove(0), answer.path)
    }

    /// The share of the ten nearest that the graph finds, over queries that are no rows.
    fn recall(&self) -> f64 {
        let mut numbers = Numbers(77);
        let (mut found, mut all) = (0, 0);
        for _ in 0..200 {
            let vector = numbers.unit(DIMS);
            let query = [Query::new(&vector, 10)];
            let exact = self.index.answer(&query, &Filter::all(0), &self.store, true).unwrap();
            let (hits, path) = self.answer(query[0], &Filter::all(0));
            assert_eq!((exact.path, path), (EXACT, GRAPH));
            // What is found has the similarity that it has.
            for hit in &hits {
                assert_eq!(hit.similarity, similarity(&vector, &self.store.rows[&hit.key].1));
            }
            found += exact.hits[0].iter().filter(|hit| hits.contains(hit)).count();
            all += exact.hits[0].len();
        }
        found as f64 / all as f64
    }
}

fn random(count: usize, seed: u64) -> Vec<Vec<f16>> {
    let mut numbers = Numbers(seed);
    (0..count).map(|_| halves(&numbers.unit(DIMS))).collect()
}

#[test]
fn the_graph_finds_what_it_is_said_to_find() {
    let rig = Rig::new(random(3000, 1), None);
    let figures = rig.index.graph_figures();
    assert_eq!((figures.segments, figures.rows, figures.dead), (1, 3000, 0));
    // Rows without any order are the hardest; the share for real ones is in README.md.
    let recall = rig.recall();
    assert!(recall > 0.94, "{recall}");
    // The share grows with the breadth, up to all.
    rig.index.set_breadth(NonZero::new(2000));
    assert_eq!(rig.recall(), 1.0);
    rig.index.set_breadth(NonZero::new(11));
    let narrow = rig.recall();
    assert!(narrow < recall, "{narrow}");
}

#[test]
fn few_rows_have_no_graph_and_are_scanned() {
    let rig = Rig::new(random(ROWS_MIN - 1, 2), None);
    assert_eq!(rig.index.graph_figures(), GraphFigures::default());
    let vector = Numbers(3).unit(DIMS);
    assert_eq!(rig.answer(Query::new(&vector, 10), &Filter::all(0)).1, EXACT);
}

#[test]
fn what_a_graph_cannot_answer_is_scanned() {
    let rig = Rig::new(random(2000, 4), None);
    let vector = Numbers(5).unit(DIMS);
    let query = Query::new(&vector, 10);
    let after = Cursor { similarity: 0.1, key: key(0), sequence: u64::MAX };
    let places = [1, 2, 3];
    let narrow = Filter { namespaces: Some(&[1]), ..Filter::all(0) };
    let named = Filter { places: Some(&places), ..Filter::all(0) };
    let wide = Filter { created: 10..=u32::MAX, ..Filter::all(0) };
    let paths = [
        (query, Filter::all(0), GRAPH),
        (query, wide.clone(), GRAPH),
        (query, narrow, EXACT),
        (query, named, EXACT),
        (Query { after: Some(after), ..query }, Filter::all(0), EXACT),
        (Query { k: 500, ..query }, Filter::all(0), EXACT),
    ];
    for (query, filter, expected) in paths {
        let (hits, path) = rig.answer(query, &filter);
        assert_eq!(path, expected, "{query:?} {filter:?}");
        assert_eq!(hits.len(), rig.index.search(&[query], &filter, &rig.store).unwrap()[0].len());
        assert!(hits.iter().all(|hit| filter.created.contains(&row(hit.place, &[]).created)));
    }
}

/// Walks that come to an end before there are enough hits are no reason to answer with fewer.
#[test]
fn an_answer_has_fewer_hits_only_if_there_are_no_more() {
    let mut rig = Rig::new(random(1000, 6), None);
    let vector = Numbers(7).unit(DIMS);
    let all = compared(&rig.rows, &Query::new(&vector, 1000), &Filter::all(0));
    // The index does not know that they are gone.
    for (_, key) in &all[..980] {
        rig.store.rows.remove(key);
    }
    let (hits, _) = rig.answer(Query::new(&vector, 30), &Filter::all(0));
    assert_eq!(seen(&hits), all[980..]);
    // Few are similar enough, and these are found without looking at all.
    let least = Query { min_similarity: Some(all[984].0), ..Query::new(&vector, 30) };
    assert_eq!(seen(&rig.answer(least, &Filter::all(0)).0), all[980..985]);
}

#[test]
fn a_batch_is_answered_as_its_queries_are() {
    let rig = Rig::new(clustered(3000, DIMS, &mut Numbers(8)), None);
    let mut numbers = Numbers(9);
    let vectors: Vec<Vec<f32>> = (0..50).map(|_| numbers.unit(DIMS)).collect();
    let queries: Vec<Query<'_>> = vectors.iter().map(|vector| Query::new(vector, 7)).collect();
    let together = rig.index.answer(&queries, &Filter::all(0), &rig.store, false).unwrap();
    assert_eq!(together.path, GRAPH);
    for (query, hits) in queries.iter().zip(together.hits) {
        assert_eq!(rig.answer(*query, &Filter::all(0)).0, hits);
    }
}

#[test]
fn a_fresh_row_is_found_by_the_next_search_and_a_gone_one_by_none() {
    let mut rig = Rig::new(random(2000, 10), None);
    let fresh = random(100, 11);
    for (at, values) in fresh.iter().enumerate() {
        let vector = unit(&values.iter().map(|value| value.to_f32()).collect::<Vec<_>>());
        let nearest = |rig: &Rig| rig.answer(Query::new(&vector, 1), &Filter::all(0)).0[0];
        // In a place of its own, and in one whose row a segment has.
        for place in [5000 + at as u32, at as u32] {
            rig.set(place, values);
            assert_eq!(nearest(&rig).key, key(place));
            rig.remove(place);
            assert_ne!(nearest(&rig).key, key(place));
        }
    }
    assert_eq!(rig.index.graph_figures().dead, 100);
}

/// Half as many rows again as there are come and go. A graph that is changed in place loses nine points by then.
#[test]
fn churn_costs_no_recall() {
    let mut rig = Rig::new(random(3000, 12), None);
    let before = rig.recall();
    let fresh = random(4500, 13);
    for (at, values) in fresh.iter().enumerate() {
        rig.remove(at as u32);
        rig.set(3000 + at as u32, values);
        if at % 1500 == 1499 {
            rig.index.wait_for_graph();
        }
    }
    rig.index.wait_for_graph();
    let figures = rig.index.graph_figures();
    assert!(figures.dead * 4 <= figures.rows, "{figures:?}");
    assert!(figures.segments <= 4 && rig.index.len() == 3000, "{figures:?}");
    let after = rig.recall();
    assert!(after > before - 0.01, "{before} {after}");
}

#[test]
fn rows_that_are_gone_for_the_most_part_leave_no_graph() {
    let mut rig = Rig::new(random(1000, 14), None);
    (0..800).for_each(|place| rig.remove(place));
    rig.index.wait_for_graph();
    assert_eq!(rig.index.graph_figures(), GraphFigures::default());
    let vector = Numbers(15).unit(DIMS);
    assert_eq!(rig.answer(Query::new(&vector, 1000), &Filter::all(0)).0.len(), 200);
}

/// Rows that may change while they are read.
struct Living(Mutex<Store>);

impl Rows for Living {
    fn read(&self, keys: &[Key], found: &mut dyn FnMut(usize, u64, &[f16])) -> bool {
        self.0.lock().unwrap().read(keys, found)
    }
}

/// Rows come, go and are replaced while segments are built, merged and put in place of one another. Half of the rows stay: with
/// walks that are broad enough, these are in every answer.
#[test]
fn searches_beside_builds_find_all_that_stay() {
    const STAY: u32 = 600;
    let index = Index::new(DIMS).with_graph(options(None)).with_choice(Choice::Graph);
    index.set_breadth(NonZero::new(10_000));
    let store = Living(Mutex::default());
    let set = |number: u32, sequence: u64| {
        let unit = halves(&Numbers(u64::from(number) << 32 | sequence).unit(DIMS));
        store.0.lock().unwrap().rows.insert(key(number), (sequence, unit.clone()));
        index.set(Row { sequence, expires: None, ..row(number, &unit) });
    };
    (0..STAY).for_each(|number| set(number, 1));
    index.start();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for sequence in 2.. {
                let number = STAY + (sequence * 7919 % 3000) as u32;
                match sequence % 3 {
                    0 => {
                        store.0.lock().unwrap().rows.remove(&key(number));
                        index.clear(number);
                    }
                    _ => set(number, sequence),
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let mut numbers = Numbers(16);
        let mut walked = 0;
        for at in 0.. {
            // Those that stay are asked for one by one: each is the nearest to itself.
            let number = at % STAY;
            let stays = halves(&Numbers(u64::from(number) << 32 | 1).unit(DIMS));
            let vector = unit(&stays.iter().map(|value| value.to_f32()).collect::<Vec<_>>());
            let answer = index.answer(&[Query::new(&vector, 3)], &Filter::all(0), &store, false).unwrap();
            assert_eq!(answer.hits[0][0].key, key(number), "{at} {:?}", index.graph_figures());
            walked += u32::from(answer.path == GRAPH);
            let any = numbers.unit(DIMS);
            let hits = index.search(&[Query::new(&any, 50)], &Filter::all(0), &store).unwrap().remove(0);
            assert!(hits.is_sorted_by(|a, b| a.similarity > b.similarity || a.key < b.key));
            assert_eq!(hits.len(), 50);
            if walked > 2 * STAY {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

fn files(folder: &FilePath) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_start_takes_the_graph_from_its_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let rows = random(1500, 17);
    let first = Rig::new(rows.clone(), Some(folder.path()));
    let built = fs::metadata(&files(folder.path())[0]).unwrap();
    let vector = Numbers(18).unit(DIMS);
    let before = first.answer(Query::new(&vector, 20), &Filter::all(0));
    drop(first);
    let again = Rig::new(rows, Some(folder.path()));
    assert_eq!(again.answer(Query::new(&vector, 20), &Filter::all(0)), before);
    let [file] = &files(folder.path())[..] else { panic!("one segment, one file") };
    assert_eq!(fs::metadata(file).unwrap().modified().unwrap(), built.modified().unwrap());
}

/// The store has other rows in the same places than the snapshot: fewer, other ones, or none.
#[test]
fn a_snapshot_of_other_rows_finds_none_of_them() {
    let folder = tempfile::tempdir().unwrap();
    drop(Rig::new(random(1500, 19), Some(folder.path())));
    let mut rows = random(1500, 19);
    rows[..200].clone_from_slice(&random(200, 20));
    let changed = Rig::new(rows, Some(folder.path()));
    let figures = changed.index.graph_figures();
    assert_eq!((figures.rows, figures.dead), (1500, 200));
    assert!(changed.recall() > 0.94);
    drop(changed);

    let others = Rig::new(random(1500, 21), Some(folder.path()));
    let figures = others.index.graph_figures();
    assert_eq!((figures.segments, figures.rows, figures.dead), (1, 1500, 0));
    let recall = others.recall();
    assert!(recall > 0.94, "{recall}");
    drop(others);

    let few = Rig::new(random(10, 21), Some(folder.path()));
    assert_eq!(few.index.graph_figures(), GraphFigures::default());
    assert_eq!(files(folder.path()), Vec::<std::path::PathBuf>::new());
}

/// Each kind of damage: the answers are right, the file is removed, and another is built.
#[test]
fn a_damaged_snapshot_is_built_again() {
    let folder = tempfile::tempdir().unwrap();
    let rows = random(1000, 22);
    drop(Rig::new(rows.clone(), Some(folder.path())));
    let path = files(folder.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    let (head, node) = (24, 4 * 34 + 64);
    assert_eq!(whole.len(), head + 1000 * node + 16);
    let mut damaged: Vec<(String, Vec<u8>)> = Vec::new();
    for cut in [0, 1, 7, 8, 23, 24, 24 + 4000, 24 + 8000, whole.len() / 2, whole.len() - 17, whole.len() - 1] {
        damaged.push((format!("cut to {cut}"), whole[..cut].to_vec()));
    }
    for page in (0..whole.len()).step_by(4096).step_by(9) {
        let mut bytes = whole.clone();
        let end = bytes.len().min(page + 4096);
        bytes[page..end].fill(0);
        damaged.push((format!("zeros from {page}"), bytes));
    }
    let mut numbers = Numbers(23);
    for at in (0..whole.len()).step_by(whole.len() / 23) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        damaged.push((format!("a bit at {at}"), bytes));
        let mut bytes = whole.clone();
        bytes[at..].iter_mut().take(500).for_each(|byte| *byte = (numbers.next() * 127.0) as i8 as u8);
        damaged.push((format!("junk at {at}"), bytes));
    }
    damaged.push(("longer".to_owned(), [&whole[..], &[0; 40]].concat()));
    damaged.push(("all junk".to_owned(), (0..9000).map(|at| (at * 31 % 251) as u8).collect()));
    for (what, bytes) in damaged {
        fs::write(&path, &bytes).unwrap();
        fs::write(path.with_extension("graph.new"), &bytes[..bytes.len() / 3]).unwrap();
        // Whether it is taken is seen without building: a graph of so many rows is never built here.
        let index =
            Index::new(DIMS).with_graph(GraphOptions { rows_min: Some(100_000), ..options(Some(folder.path())) });
        rows.iter().enumerate().for_each(|(place, values)| index.set(row(place as u32, values)));
        index.start();
        index.wait_for_graph();
        assert_eq!((index.graph_figures(), files(folder.path()).len()), (GraphFigures::default(), 0), "{what}");
    }
    let built = Rig::new(rows, Some(folder.path()));
    assert!(built.recall() > 0.94);
    // Sums of the rows are summed up in the same order by every build.
    assert_eq!(fs::read(&files(folder.path())[0]).unwrap(), whole);
}

/// A file whose checksum stands may still say what cannot be.
#[test]
fn a_snapshot_that_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let rows = random(600, 24);
    drop(Rig::new(rows.clone(), Some(folder.path())));
    let path = files(folder.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    let links = 24 + 600 * 8;
    for (at, word) in [(links, 600u32), (links + 400, u32::MAX - 1), (16, 0), (8, 25), (12, u32::MAX)] {
        let mut bytes = whole[..whole.len() - 16].to_vec();
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        bytes.extend(xxhash_rust::xxh3::xxh3_128(&bytes).to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        let index =
            Index::new(DIMS).with_graph(GraphOptions { rows_min: Some(100_000), ..options(Some(folder.path())) });
        rows.iter().enumerate().for_each(|(place, values)| index.set(row(place as u32, values)));
        index.start();
        index.wait_for_graph();
        assert_eq!(index.graph_figures(), GraphFigures::default(), "{word} at {at}");
    }
}

/// Nothing that a snapshot's folder can be keeps the graph from being built.
#[test]
fn a_folder_that_cannot_be_written_costs_only_the_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a-file");
    fs::write(&file, "").unwrap();
    let rig = Rig::new(random(600, 25), Some(&file.join("beneath")));
    assert_eq!(rig.index.graph_figures().rows, 600);
}

#[test]
fn what_ends_while_it_builds_leaves_nothing_half_done() {
    let folder = tempfile::tempdir().unwrap();
    let index = Index::new(DIMS).with_graph(options(Some(folder.path())));
    random(20_000, 26).iter().enumerate().for_each(|(place, values)| index.set(row(place as u32, values)));
    index.start();
    drop(index);
    assert!(!folder.path().exists() || files(folder.path()).is_empty());
}

#[test]
fn rows_without_a_direction_are_in_no_graph() {
    let mut rows = random(800, 27);
    rows[3] = halves(&[0.0; DIMS]);
    rows[4][5] = f16::NAN;
    rows[5][6] = f16::INFINITY;
    let rig = Rig::new(rows, None);
    assert_eq!(rig.index.graph_figures().rows, 797);
}

//! A mirror on candle's tensors on the processor, and on a device that errs, fails or forgets as it is told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use half::f16;
use proptest::prelude::*;

use super::mirror::Mirror;
use super::tensors::Tensors;
use super::*;
use crate::index::searcher::{Method, Path};
use crate::index::tests::changes::{DIMS, search_beside_changes};
use crate::index::tests::{Numbers, Store, clustered, compared, filled_in, halves, key, row, seen};
use crate::index::{Cursor, Filter, Index, Query};

/// An index whose rows are on `accelerator` too, which answers all that it can.
fn mirrored(dims: usize, accelerator: Box<dyn Accelerator>) -> Index {
    let index = Index::new(dims);
    let device = crate::index::Device::Metal;
    let mirror = Mirror::new(device, accelerator, Arc::clone(&index.matrix), Arc::clone(&index.exact)).first_choice();
    index.with_searcher(Box::new(mirror))
}

fn small_tensors(dims: usize) -> Box<dyn Accelerator> {
    Box::new(Tensors::new(candle_core::Device::Cpu, dims).with_small_parts(1024, 1024))
}

const ON_DEVICE: Path = Path { method: Method::Exact, device: crate::index::Device::Metal };
const ON_PROCESSOR: Path = Path { method: Method::Exact, device: crate::index::Device::Cpu };

/// What a device does when it is asked.
#[derive(Clone, Copy, PartialEq)]
enum Turn {
    Compute,
    Fail,
    Panic,
}

/// A device that compares every row, but whose scores are off by as much as its arithmetic allows, to mislead.
struct Fake {
    dims: usize,
    arithmetic: Arithmetic,
    keep_max: usize,
    /// By how much of what is allowed a score is off.
    share: f64,
    rows: Vec<f16>,
    allowed: Vec<u32>,
    turns: Arc<Mutex<VecDeque<Turn>>>,
    asked: Arc<Mutex<Vec<usize>>>,
    numbers: Numbers,
}

impl Fake {
    fn new(dims: usize) -> Self {
        Self {
            dims,
            arithmetic: Arithmetic::Half,
            keep_max: 1024,
            share: 1.0,
            rows: Vec::new(),
            allowed: Vec::new(),
            turns: Arc::default(),
            asked: Arc::default(),
            numbers: Numbers(7),
        }
    }

    fn turn(&self) -> Result<(), Fault> {
        match self.turns.lock().unwrap().pop_front().unwrap_or(Turn::Compute) {
            Turn::Compute => Ok(()),
            Turn::Fail => Err(Fault("told to".to_owned())),
            Turn::Panic => panic!("told to"),
        }
    }
}

impl Accelerator for Fake {
    fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    fn keep_max(&self) -> usize {
        self.keep_max
    }

    fn capacity(&self) -> usize {
        self.allowed.len() * WORD_ROWS
    }

    fn grow(&mut self, places: usize) -> Result<(), Fault> {
        self.turn()?;
        self.allowed.resize(places.div_ceil(WORD_ROWS), 0);
        self.rows.resize(self.capacity() * self.dims, f16::ZERO);
        Ok(())
    }

    fn write(&mut self, places: &[u32], rows: &[f16]) -> Result<(), Fault> {
        for (&place, row) in places.iter().zip(rows.chunks(self.dims)) {
            self.rows[place as usize * self.dims..][..self.dims].copy_from_slice(row);
        }
        Ok(())
    }

    fn allow(&mut self, first_word: usize, words: &[u32]) -> Result<(), Fault> {
        self.allowed[first_word..][..words.len()].copy_from_slice(words);
        Ok(())
    }

    fn nearest(&mut self, batch: &Batch<'_>) -> Result<Vec<Vec<Scored>>, Fault> {
        self.turn()?;
        self.asked.lock().unwrap().push(batch.keep);
        let allowed = batch.only.unwrap_or(&self.allowed);
        let mut answers = Vec::new();
        for (query, &ceiling) in batch.vectors.chunks(self.dims).zip(batch.ceilings) {
            let query = [Query::new(query, 1)];
            // What is left of the bound once the query is rounded: sums, and the similarity's own rounding.
            let off = self.share * self.arithmetic.round(&query, self.dims).error(0, 0.99);
            let mut scored = Vec::new();
            for (place, row) in self.rows.chunks(self.dims).enumerate() {
                if allowed[place / WORD_ROWS] >> (place % WORD_ROWS) & 1 == 0 {
                    continue;
                }
                let product: f64 =
                    query[0].vector.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(b.to_f32())).sum();
                let sign = if self.numbers.next() < 0.0 { -1.0 } else { 1.0 };
                let score = (product + sign * off) as f32;
                if score <= ceiling {
                    scored.push(Scored { place: place as u32, score });
                }
            }
            scored.sort_by(|a, b| b.score.total_cmp(&a.score));
            scored.truncate(batch.keep);
            answers.push(scored);
        }
        Ok(answers)
    }

    fn memory_bytes(&self) -> usize {
        size_of_val(self.rows.as_slice())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_device_answers_as_comparing_with_every_row_does(
        seed in any::<u64>(),
        fake in any::<bool>(),
        (rows, dims) in (1usize..2500, prop_oneof![Just(1usize), Just(3), Just(64), 1usize..150]),
        queries in 1usize..40,
        k in prop_oneof![1usize..20, Just(1000)],
        min_similarity in proptest::option::of(-0.5f32..1.0),
        namespaces in proptest::option::of(proptest::collection::btree_set(0u32..4, 0..3)),
        created in proptest::option::of(0u32..100),
        now in 95u32..108,
        every in proptest::option::of(1u32..40),
    ) {
        let mut numbers = Numbers(seed);
        let rows = clustered(rows, dims, &mut numbers);
        let accelerator = if fake { Box::new(Fake::new(dims)) } else { small_tensors(dims) };
        let (index, store) = filled_in(mirrored(dims, accelerator), &rows);
        let places: Option<Vec<u32>> = every.map(|every| (0..rows.len() as u32 + 3000).step_by(every as usize).collect());
        let created = created.map_or(0..=u32::MAX, |from| from..=from + 30);
        let namespaces: Option<Vec<u32>> = namespaces.map(|namespaces| namespaces.into_iter().collect());
        let filter = Filter { namespaces: namespaces.as_deref(), created, now, places: places.as_deref() };
        let vectors: Vec<Vec<f32>> = (0..queries)
            .map(|at| match at % 2 {
                0 => numbers.unit(dims),
                _ => rows[at * 7 % rows.len()].iter().map(|value| value.to_f32()).collect(),
            })
            .collect();
        let queries: Vec<Query<'_>> =
            vectors.iter().map(|vector| Query { min_similarity, ..Query::new(vector, k) }).collect();
        let answer = index.answer(&queries, &filter, &store, false).unwrap();
        prop_assert!(answer.path == ON_DEVICE || filter.places.is_some());
        for (query, hits) in queries.iter().zip(&answer.hits) {
            prop_assert_eq!(seen(hits), compared(&rows, query, &filter));
        }
    }

    #[test]
    fn pages_from_a_device_show_every_row_once(seed in any::<u64>(), fake in any::<bool>(), count in 1usize..700, k in 1usize..60) {
        let mut numbers = Numbers(seed);
        let rows = clustered(count, 40, &mut numbers);
        let accelerator = if fake { Box::new(Fake::new(40)) } else { small_tensors(40) };
        let (index, store) = filled_in(mirrored(40, accelerator), &rows);
        let vector: Vec<f32> = rows[0].iter().map(|value| value.to_f32()).collect();
        let first = Cursor { similarity: f32::INFINITY, key: key(0), sequence: count as u64 };
        let mut query = Query { after: Some(first), ..Query::new(&vector, k) };
        let mut pages = Vec::new();
        loop {
            let answer = index.answer(&[query], &Filter::all(0), &store, false).unwrap();
            prop_assert_eq!(answer.path, ON_DEVICE);
            let Some(last) = answer.hits[0].last() else { break };
            query.after = Some(Cursor { similarity: last.similarity, key: last.key, ..first });
            pages.extend(seen(&answer.hits[0]));
        }
        prop_assert_eq!(pages, compared(&rows, &Query { k: count, ..Query::new(&vector, k) }, &Filter::all(0)));
    }

    #[test]
    fn a_device_follows_every_change(seed in any::<u64>(), changes in 1usize..400) {
        let (dims, mut numbers) = (24, Numbers(seed));
        let index = mirrored(dims, small_tensors(dims));
        let mut store = Store::default();
        for change in 0..changes {
            let pick = ((numbers.next() + 1.0) * 1000.0) as u32;
            let place = if pick.is_multiple_of(5) { pick } else { pick % 50 };
            let unit = match pick % 7 {
                0 => vec![f16::ZERO; dims],
                _ => halves(&numbers.unit(dims)),
            };
            store.rows.remove(&key(place));
            if pick.is_multiple_of(3) {
                index.clear(place);
            } else {
                let sequence = change as u64 + 1;
                index.set(crate::index::Row { sequence, expires: None, ..row(place, &unit) });
                if unit[0] != f16::ZERO {
                    store.rows.insert(key(place), (sequence, unit));
                }
            }
            if pick.is_multiple_of(11) || change + 1 == changes {
                let vector = numbers.unit(dims);
                let answer = index.answer(&[Query::new(&vector, 20)], &Filter::all(0), &store, false).unwrap();
                let mut expected: Vec<_> =
                    store.rows.iter().map(|(key, (_, row))| (crate::index::similarity(&vector, row), *key)).collect();
                expected.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                expected.truncate(20);
                prop_assert_eq!(seen(&answer.hits[0]), expected);
                prop_assert_eq!(answer.path, ON_DEVICE);
            }
        }
    }
}

#[test]
fn searches_on_a_device_beside_changes_see_whole_rows_and_all_that_stay() {
    search_beside_changes(mirrored(DIMS, small_tensors(DIMS)));
    search_beside_changes(mirrored(DIMS, Box::new(Fake::new(DIMS))));
}

#[test]
fn a_few_places_are_searched_by_the_processor() {
    let rows = clustered(100, 32, &mut Numbers(6));
    let (index, store) = filled_in(mirrored(32, small_tensors(32)), &rows);
    let vector: Vec<f32> = rows[0].iter().map(|value| value.to_f32()).collect();
    for (count, path) in [(10, ON_PROCESSOR), (100, ON_DEVICE)] {
        let places: Vec<u32> = (0..count).collect();
        let filter = Filter { places: Some(&places), ..Filter::all(0) };
        let query = Query::new(&vector, 7);
        let answer = index.answer(&[query], &filter, &store, false).unwrap();
        assert_eq!((seen(&answer.hits[0]), answer.path), (compared(&rows, &query, &filter), path));
    }
}

struct Rig {
    index: Index,
    store: Store,
    rows: Vec<Vec<f16>>,
    vector: Vec<f32>,
    turns: Arc<Mutex<VecDeque<Turn>>>,
    asked: Arc<Mutex<Vec<usize>>>,
}

/// A hundred rows on a device, which `change` may alter before.
fn rig(rows: Vec<Vec<f16>>, change: impl FnOnce(&mut Fake)) -> Rig {
    let dims = rows[0].len();
    let mut fake = Fake::new(dims);
    change(&mut fake);
    let (turns, asked) = (Arc::clone(&fake.turns), Arc::clone(&fake.asked));
    let (index, store) = filled_in(mirrored(dims, Box::new(fake)), &rows);
    let vector = rows[0].iter().map(|value| value.to_f32()).collect();
    Rig { index, store, rows, vector, turns, asked }
}

impl Rig {
    /// Asks, checks the answer, and says who gave it.
    fn path(&self) -> Path {
        let query = Query::new(&self.vector, 5);
        let answer = self.index.answer(&[query], &Filter::all(0), &self.store, false).unwrap();
        assert_eq!(seen(&answer.hits[0]), compared(&self.rows, &query, &Filter::all(0)));
        answer.path
    }
}

#[test]
fn a_fault_is_answered_by_the_processor_and_counted() {
    let rig = rig(clustered(100, 32, &mut Numbers(1)), |_| ());
    assert_eq!(rig.path(), ON_DEVICE);
    rig.turns.lock().unwrap().push_back(Turn::Fail);
    assert_eq!((rig.path(), rig.index.faults()), (ON_PROCESSOR, 1));
    assert_eq!((rig.path(), rig.index.faults()), (ON_DEVICE, 1));
}

#[test]
fn a_device_that_fails_twice_in_a_row_is_given_up_with_its_memory() {
    let rig = rig(clustered(100, 32, &mut Numbers(2)), |_| ());
    rig.path();
    let with_device = rig.index.memory_bytes();
    rig.turns.lock().unwrap().extend([Turn::Fail; 2]);
    rig.path();
    rig.path();
    let asked = rig.asked.lock().unwrap().len();
    for _ in 0..3 {
        assert_eq!(rig.path(), ON_PROCESSOR);
    }
    assert_eq!((rig.index.faults(), rig.asked.lock().unwrap().len()), (2, asked));
    assert_eq!(with_device - rig.index.memory_bytes(), 128 * 32 * size_of::<f16>());
    // What changes after that is nothing to it.
    rig.index.set(row(7, &rig.rows[7]));
    rig.index.clear(200);
    assert_eq!(rig.path(), ON_PROCESSOR);
}

#[test]
fn a_device_without_room_for_the_rows_is_given_up_at_once() {
    let rig = rig(clustered(100, 32, &mut Numbers(3)), |fake| fake.turns.lock().unwrap().push_back(Turn::Fail));
    for _ in 0..3 {
        assert_eq!((rig.path(), rig.index.faults()), (ON_PROCESSOR, 1));
    }
}

#[test]
fn a_panic_of_a_device_costs_its_search_alone() {
    let rig = rig(clustered(100, 32, &mut Numbers(4)), |_| ());
    rig.path();
    rig.turns.lock().unwrap().push_back(Turn::Panic);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rig.path()));
    assert!(panicked.is_err());
    assert_eq!(rig.path(), ON_PROCESSOR);
    rig.index.set(row(3, &rig.rows[3]));
    assert_eq!(rig.path(), ON_PROCESSOR);
}

#[test]
fn a_margin_is_enough_where_rows_are_apart_and_more_is_asked_for_where_they_are_not() {
    let apart: Vec<Vec<f16>> = (0..100u8)
        .map(|at| {
            let angle = f32::from(at) * 0.015;
            halves(&[angle.cos(), angle.sin()])
        })
        .collect();
    let apart = rig(apart, |_| ());
    apart.path();
    assert_eq!(*apart.asked.lock().unwrap(), [13]);

    let copies = rig(vec![halves(&[0.6, 0.8]); 100], |_| ());
    copies.path();
    assert_eq!(*copies.asked.lock().unwrap(), [13, 52, 208]);

    // No more can be asked of this one: the processor looks.
    let few = rig(vec![halves(&[0.6, 0.8]); 100], |fake| fake.keep_max = 60);
    few.path();
    assert_eq!(*few.asked.lock().unwrap(), [13, 52, 60]);
    assert_eq!(few.index.faults(), 0);
}

#[test]
fn scores_beyond_the_bound_would_be_noticed() {
    let wrong = (0..20).any(|seed| {
        let rig = rig(clustered(400, 64, &mut Numbers(seed)), |fake| fake.share = 1000.0);
        let query = Query::new(&rig.vector, 5);
        let answer = rig.index.answer(&[query], &Filter::all(0), &rig.store, false).unwrap();
        seen(&answer.hits[0]) != compared(&rig.rows, &query, &Filter::all(0))
    });
    assert!(wrong, "these tests would not find a device that errs by more than its arithmetic allows");
}

#[test]
fn a_device_that_computes_wrongly_is_found_out_before_it_is_used() {
    for dims in [1, 5, 384] {
        assert!(trial::try_out(&mut Fake::new(dims), dims).is_ok());
        assert!(trial::try_out(small_tensors(dims).as_mut(), dims).is_ok());
    }
    let mut wrong = Fake { share: 1000.0, ..Fake::new(384) };
    assert!(trial::try_out(&mut wrong, 384).unwrap_err().to_string().contains("computes wrongly"));
    let mut right = Fake::new(384);
    trial::try_out(&mut right, 384).unwrap();
    assert!(right.allowed.iter().all(|&word| word == 0));
}

#[test]
fn sums_cut_off_at_every_step_stay_within_the_bound() {
    // Every product and sum in f32, cut off towards zero instead of rounded, one after another: more than a device may lose.
    let cut = |value: f64| {
        let near = value as f32;
        if f64::from(near).abs() > value.abs() {
            if near > 0.0 { near.next_down() } else { near.next_up() }
        } else {
            near
        }
    };
    let mut numbers = Numbers(11);
    for dims in [1, 7, 64, 384, 1024] {
        for arithmetic in [Arithmetic::Half, Arithmetic::Single] {
            let (vector, unit) = (numbers.unit(dims), halves(&numbers.unit(dims)));
            for unit in [unit.clone(), halves(&vector)] {
                let rounded = arithmetic.round(&[Query::new(&vector, 1)], dims);
                let score = rounded.vectors.iter().zip(&unit).fold(0.0f32, |sum, (query, value)| {
                    let product = cut(f64::from(*query) * f64::from(value.to_f32()));
                    cut(f64::from(sum) + f64::from(product))
                });
                let off = f64::from(score) - f64::from(crate::index::similarity(&vector, &unit));
                let bound = rounded.error(0, arithmetic::length(&unit));
                assert!(off.abs() <= bound, "{dims} {arithmetic:?}: {off} is more than {bound}");
            }
        }
    }
}

#[test]
fn without_a_gpu_a_chosen_one_is_refused_and_the_best_one_is_the_processor() {
    for choice in [DeviceChoice::Cuda, DeviceChoice::Metal] {
        let refused = Index::new(3).with_device(choice).map(drop).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("the device {} cannot search: ", choice.name())), "{refused}");
        assert_eq!(choice.check().unwrap_err().to_string(), refused);
    }
    for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::CpuAsGpu] {
        choice.check().unwrap();
        let index = Index::new(3).with_device(choice).unwrap();
        index.set(row(0, &halves(&[0.0, 0.6, 0.8])));
        let mut store = Store::default();
        store.rows.insert(key(0), (1, halves(&[0.0, 0.6, 0.8])));
        let answer = index.answer(&[Query::new(&[0.0, 1.0, 0.0], 1)], &Filter::all(0), &store, true).unwrap();
        assert_eq!((answer.hits[0].len(), answer.path), (1, ON_PROCESSOR));
    }
}

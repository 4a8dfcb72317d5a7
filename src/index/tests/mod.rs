//! Answers against those of comparing with every row.

mod bounds;
pub(super) mod changes;
mod choice;
mod graph;

use std::collections::HashMap;

use proptest::prelude::*;

use std::thread;

use super::*;

/// Rows by key, as a store would have them.
#[derive(Default)]
pub(super) struct Store {
    pub(super) rows: HashMap<Key, (u64, Vec<f16>)>,
}

impl Rows for Store {
    fn read(&self, keys: &[Key], found: &mut dyn FnMut(usize, u64, &[f16])) -> bool {
        for (index, key) in keys.iter().enumerate() {
            if let Some((sequence, row)) = self.rows.get(key) {
                found(index, *sequence, row);
            }
        }
        true
    }
}

pub(super) fn key(number: u32) -> Key {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    Key::from_bytes(bytes)
}

/// Numbers that look random, between −1 and 1, the same every time.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(super) fn unit(&mut self, dims: usize) -> Vec<f32> {
        let values: Vec<f32> = (0..dims).map(|_| self.next()).collect();
        unit(&values)
    }
}

fn unit(values: &[f32]) -> Vec<f32> {
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.iter().map(|value| value / length).collect()
}

pub(super) fn halves(values: &[f32]) -> Vec<f16> {
    values.iter().map(|&value| f16::from_f32(value)).collect()
}

pub(super) fn row(place: u32, unit: &[f16]) -> Row<'_> {
    let expires = place.is_multiple_of(5).then_some(100 + place % 7);
    let (namespace, created) = (place % 3, 10 * (place % 11));
    Row { place, key: key(place), sequence: u64::from(place) + 1, namespace, created, expires, unit }
}

/// Rows in two kinds of clusters: loose ones, and copies of which some differ in the last bit of a value.
pub(super) fn clustered(rows: usize, dims: usize, numbers: &mut Numbers) -> Vec<Vec<f16>> {
    let centers: Vec<Vec<f32>> = (0..rows.div_ceil(40)).map(|_| numbers.unit(dims)).collect();
    let mut all = Vec::new();
    for at in 0..rows {
        let center = &centers[at % centers.len()];
        let spread = [0.0, 0.001, 0.3][at % 3];
        let near: Vec<f32> = center.iter().map(|value| value + spread * numbers.next()).collect();
        all.push(halves(&unit(&near)));
    }
    all
}

fn filled(rows: &[Vec<f16>]) -> (Index, Store) {
    filled_in(Index::new(rows[0].len()), rows)
}

/// These rows, in an index that has none.
pub(super) fn filled_in(index: Index, rows: &[Vec<f16>]) -> (Index, Store) {
    let mut store = Store::default();
    for (place, values) in rows.iter().enumerate() {
        let row = row(place as u32, values);
        index.set(row);
        store.rows.insert(row.key, (row.sequence, values.clone()));
    }
    (index, store)
}

/// What every answer must be: all rows, compared one by one.
pub(super) fn compared(rows: &[Vec<f16>], query: &Query<'_>, filter: &Filter<'_>) -> Vec<(f32, Key)> {
    let mut all = Vec::new();
    for (place, values) in rows.iter().enumerate() {
        let row = row(place as u32, values);
        let similarity = similarity(query.vector, values);
        let admitted = filter.namespaces.is_none_or(|namespaces| namespaces.contains(&row.namespace))
            && filter.created.contains(&row.created)
            && row.expires.is_none_or(|expires| expires > filter.now)
            && filter.places.is_none_or(|places| places.contains(&row.place))
            && query.min_similarity.is_none_or(|min| similarity >= min)
            && query.after.is_none_or(|after| {
                row.sequence <= after.sequence
                    && (similarity < after.similarity || similarity == after.similarity && row.key > after.key)
            });
        if admitted {
            all.push((similarity, row.key));
        }
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    all.truncate(query.k);
    all
}

pub(super) fn seen(hits: &[Hit]) -> Vec<(f32, Key)> {
    hits.iter().map(|hit| (hit.similarity, hit.key)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn answers_are_those_of_comparing_with_every_row(
        seed in any::<u64>(),
        (rows, dims) in (1usize..2500, prop_oneof![Just(1usize), Just(3), Just(64), Just(100), 1usize..200]),
        queries in 1usize..40,
        k in prop_oneof![1usize..20, Just(1000)],
        min_similarity in proptest::option::of(-0.5f32..1.0),
        namespaces in proptest::option::of(proptest::collection::btree_set(0u32..4, 0..3)),
        created in proptest::option::of(0u32..100),
        now in 95u32..108,
        every in proptest::option::of(1u32..50),
    ) {
        let mut numbers = Numbers(seed);
        let rows = clustered(rows, dims, &mut numbers);
        let (index, store) = filled(&rows);
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
        let answers = index.search(&queries, &filter, &store).unwrap();
        prop_assert_eq!(answers.len(), queries.len());
        for (query, hits) in queries.iter().zip(&answers) {
            prop_assert_eq!(seen(hits), compared(&rows, query, &filter));
        }
    }

    #[test]
    fn pages_show_every_row_once_and_none_that_came_later(
        seed in any::<u64>(), count in 1usize..700, k in 1usize..60, later in 0usize..50,
    ) {
        let mut numbers = Numbers(seed);
        let rows = clustered(count + later, 40, &mut numbers);
        let (index, store) = filled(&rows);
        let vector: Vec<f32> = rows[0].iter().map(|value| value.to_f32()).collect();
        let first = Cursor { similarity: f32::INFINITY, key: key(0), sequence: count as u64 };
        let mut query = Query { after: Some(first), ..Query::new(&vector, k) };
        let mut pages = Vec::new();
        loop {
            let hits = index.search(&[query], &Filter::all(0), &store).unwrap().remove(0);
            prop_assert_eq!(seen(&hits), compared(&rows, &query, &Filter::all(0)));
            let Some(last) = hits.last() else { break };
            query.after = Some(Cursor { similarity: last.similarity, key: last.key, ..first });
            pages.extend(seen(&hits));
        }
        let all = Query { k: count, ..Query::new(&vector, k) };
        prop_assert_eq!(pages, compared(&rows[..count], &all, &Filter::all(0)));
    }

    #[test]
    fn rows_that_are_gone_keep_none_out(seed in any::<u64>(), count in 1usize..1500, k in 1usize..30, gone in 0u32..100) {
        let mut numbers = Numbers(seed);
        let rows = clustered(count, 40, &mut numbers);
        let (index, mut store) = filled(&rows);
        let vector: Vec<f32> = rows[0].iter().map(|value| value.to_f32()).collect();
        // The nearest are those that are gone, which the index does not know.
        let nearest = compared(&rows, &Query::new(&vector, count * gone as usize / 100), &Filter::all(0));
        for (_, key) in &nearest {
            store.rows.remove(key);
        }
        let all = compared(&rows, &Query::new(&vector, count), &Filter::all(0));
        let expected: Vec<_> = all.into_iter().skip(nearest.len()).take(k).collect();
        let hits = index.search(&[Query::new(&vector, k)], &Filter::all(0), &store).unwrap().remove(0);
        prop_assert_eq!(seen(&hits), expected);
    }
}

#[test]
fn a_long_scan_on_several_threads_answers_as_on_one() {
    let mut numbers = Numbers(5);
    let rows = clustered(20_000, 64, &mut numbers);
    let (index, store) = filled(&rows);
    let vectors: Vec<Vec<f32>> = (0..70).map(|_| numbers.unit(64)).collect();
    let queries: Vec<Query<'_>> = vectors.iter().map(|vector| Query::new(vector, 10)).collect();
    let index = index.with_threads_max(NonZero::new(4).unwrap());
    let answers = index.search(&queries, &Filter::all(0), &store).unwrap();
    for (query, hits) in queries.iter().zip(&answers) {
        assert_eq!(seen(hits), compared(&rows, query, &Filter::all(0)));
    }
}

#[test]
fn an_empty_index_answers_with_nothing() {
    let index = Index::new(2);
    assert!(index.is_empty());
    let answers = index.search(&[Query::new(&[1.0, 0.0], 3)], &Filter::all(0), &Store::default()).unwrap();
    assert_eq!(answers, [vec![]]);
    assert_eq!(index.search(&[], &Filter::all(0), &Store::default()).unwrap(), Vec::<Vec<Hit>>::new());
}

#[test]
fn a_query_that_cannot_be_answered_is_refused_by_name() {
    let index = Index::new(2);
    let refusal = |vector: &[f32], k| {
        let queries = [Query::new(&[1.0, 0.0], 1), Query::new(vector, k)];
        index.search(&queries, &Filter::all(0), &Store::default()).unwrap_err().to_string()
    };
    assert_eq!(refusal(&[1.0], 1), "query 1 has 1 values, but the index has rows of 2");
    assert_eq!(refusal(&[0.0, 0.0], 1), "query 1 has length 0, but has to have length 1");
    assert_eq!(refusal(&[f32::NAN, 0.0], 1), "query 1 has length NaN, but has to have length 1");
    assert_eq!(refusal(&[f32::INFINITY, 0.0], 1), "query 1 has length inf, but has to have length 1");
    assert_eq!(refusal(&[1.0, 0.0], 0), "query 1 wants 0 hits, but can have 1 to 1000");
    assert_eq!(refusal(&[1.0, 0.0], 1001), "query 1 wants 1001 hits, but can have 1 to 1000");
}

#[test]
#[should_panic(expected = "a row is as long as the index's rows")]
fn a_row_of_another_length_is_a_bug() {
    Index::new(2).set(row(0, &halves(&[1.0])));
}

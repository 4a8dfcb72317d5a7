//! Answers kept for searches that are asked again before anything has changed.
//!
//! An answer is kept with the index's generation from before the search. Any change of an entry makes another generation, and with
//! the first search of that all that was kept is forgotten. What goes without a change, by its time, is asked for at each hit; so
//! searches by age, which time alone can change, are not kept.
//!
//! Never: answers what a search would not, but for what a graph happens to miss; keeps more bytes than it may.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::search::{Found, Search, Searched};
use crate::domain::Key;

/// Bytes of an answer, and of a found entry, beside its tags and payload.
const OVERHEAD_BYTES: usize = 256;

/// A search, as what it is kept under: the digest of all that it asks for.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    digest: [u8; 32],
    generation: u64,
}

/// What is kept.
pub(super) struct Repeated {
    bytes_max: usize,
    state: Mutex<State>,
    hits: AtomicU64,
}

#[derive(Default)]
struct State {
    generation: u64,
    answers: HashMap<[u8; 32], Searched>,
    /// The oldest first.
    order: VecDeque<([u8; 32], usize)>,
    bytes: usize,
}

impl Asked {
    /// `None` for a search that is not kept.
    pub(super) fn new(vectors: &[Vec<f32>], wanted: &Search, generation: u64) -> Option<Self> {
        let Search { k, min_similarity, namespace, within, tags, older_than, newer_than, after, exact } = wanted;
        if older_than.is_some() || newer_than.is_some() || after.is_some() {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        // Every list says how long it is, so that no two searches are written alike.
        let rest = format!("{k} {min_similarity:?} {:?} {within:?} {tags:?} {exact} {} ", namespace, vectors.len());
        hasher.update(rest.as_bytes());
        for vector in vectors {
            hasher.update(&vector.len().to_le_bytes()).update(bytemuck::cast_slice(vector));
        }
        Some(Self { digest: *hasher.finalize().as_bytes(), generation })
    }
}

impl Repeated {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, state: Mutex::default(), hits: AtomicU64::new(0) }
    }

    /// Whether anything is ever kept.
    pub(super) fn is_on(&self) -> bool {
        self.bytes_max > 0
    }

    /// How many searches were answered from here.
    pub(super) fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    fn state(&self, generation: u64) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().expect("no thread panics while it holds what is kept");
        if state.generation != generation {
            *state = State { generation, ..State::default() };
        }
        state
    }

    /// The answer to the same search, if nothing has changed since and all that it names `is_there` still.
    pub(super) fn get(&self, asked: &Asked, is_there: impl Fn(&Key) -> bool) -> Option<Searched> {
        let searched = self.state(asked.generation).answers.get(&asked.digest)?.clone();
        let is_whole = searched.results.iter().flatten().all(|found| is_there(&found.key));
        self.hits.fetch_add(u64::from(is_whole), Ordering::Relaxed);
        is_whole.then_some(searched)
    }

    /// Forgets all that is kept.
    pub(super) fn forget(&self) {
        *self.state.lock().expect("no thread panics while it holds what is kept") = State::default();
    }

    /// Keeps an answer; the oldest make room.
    pub(super) fn keep(&self, asked: Asked, searched: &Searched) {
        let bytes = OVERHEAD_BYTES + searched.results.iter().flatten().map(bytes_of).sum::<usize>();
        if bytes > self.bytes_max {
            return;
        }
        let mut state = self.state(asked.generation);
        while state.bytes + bytes > self.bytes_max
            && let Some((digest, of_oldest)) = state.order.pop_front()
        {
            state.answers.remove(&digest);
            state.bytes -= of_oldest;
        }
        if state.answers.insert(asked.digest, searched.clone()).is_none() {
            state.order.push_back((asked.digest, bytes));
            state.bytes += bytes;
        }
    }
}

fn bytes_of(found: &Found) -> usize {
    let tags: usize = found.tags.iter().map(|tag| tag.len() + size_of::<String>()).sum();
    OVERHEAD_BYTES + tags + found.payload.as_ref().map_or(0, String::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Device, Method, Path};

    fn searched(byte: u8, payload_bytes: usize) -> Searched {
        let key = Key::from_bytes([byte; 32]);
        let payload = Some("x".repeat(payload_bytes));
        let found = Found { key, similarity: 0.5, tags: Vec::new(), payload };
        let path = Path { method: Method::Exact, device: Device::Cpu };
        Searched { results: vec![vec![found]], next: None, path }
    }

    fn asked(value: f32, generation: u64) -> Asked {
        Asked::new(&[vec![value, 1.0]], &Search::default(), generation).unwrap()
    }

    #[test]
    fn an_answer_is_kept_until_something_changes() {
        let repeated = Repeated::new(10_000);
        repeated.keep(asked(1.0, 7), &searched(1, 10));
        assert_eq!(repeated.get(&asked(1.0, 7), |_| true), Some(searched(1, 10)));
        assert_eq!(repeated.get(&asked(2.0, 7), |_| true), None);
        assert_eq!(repeated.get(&asked(1.0, 7), |_| false), None);
        assert_eq!(repeated.get(&asked(1.0, 8), |_| true), None);
        // What was found before the change is not kept as what is found after it.
        repeated.keep(asked(1.0, 7), &searched(1, 10));
        assert_eq!(repeated.get(&asked(1.0, 8), |_| true), None);
        assert_eq!(repeated.hits(), 1);
    }

    #[test]
    fn the_oldest_make_room_and_the_largest_are_not_kept() {
        let repeated = Repeated::new(3000);
        for at in 0..3u8 {
            repeated.keep(asked(f32::from(at), 0), &searched(at, 600));
        }
        let there = [0.0, 1.0, 2.0].map(|value| repeated.get(&asked(value, 0), |_| true).is_some());
        assert_eq!(there, [false, true, true]);
        repeated.keep(asked(9.0, 0), &searched(9, 4000));
        assert_eq!(repeated.get(&asked(9.0, 0), |_| true), None);
        let none = Repeated::new(0);
        none.keep(asked(1.0, 0), &searched(1, 1));
        assert_eq!(none.get(&asked(1.0, 0), |_| true), None);
    }

    #[test]
    fn searches_that_differ_are_kept_apart_and_those_by_age_not_at_all() {
        let of = |wanted: Search| Asked::new(&[vec![1.0]], &wanted, 0).map(|asked| asked.digest);
        let all = [
            Search::default(),
            Search { k: 11, ..Search::default() },
            Search { min_similarity: Some(0.5), ..Search::default() },
            Search { tags: Some(vec!["a".to_owned()]), ..Search::default() },
            Search { tags: Some(vec!["a".to_owned(), "b".to_owned()]), ..Search::default() },
            Search { exact: true, ..Search::default() },
        ];
        let digests: std::collections::HashSet<_> = all.into_iter().map(|wanted| of(wanted).unwrap()).collect();
        assert_eq!(digests.len(), 6);
        let second = Some(std::time::Duration::from_secs(1));
        assert_eq!(of(Search { older_than: second, ..Search::default() }), None);
        assert_eq!(of(Search { newer_than: second, ..Search::default() }), None);
    }
}

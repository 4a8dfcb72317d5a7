//! The last census of the store: taken again when somebody asks and it is old, never more often than its cost allows.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::store::Census;

/// How old one is that is not answered any more.
const AGE_MIN: Duration = Duration::from_secs(5);

/// How many times as long as it took it is answered at least: whoever asks however often, no more than a fiftieth of a
/// thread is spent on it.
const AGE_TIMES: u32 = 50;

#[derive(Default)]
pub(super) struct LastCensus(Mutex<Option<Last>>);

struct Last {
    census: Arc<Census>,
    taken: Instant,
    age_max: Duration,
}

impl LastCensus {
    /// The last one, or one that `take` takes now while all who ask meanwhile wait for it. Blocking.
    pub(super) fn get(&self, take: impl FnOnce() -> Census) -> Arc<Census> {
        // What is kept is replaced in one step: a panic of `take` leaves it whole.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last.as_ref().filter(|last| last.taken.elapsed() < last.age_max) {
            return Arc::clone(&last.census);
        }
        let began = Instant::now();
        let census = Arc::new(take());
        let taken = Instant::now();
        let age_max = AGE_MIN.max((taken - began).saturating_mul(AGE_TIMES));
        *last = Some(Last { census: Arc::clone(&census), taken, age_max });
        census
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(looked_at: u64) -> Census {
        Census { looked_at, ..Census::default() }
    }

    #[test]
    fn one_is_taken_for_all_who_ask_within_seconds_and_the_longer_it_took_the_longer_it_is_answered() {
        let last = LastCensus::default();
        assert_eq!(last.get(|| of(1)).looked_at, 1);
        assert_eq!(last.get(|| panic!("it is not old")).looked_at, 1);
        assert_eq!(last.0.lock().unwrap().as_ref().unwrap().age_max, AGE_MIN);
        last.0.lock().unwrap().as_mut().unwrap().age_max = Duration::ZERO;
        let slow = || {
            std::thread::sleep(Duration::from_millis(120));
            of(2)
        };
        assert_eq!(last.get(slow).looked_at, 2);
        assert!(last.0.lock().unwrap().as_ref().unwrap().age_max >= Duration::from_secs(6));
    }
}

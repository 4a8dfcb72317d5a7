//! Time and chance, which tests bring themselves.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub(super) trait World: Send + Sync {
    /// Time since some fixed moment; never goes back.
    fn now(&self) -> Duration;
    /// Seconds since 1970, by the calendar.
    fn unix_seconds(&self) -> u64;
    fn sleep(&self, duration: Duration);
    /// Between 0 and 1, each time anew.
    fn random(&self) -> f64;
}

/// The real one.
pub(super) struct System {
    started: Instant,
}

impl System {
    pub(super) fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl World for System {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn unix_seconds(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }

    fn random(&self) -> f64 {
        // The standard library's keys differ each time; their hash of nothing is as random as a back-off needs.
        (RandomState::new().build_hasher().finish() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Sleeping moves its clock and takes no time; every sleep is written down.
    pub(in crate::engine::upstream) struct Staged {
        pub(in crate::engine::upstream) now: Mutex<Duration>,
        pub(in crate::engine::upstream) slept: Mutex<Vec<Duration>>,
        pub(in crate::engine::upstream) random: f64,
    }

    impl Staged {
        pub(in crate::engine::upstream) fn new(random: f64) -> Self {
            Self { now: Mutex::default(), slept: Mutex::default(), random }
        }

        pub(in crate::engine::upstream) fn pass(&self, duration: Duration) {
            *self.now.lock().unwrap() += duration;
        }
    }

    impl World for Staged {
        fn now(&self) -> Duration {
            *self.now.lock().unwrap()
        }

        /// Begins 100 s before midnight.
        fn unix_seconds(&self) -> u64 {
            20_000 * 86_400 - 100 + self.now().as_secs()
        }

        fn sleep(&self, duration: Duration) {
            self.pass(duration);
            self.slept.lock().unwrap().push(duration);
        }

        fn random(&self) -> f64 {
            self.random
        }
    }

    #[test]
    fn chance_is_between_0_and_1_and_differs() {
        let draws: Vec<f64> = (0..100).map(|_| System::new().random()).collect();
        assert!(draws.iter().all(|draw| (0.0..1.0).contains(draw)), "{draws:?}");
        assert!(draws.windows(2).any(|pair| pair[0] != pair[1]));
    }
}

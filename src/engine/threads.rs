//! The engine's own threads: as many as it is told, each on a processor of its own if it is told so. Nothing of it computes on threads
//! that others have, or that have the urgency of those who answer requests.

use rayon::ThreadPool;

use super::{EngineError, Options};
use crate::urgency::stand_back;

/// A pool of threads that nothing else uses.
pub(super) struct Threads {
    pool: ThreadPool,
}

impl Threads {
    /// Starts `count` threads of a name, or one for each processor this process may use, as urgent as `niceness` says.
    ///
    /// # Errors
    /// When the system has no room for them, or there are fewer processors than threads to be pinned.
    fn start(name: &'static str, count: Option<usize>, pinned: bool, niceness: u8) -> Result<Self, EngineError> {
        let usable = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let count = count.unwrap_or(usable);
        let mut builder = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|_| name.to_owned());
        let processors = if pinned { processors()? } else { Vec::new() };
        if pinned && processors.len() < count {
            let reason = format!("{count} threads cannot be pinned to {} processors", processors.len());
            return Err(EngineError::Threads(reason));
        }
        builder = builder.start_handler(move |index| {
            stand_back(niceness);
            processors.get(index).copied().into_iter().for_each(pin);
        });
        let pool = builder.build().map_err(|error| EngineError::Threads(error.to_string()))?;
        Ok(Self { pool })
    }

    /// Those that a network is computed on.
    ///
    /// # Errors
    /// As [`Threads::start`].
    pub(super) fn to_compute(options: &Options) -> Result<Self, EngineError> {
        Self::start("vecmemo-compute", options.threads, options.pin_threads, options.niceness)
    }

    /// Those that texts are tokenised on. They are not pinned: they work while others wait.
    ///
    /// # Errors
    /// As [`Threads::start`].
    pub(super) fn to_tokenize(options: &Options) -> Result<Self, EngineError> {
        Self::start("vecmemo-tokens", options.threads, false, options.niceness)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs work on them.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }
}

/// The processors this process may use.
#[cfg(target_os = "linux")]
fn processors() -> Result<Vec<usize>, EngineError> {
    let allowed = rustix::thread::sched_getaffinity(None).map_err(|error| EngineError::Threads(error.to_string()))?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor)).collect())
}

#[cfg(target_os = "linux")]
fn pin(processor: usize) {
    let mut only = rustix::thread::CpuSet::new();
    only.set(processor);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &only) {
        tracing::warn!(processor, %error, "a thread could not be pinned");
    }
}

#[cfg(not(target_os = "linux"))]
fn processors() -> Result<Vec<usize>, EngineError> {
    Err(EngineError::Threads("threads can only be pinned on Linux: leave engine_pin_threads off".to_owned()))
}

#[cfg(not(target_os = "linux"))]
fn pin(_: usize) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::urgency::niceness;

    #[test]
    fn threads_that_compute_stand_back_and_those_that_start_them_do_not() {
        let before = niceness();
        let wanted = (before + 3).min(19);
        let threads = Threads::start("test", Some(1), false, wanted as u8).unwrap();
        assert_eq!((threads.run(niceness), niceness()), (wanted, before));
    }
}

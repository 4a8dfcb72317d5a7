//! The CPU engine's own threads: as many as it is told, each on a processor of its own if it is told so.

use rayon::ThreadPool;

use super::EngineError;

/// A pool of threads that nothing else uses.
pub(super) struct Threads {
    pool: ThreadPool,
}

impl Threads {
    /// Starts `count` threads, or one for each processor this process may use, as urgent as `niceness` says.
    ///
    /// # Errors
    /// When the system has no room for them, or there are fewer processors than threads to be pinned.
    pub(super) fn start(count: Option<usize>, pinned: bool, niceness: u8) -> Result<Self, EngineError> {
        let usable = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let count = count.unwrap_or(usable);
        let mut builder =
            rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|_| "vecmemo-compute".to_owned());
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

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs work on them.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }
}

/// Has this thread compute when those that answer do not: its niceness, as nice(1) has it, is from now on at least this.
///
/// Only Linux has one for each thread; elsewhere this does nothing.
#[cfg(target_os = "linux")]
pub fn stand_back(niceness: u8) {
    // Without an id both are about the calling thread.
    let outcome = rustix::process::getpriority_process(None).and_then(|own| match i32::from(niceness) {
        wanted if wanted > own => rustix::process::setpriority_process(None, wanted),
        _ => Ok(()),
    });
    if let Err(error) = outcome {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}

/// As on Linux, where threads have priorities.
#[cfg(not(target_os = "linux"))]
pub fn stand_back(_: u8) {}

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

    fn niceness() -> i32 {
        rustix::process::getpriority_process(None).expect("the thread has a priority")
    }

    #[test]
    fn threads_that_compute_stand_back_and_those_that_start_them_do_not() {
        let before = niceness();
        let wanted = (before + 3).min(19);
        let threads = Threads::start(Some(1), false, wanted as u8).unwrap();
        assert_eq!((threads.run(niceness), niceness()), (wanted, before));
        // Who was told to stand back further already stays there.
        threads.run(|| stand_back(0));
        assert_eq!(threads.run(niceness), wanted);
    }
}

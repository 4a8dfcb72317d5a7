//! The CPU engine's own threads: as many as it is told, each on a processor of its own if it is told so.

use rayon::ThreadPool;

use super::EngineError;

/// A pool of threads that nothing else uses.
pub(super) struct Threads {
    pool: ThreadPool,
}

impl Threads {
    /// Starts `count` threads, or one for each processor this process may use.
    ///
    /// # Errors
    /// When the system has no room for them, or there are fewer processors than threads to be pinned.
    pub(super) fn start(count: Option<usize>, pinned: bool) -> Result<Self, EngineError> {
        let usable = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let count = count.unwrap_or(usable);
        let mut builder =
            rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|_| "vecmemo-compute".to_owned());
        if pinned {
            let processors = processors()?;
            if processors.len() < count {
                let reason = format!("{count} threads cannot be pinned to {} processors", processors.len());
                return Err(EngineError::Threads(reason));
            }
            builder = builder.start_handler(move |index| pin(processors[index]));
        }
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

//! What reuse costs beside computing, both on one thread, turn by turn.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use vecmemo::engine::Options;
use vecmemo::reuse::{Table, Terms};

use crate::corpus;
use crate::figures::median;
use crate::trial::{NOW, Traffic};

/// Texts of so many tokens are timed.
const TOKENS: std::ops::RangeInclusive<usize> = 80..=100;
const TEXTS: usize = 256;
/// What the engine is given at once.
const BATCH: usize = 16;
const ROUNDS: usize = 7;

/// Microseconds a text.
#[derive(Serialize)]
pub(crate) struct Cost {
    corpus: String,
    /// Texts that may be reused.
    sources: usize,
    /// Computing, in batches, in the default precision.
    compute_us: f64,
    /// From token ids to the source's name, where there is one.
    reused_us: f64,
    /// From token ids to a refusal, and being made a source in its turn.
    missed_us: f64,
    /// The same figures, of each round, as shares of computing.
    reused_share: f64,
    missed_share: f64,
}

/// Times the texts that a split holds out.
pub(crate) fn measure(traffic: &Traffic, table: &Arc<Table>, pieces: &[String]) -> Cost {
    let mut model = corpus::model(&Options { threads: Some(1), ..Options::default() });
    let calibration = traffic.calibrate(table, pieces, 0, true);
    let matcher = traffic.matcher(table, pieces, 0, calibration);
    let terms = Terms { min_similarity: 0.95, max_violation: 0.05 };
    let find = |ids: &[u32]| matcher.find(ids, terms, NOW, &|_| false).is_ok();
    let held_out =
        traffic.held_out(0).into_iter().map(|place| traffic.ids(place)).filter(|ids| TOKENS.contains(&ids.len()));
    let (reused, missed): (Vec<_>, Vec<_>) = held_out.partition(|ids| find(ids));
    let (mut computing, mut reusing, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let texts: Vec<&[u32]> =
            reused.iter().chain(&missed).map(|ids| &**ids).cycle().skip(round * 61).take(TEXTS).collect();
        computing.push(time(texts.len(), || {
            texts.chunks(BATCH).for_each(|batch| drop(black_box(model.engine.embed(batch).unwrap())));
        }));
        reusing.push(time(reused.len(), || {
            for ids in &reused {
                black_box(find(ids));
            }
        }));
        missing.push(time(missed.len(), || {
            for (at, ids) in missed.iter().enumerate() {
                black_box(find(ids));
                matcher.add(traffic.key(u64::MAX - round as u64, at), ids);
            }
        }));
        (0..missed.len()).for_each(|at| matcher.neighbours().remove(&traffic.key(u64::MAX - round as u64, at)));
    }
    let share =
        |times: &[f64]| median(times.iter().zip(&computing).map(|(time, computing)| time / computing).collect());
    Cost {
        corpus: traffic.corpus.name.clone(),
        sources: matcher.neighbours().len(),
        reused_share: share(&reusing),
        missed_share: share(&missing),
        compute_us: median(computing),
        reused_us: median(reusing),
        missed_us: median(missing),
    }
}

/// Microseconds for each of so many.
fn time(count: usize, work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64() * 1e6 / count.max(1) as f64
}

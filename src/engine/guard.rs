//! An engine on a GPU that gives way to the processor: what a caller is told to fail is nobody's device, only his texts.
//!
//! ```text
//! embed ─► device ─┬─ vectors
//!                  ├─ out of memory: again with half the tokens, down to one text
//!                  └─ another fault: once more; then the processor computes it, and all that comes after: the device is lost
//!                                                └─ the processor fails too: the texts are at fault, the device stays
//! ```
//!
//! A lost device is not tried again: what CUDA reports as an error mostly stays one until the process ends.

use super::{Engine, EngineError};
use crate::domain::{ActiveDevice, Device};

/// Batches computed within a bound that memory set, before twice as much is tried.
const BATCHES_BEFORE_GROWTH: u32 = 64;

pub(super) type MakeEngine = Box<dyn FnMut() -> Result<Box<dyn Engine>, EngineError> + Send>;

/// A device's engine, and the processor's for when it fails.
pub(super) struct Guarded {
    /// `None` once it is lost.
    device: Option<Box<dyn Engine>>,
    /// Made when it is first needed: it takes memory and time.
    processor: Option<Box<dyn Engine>>,
    make_processor: MakeEngine,
    active: ActiveDevice,
    /// The most tokens the device is given at once, since it ran out of memory with more.
    tokens_max: Option<usize>,
    batches_within: u32,
}

impl Guarded {
    pub(super) fn new(device: Box<dyn Engine>, make_processor: MakeEngine, active: ActiveDevice) -> Self {
        Self { device: Some(device), processor: None, make_processor, active, tokens_max: None, batches_within: 0 }
    }

    fn on_processor(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let processor = match &mut self.processor {
            Some(processor) => processor,
            None => self.processor.insert((self.make_processor)()?),
        };
        processor.embed(batch)
    }

    /// How many texts of the front go to the device together.
    fn fitting(&self, batch: &[&[u32]]) -> usize {
        let Some(tokens_max) = self.tokens_max else { return batch.len() };
        let mut tokens = 0;
        let fits = batch.iter().take_while(|ids| {
            tokens += ids.len();
            tokens <= tokens_max
        });
        fits.count().max(1)
    }

    fn shrink(&mut self, batch: &[&[u32]]) {
        let tokens = tokens(batch);
        tracing::warn!(tokens, "the GPU ran out of memory: it is given half as much at once");
        self.tokens_max = Some((tokens / 2).max(1));
        self.batches_within = 0;
    }

    fn succeeded(&mut self) {
        self.batches_within += 1;
        if self.batches_within >= BATCHES_BEFORE_GROWTH {
            self.batches_within = 0;
            self.tokens_max = self.tokens_max.map(|tokens| tokens.saturating_mul(2));
        }
    }
}

fn tokens(batch: &[&[u32]]) -> usize {
    batch.iter().map(|ids| ids.len()).sum()
}

/// Drivers name it in words of their own, and candle hands these on.
fn is_out_of_memory(error: &EngineError) -> bool {
    let text = error.to_string();
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory"].iter().any(|name| text.contains(name))
}

impl Engine for Guarded {
    fn kernel(&self) -> String {
        let computing = self.device.as_ref().or(self.processor.as_ref());
        computing.map(|engine| engine.kernel()).unwrap_or_default()
    }

    fn embed(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let mut vectors = Vec::with_capacity(batch.len());
        let mut rest = batch;
        let mut failed = false;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(self.fitting(rest));
            let Some(device) = &mut self.device else {
                vectors.extend(self.on_processor(rest)?);
                break;
            };
            match device.embed(part) {
                Ok(computed) => {
                    self.succeeded();
                    failed = false;
                    vectors.extend(computed);
                    rest = after;
                }
                Err(error @ EngineError::Compute(_)) if is_out_of_memory(&error) && part.len() > 1 => self.shrink(part),
                Err(error @ EngineError::Compute(_)) if !failed => {
                    tracing::warn!(%error, texts = part.len(), "the GPU failed a batch: it is asked once more");
                    failed = true;
                }
                Err(error @ EngineError::Compute(_)) => {
                    vectors.extend(self.on_processor(part)?);
                    rest = after;
                    tracing::error!(%error, "the GPU failed twice in a row and is given up: the CPU computes until a restart");
                    self.device = None;
                    let kernel = self.processor.as_ref().map(|processor| processor.kernel()).unwrap_or_default();
                    self.active.set(Device::Cpu, &kernel);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(vectors)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What a device does when it is asked.
    #[derive(Clone, Copy)]
    enum Turn {
        Compute,
        Fail(&'static str),
        Refuse,
    }

    const OUT_OF_MEMORY: Turn = Turn::Fail("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
    const LOST: Turn =
        Turn::Fail("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")");

    /// A device that does what it is told, turn by turn, then computes; runs out of memory beyond some tokens; and notes how many
    /// texts it was asked for.
    struct Fake {
        name: f32,
        turns: VecDeque<Turn>,
        tokens_max: usize,
        asked: Arc<Mutex<Vec<usize>>>,
    }

    impl Engine for Fake {
        fn kernel(&self) -> String {
            format!("fake {}", self.name)
        }

        fn embed(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
            self.asked.lock().unwrap().push(batch.len());
            let turn = self.turns.pop_front().unwrap_or(Turn::Compute);
            match if tokens(batch) > self.tokens_max { OUT_OF_MEMORY } else { turn } {
                Turn::Compute => Ok(batch.iter().map(|ids| vec![self.name, ids[0] as f32]).collect()),
                Turn::Fail(text) => Err(candle_core::Error::Msg(text.to_owned()).into()),
                Turn::Refuse => Err(EngineError::Tokenizer("no such token".to_owned())),
            }
        }
    }

    struct Rig {
        guarded: Guarded,
        active: ActiveDevice,
        asked: Arc<Mutex<Vec<usize>>>,
    }

    const GPU: f32 = 1.0;
    const CPU: f32 = 2.0;

    fn rig(turns: &[Turn], tokens_max: usize, cpu_turns: &'static [Turn]) -> Rig {
        let (active, asked) = (ActiveDevice::new(Device::Cuda, "f16 cuda"), Arc::default());
        let device = Fake { name: GPU, turns: turns.to_vec().into(), tokens_max, asked: Arc::clone(&asked) };
        let cpu: MakeEngine = Box::new(|| {
            let turns = cpu_turns.to_vec().into();
            Ok(Box::new(Fake { name: CPU, turns, tokens_max: usize::MAX, asked: Arc::default() }))
        });
        Rig { guarded: Guarded::new(Box::new(device), cpu, active.clone()), active, asked }
    }

    impl Rig {
        /// Computes texts of ten tokens each, which start with 0, 1, 2 …; answers who computed them, in order.
        fn embed(&mut self, texts: u32) -> Result<Vec<f32>, EngineError> {
            let texts: Vec<Vec<u32>> = (0..texts).map(|first| [vec![first], vec![7; 9]].concat()).collect();
            let batch: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            let vectors = self.guarded.embed(&batch)?;
            let firsts: Vec<u32> = vectors.iter().map(|vector| vector[1] as u32).collect();
            assert_eq!(firsts, (0..texts.len() as u32).collect::<Vec<_>>());
            Ok(vectors.iter().map(|vector| vector[0]).collect())
        }

        fn asked(&self) -> Vec<usize> {
            std::mem::take(&mut self.asked.lock().unwrap())
        }
    }

    #[test]
    fn out_of_memory_halves_the_batch_until_it_fits_and_is_remembered() {
        let mut rig = rig(&[], 25, &[]);
        assert_eq!(rig.embed(8).unwrap(), [GPU; 8]);
        assert_eq!(rig.asked(), [8, 4, 2, 2, 2, 2]);
        assert_eq!(rig.embed(5).unwrap(), [GPU; 5]);
        assert_eq!(rig.asked(), [2, 2, 1]);
        assert_eq!(rig.active.get(), Device::Cuda);
    }

    #[test]
    fn memory_that_was_short_once_is_tried_again_later() {
        let mut rig = rig(&[OUT_OF_MEMORY], usize::MAX, &[]);
        rig.embed(4).unwrap();
        for _ in 0..BATCHES_BEFORE_GROWTH {
            rig.embed(2).unwrap();
        }
        rig.asked();
        rig.embed(4).unwrap();
        assert_eq!(rig.asked(), [4]);
    }

    #[test]
    fn one_text_too_large_for_the_device_is_computed_by_the_processor() {
        let mut rig = rig(&[], 5, &[]);
        assert_eq!(rig.embed(2).unwrap(), [CPU; 2]);
        assert_eq!(rig.asked(), [2, 1, 1]);
        assert_eq!(rig.active.get(), Device::Cpu);
    }

    #[test]
    fn a_single_fault_is_tried_again_and_not_seen() {
        let mut rig = rig(&[Turn::Compute, LOST, Turn::Compute, LOST], usize::MAX, &[]);
        for _ in 0..3 {
            assert_eq!(rig.embed(3).unwrap(), [GPU; 3]);
        }
        assert_eq!(rig.asked(), [3; 5]);
        assert_eq!(rig.active.get(), Device::Cuda);
    }

    #[test]
    fn a_device_that_fails_twice_in_a_row_is_lost_and_says_so() {
        let mut rig = rig(&[Turn::Compute, LOST, LOST], usize::MAX, &[]);
        assert_eq!(rig.embed(2).unwrap(), [GPU; 2]);
        assert_eq!(rig.embed(3).unwrap(), [CPU; 3]);
        assert_eq!((rig.active.get(), &*rig.active.kernel()), (Device::Cpu, "fake 2"));
        assert_eq!(rig.embed(2).unwrap(), [CPU; 2]);
        assert_eq!(rig.asked(), [2, 3, 3], "a lost device is not asked again");
    }

    #[test]
    fn a_device_lost_in_the_middle_of_a_batch_leaves_the_rest_to_the_processor() {
        let mut rig = rig(&[OUT_OF_MEMORY, Turn::Compute, LOST, LOST], usize::MAX, &[]);
        assert_eq!(rig.embed(6).unwrap(), [GPU, GPU, GPU, CPU, CPU, CPU]);
        assert_eq!(rig.asked(), [6, 3, 3, 3]);
    }

    #[test]
    fn texts_that_fail_everywhere_do_not_cost_the_device() {
        let mut rig = rig(&[LOST, LOST], usize::MAX, &[LOST]);
        assert!(matches!(rig.embed(2), Err(EngineError::Compute(_))));
        assert_eq!(rig.active.get(), Device::Cuda);
        assert_eq!(rig.embed(2).unwrap(), [GPU; 2]);
    }

    #[test]
    fn texts_that_are_refused_are_not_the_devices_fault() {
        let mut rig = rig(&[Turn::Refuse, Turn::Refuse, Turn::Refuse], usize::MAX, &[]);
        for _ in 0..3 {
            assert!(matches!(rig.embed(2), Err(EngineError::Tokenizer(_))));
        }
        assert_eq!((rig.asked(), rig.active.get()), (vec![2; 3], Device::Cuda));
    }
}

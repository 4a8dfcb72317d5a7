//! How a model is computed, as its owner asks.

use std::path::PathBuf;

/// What to compute with, how exactly, and on how many threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Where.
    pub device: DeviceChoice,
    /// How exactly.
    pub precision: Precision,
    /// Threads of the CPU engine; one for each processor this process may use if `None`.
    pub threads: Option<usize>,
    /// Whether each thread stays on one processor.
    pub pin_threads: bool,
    /// How little urgent these threads are, as nice(1) has it; see [`stand_back`](crate::urgency::stand_back).
    pub niceness: u8,
    /// Where what has to survive a restart is kept (of upstream models); the models folder if `None`.
    pub state_dir: Option<PathBuf>,
    /// Tokens that one thread of the CPU engine computes together; measured at load if `None`.
    pub chunk_tokens: Option<usize>,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU this program was built for and finds, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU; loading fails without one.
    Cuda,
    /// An Apple GPU; loading fails without one.
    Metal,
    /// The processor, by the encoder for GPUs: slow, and there to test it where there is no GPU.
    CpuAsGpu,
}

impl DeviceChoice {
    /// What is meant, for messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Auto => "any GPU",
            Self::Cpu => "the CPU",
            Self::Cuda => "an NVIDIA GPU",
            Self::Metal => "an Apple GPU",
            Self::CpuAsGpu => "the encoder for GPUs",
        }
    }
}

/// How exactly vectors are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// The fastest arithmetic whose vectors are within cosine 0.9999 of f32's, measured at load.
    #[default]
    Auto,
    /// 32-bit floating point.
    F32,
    /// 16-bit fixed point on the CPU, 16-bit floating point on a GPU.
    Half,
    /// 8-bit integers: a class of vectors of its own, not mixed with the others'.
    Int8,
}

impl Precision {
    /// The class of the vectors, a part of the fingerprint: everything within cosine 0.9999 of f32 is one.
    #[must_use]
    pub fn class(self) -> &'static str {
        match self {
            Self::Auto | Self::F32 | Self::Half => "f32",
            Self::Int8 => "int8",
        }
    }
}

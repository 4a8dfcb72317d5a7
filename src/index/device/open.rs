//! Which device searches beside the processor.

use std::sync::Arc;

use super::mirror::Mirror;
use super::tensors::Tensors;
use super::trial::try_out;
use super::{Accelerator, Fault};
use crate::index::Index;
use crate::index::searcher::Device;

/// Where searches may be answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// Where it is expected to be quickest: the processor, or a GPU that this program was built for and the machine has.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, whenever it can.
    Cuda,
    /// Apple's GPU, whenever it can.
    Metal,
    /// What other GPUs than NVIDIA's would do, on the processor: to try it out where there is none. Slower.
    CpuAsGpu,
}

impl DeviceChoice {
    /// Its name: `auto`, `cpu`, `cuda`, `metal` or `cpu-as-gpu`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
            Self::CpuAsGpu => "cpu-as-gpu",
        }
    }

    /// Tries the device out, to say at a start what would otherwise be found out at the first search.
    ///
    /// # Errors
    /// When the device that was chosen is not there, or cannot be used. `Auto` and `Cpu` always can.
    pub fn check(self) -> Result<(), DeviceError> {
        match self {
            Self::Auto | Self::Cpu => Ok(()),
            _ => Index::new(TRIED_DIMS).with_device(self).map(drop),
        }
    }
}

/// Why a device cannot search.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the device {} cannot search: {reason}", choice.name())]
pub struct DeviceError {
    /// What was asked for.
    pub choice: DeviceChoice,
    /// Why not, and what to do.
    pub reason: String,
}

/// Values of a row for a device that is only tried out.
const TRIED_DIMS: usize = 32;

type Opened = Result<Box<dyn Accelerator>, Fault>;

impl Index {
    /// As it is, with its rows on a device too, which takes part in searches. With [`DeviceChoice::Auto`] a GPU that is there but
    /// cannot be used is a warning.
    ///
    /// # Errors
    /// When the device that was chosen is not there, or cannot be used.
    ///
    /// # Panics
    /// When there are rows already.
    pub fn with_device(self, choice: DeviceChoice) -> Result<Self, DeviceError> {
        assert!(self.matrix.places() == 0, "a device is chosen before the first row");
        let dims = self.dims();
        let (device, opened) = match choice {
            DeviceChoice::Cpu => return Ok(self),
            DeviceChoice::Auto if cfg!(feature = "cuda") && has_cuda_driver() => (Device::Cuda, cuda(dims)),
            DeviceChoice::Auto if cfg!(all(feature = "metal", target_os = "macos")) => (Device::Metal, metal(dims)),
            DeviceChoice::Auto => return Ok(self),
            DeviceChoice::Cuda => (Device::Cuda, cuda(dims)),
            DeviceChoice::Metal => (Device::Metal, metal(dims)),
            DeviceChoice::CpuAsGpu => (Device::Cpu, Ok(tensors(candle_core::Device::Cpu, dims))),
        };
        let tried = opened.and_then(|mut accelerator| try_out(accelerator.as_mut(), dims).map(|()| accelerator));
        match tried {
            Ok(accelerator) => {
                let mirror = Mirror::new(device, accelerator, Arc::clone(&self.matrix), Arc::clone(&self.exact));
                let mirror = if choice == DeviceChoice::Auto { mirror } else { mirror.first_choice() };
                Ok(self.with_searcher(Box::new(mirror)))
            }
            Err(Fault(reason)) if choice == DeviceChoice::Auto => {
                let device = device.name();
                tracing::warn!(device, reason, "there is a GPU that cannot be used: the CPU searches");
                Ok(self)
            }
            Err(Fault(reason)) => Err(DeviceError { choice, reason }),
        }
    }
}

fn tensors(device: candle_core::Device, dims: usize) -> Box<dyn Accelerator> {
    Box::new(Tensors::new(device, dims))
}

fn metal(dims: usize) -> Opened {
    if !cfg!(feature = "metal") {
        return Err(Fault("this program was built without the feature `metal` (see docs/gpu.md)".to_owned()));
    }
    Ok(tensors(candle_core::Device::new_metal(0)?, dims))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> Opened {
    Err(Fault("this program was built without the feature `cuda` (see docs/gpu.md)".to_owned()))
}

#[cfg(feature = "cuda")]
fn cuda(dims: usize) -> Opened {
    if !has_cuda_driver() {
        return Err(Fault("NVIDIA's driver is not installed: there is no libcuda.so.1".to_owned()));
    }
    // Libraries that cannot be found end in a panic of cudarc's.
    let opened = std::panic::catch_unwind(|| super::cuda::Cuda::new(dims));
    let missing = "one of CUDA's libraries cannot be loaded (cuBLAS, NVRTC): add their folder to LD_LIBRARY_PATH";
    Ok(Box::new(opened.map_err(|_| Fault(missing.to_owned()))??))
}

/// Whether NVIDIA's driver is installed: its library can be opened.
fn has_cuda_driver() -> bool {
    #[cfg(target_os = "linux")]
    {
        #[expect(unsafe_code, reason = "asking the system for a library")]
        // SAFETY: the name ends with a zero; the driver's library does nothing when it is opened, and stays open.
        return !unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY) }.is_null();
    }
    #[cfg(not(target_os = "linux"))]
    true
}

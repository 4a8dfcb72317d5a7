//! Which device computes, and the engine on it.
//!
//! A GPU's vectors are of one class with the processor's only if they are as close to f32 as the class says. That is measured
//! at load, with the model's own weights on the device itself, before anything is served; the same makes the device compile
//! and load its kernels.

use candle_core::{DType, Device};

use super::encoder::Encoder;
use super::guard::{Guarded, MakeEngine};
use super::precision::{COSINE_MIN, least_cosine};
use super::tensors::Tensors;
use super::weights::Weights;
use super::{DeviceChoice, Engine, EngineError, Options, Precision};
use crate::domain::{self, ActiveDevice, Pooling};

/// Lengths in tokens of the made-up texts that precision is measured on.
const PROBE_LENGTHS: [usize; 6] = [3, 8, 17, 40, 96, 250];

/// Puts an encoder where its owner wants it, and says so in `active`. `on_processor` makes the processor's.
pub(super) fn choose(
    weights: Weights,
    pooling: Pooling,
    options: &Options,
    active: &ActiveDevice,
    on_processor: impl Fn(&Weights) -> Result<Encoder, EngineError> + Send + 'static,
) -> Result<Box<dyn Engine>, EngineError> {
    let found = match options.device {
        DeviceChoice::Cpu => None,
        DeviceChoice::Auto if options.precision == Precision::Int8 => None,
        DeviceChoice::Auto => any(),
        DeviceChoice::Cuda => Some((domain::Device::Cuda, cuda())),
        DeviceChoice::Metal => Some((domain::Device::Metal, metal())),
        DeviceChoice::CpuAsGpu => Some((domain::Device::Cpu, Ok(Device::Cpu))),
    };
    let opened = found.map(|(name, device)| {
        (name, device.and_then(|device| on_device(&weights, pooling, options.precision, &device)))
    });
    let engine: Box<dyn Engine> = match opened {
        Some((name, Ok(engine))) => {
            let make: MakeEngine = Box::new(move || Ok(Box::new(on_processor(&weights)?)));
            let engine = Guarded::new(Box::new(engine), make, active.clone());
            active.set(name, &engine.kernel());
            return Ok(Box::new(engine));
        }
        Some((_, Err(reason))) if options.device != DeviceChoice::Auto => {
            return Err(EngineError::Device { device: options.device.name(), reason });
        }
        Some((name, Err(reason))) => {
            tracing::warn!(device = name.as_str(), reason, "there is a GPU that cannot be used: the CPU computes");
            Box::new(on_processor(&weights)?)
        }
        None => Box::new(on_processor(&weights)?),
    };
    active.set(domain::Device::Cpu, &engine.kernel());
    Ok(engine)
}

/// Refuses what no device of that kind computes.
pub(super) fn check(options: &Options) -> Result<(), EngineError> {
    if options.precision == Precision::Int8 && matches!(options.device, DeviceChoice::Cuda | DeviceChoice::Metal) {
        let reason = "it does not compute in 8-bit integers: choose another precision, or the device cpu".to_owned();
        return Err(EngineError::Device { device: options.device.name(), reason });
    }
    Ok(())
}

/// The GPU this program was built for, if this machine seems to have one.
fn any() -> Option<(domain::Device, Result<Device, String>)> {
    if cfg!(feature = "cuda") && has_cuda_driver() {
        Some((domain::Device::Cuda, cuda()))
    } else if cfg!(all(feature = "metal", target_os = "macos")) {
        Some((domain::Device::Metal, metal()))
    } else {
        None
    }
}

/// Whether NVIDIA's driver is installed: its library can be opened.
#[must_use]
pub fn has_cuda_driver() -> bool {
    #[cfg(target_os = "linux")]
    {
        #[expect(unsafe_code, reason = "asking the system for a library")]
        // SAFETY: the name ends with a zero; the driver's library does nothing when it is opened, and stays open.
        return !unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY) }.is_null();
    }
    #[cfg(not(target_os = "linux"))]
    true
}

/// The first NVIDIA GPU, with a stream of its own: candle's usual one is another for every thread, with no order between
/// them, and a model is loaded by one thread and used by another.
fn cuda() -> Result<Device, String> {
    if !cfg!(feature = "cuda") {
        return Err("this program was built without the feature `cuda` (see docs/gpu.md)".to_owned());
    }
    if !has_cuda_driver() {
        return Err("NVIDIA's driver is not installed: there is no libcuda.so.1".to_owned());
    }
    // Libraries that cannot be found end in a panic of cudarc's.
    let opened = std::panic::catch_unwind(|| Device::new_cuda_with_stream(0));
    let missing =
        "one of CUDA's libraries cannot be loaded (cuBLAS, cuRAND, NVRTC): add their folder to LD_LIBRARY_PATH";
    opened.map_err(|_| missing.to_owned())?.map_err(|error| error.to_string())
}

fn metal() -> Result<Device, String> {
    if !cfg!(feature = "metal") {
        return Err("this program was built without the feature `metal` (see docs/gpu.md)".to_owned());
    }
    Device::new_metal(0).map_err(|error| error.to_string())
}

/// The engine on a device in the fastest arithmetic that its owner allows.
fn on_device(weights: &Weights, pooling: Pooling, precision: Precision, device: &Device) -> Result<Tensors, String> {
    let open = |dtype| Tensors::new(weights, pooling, device, dtype).map_err(|error| error.to_string());
    let mut exact = open(DType::F32)?;
    if precision == Precision::F32 {
        return Ok(exact);
    }
    let mut half = open(DType::F16)?;
    let cosine = closeness(&mut half, &mut exact).map_err(|error| error.to_string())?;
    if cosine >= COSINE_MIN {
        tracing::info!(cosine, "the GPU computes in f16");
        return Ok(half);
    }
    if precision == Precision::Half {
        return Err(format!("in f16 its vectors are within cosine {cosine} of f32's, {COSINE_MIN} is asked for"));
    }
    tracing::warn!(cosine, "the GPU computes in f32: in f16 its vectors would be too far from f32's");
    Ok(exact)
}

/// The least cosine between two encoders' vectors of made-up texts.
fn closeness(a: &mut Tensors, b: &mut Tensors) -> Result<f64, EngineError> {
    let (places, vocabulary) = a.reads();
    let texts = PROBE_LENGTHS.map(|length| -> Vec<u32> {
        // Multiplied by a prime: ids from all over the vocabulary.
        (0..length.min(places)).map(|at| ((at + length) * 7919 % vocabulary) as u32).collect()
    });
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    Ok(least_cosine(&a.embed(&texts)?, &b.embed(&texts)?))
}

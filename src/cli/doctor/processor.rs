//! What computes: the processor's instructions, and a GPU if there is one to be used.

use super::finding::{Finding, fail, ok, warn};
use crate::config::Settings;
use crate::engine::{self, DeviceChoice};
use crate::index;

/// Without settings a GPU is not spoken of: it depends on what was asked for.
pub(super) fn check(settings: Option<&Settings>) -> Vec<Finding> {
    let mut findings = vec![instructions(engine::instruction_set(), index::instruction_set(), converts_halves())];
    if let Some(settings) = settings {
        let driver = engine::has_cuda_driver();
        for model in &settings.models {
            let finding = gpu(model.engine.device, cfg!(feature = "cuda"), cfg!(feature = "metal"), driver);
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
        if settings.cache.search.enabled
            && let Err(error) = settings.cache.search.device.check()
        {
            findings.push(fail("gpu", error.to_string(), "choose another device with --search-device"));
        }
    }
    findings
}

/// Whether the processor turns stored f16 into f32 by itself.
fn converts_halves() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    true
}

fn instructions(engine: &str, search: &str, converts_halves: bool) -> Finding {
    let found = format!("models are computed with {engine}, searches with {search}");
    let advice = "if this is a virtual machine, show it the host's processor (CPU type `host`)";
    if [engine, search].contains(&"scalar") {
        return warn(
            "processor",
            format!("{found}: neither AVX2 nor NEON is there, which is many times slower"),
            advice,
        );
    }
    if !converts_halves {
        return warn("processor", format!("{found}; F16C is not there, so answers take longer to write"), advice);
    }
    ok("processor", found)
}

fn gpu(choice: DeviceChoice, has_cuda: bool, has_metal: bool, has_driver: bool) -> Finding {
    let build = "build with scripts/build-cuda (docs/gpu.md), or choose --device cpu";
    match choice {
        DeviceChoice::Cpu | DeviceChoice::CpuAsGpu => ok("gpu", "not asked for"),
        DeviceChoice::Cuda if !has_cuda => fail("gpu", "device is cuda, and this program was built without it", build),
        DeviceChoice::Cuda if !has_driver => {
            let advice = "install NVIDIA's driver, or choose --device auto";
            fail("gpu", "device is cuda, and there is no driver: no libcuda.so.1", advice)
        }
        DeviceChoice::Metal if !has_metal => {
            fail("gpu", "device is metal, and this program was built without it", "choose --device auto or cpu")
        }
        DeviceChoice::Cuda | DeviceChoice::Metal => ok("gpu", "the driver is there"),
        DeviceChoice::Auto => match (has_cuda, has_driver) {
            (true, true) => ok("gpu", "NVIDIA's driver is there, and is used"),
            (true, false) => ok("gpu", "NVIDIA's driver is not there: the CPU computes"),
            (false, true) => {
                warn("gpu", "NVIDIA's driver is there, and this program was built without the feature cuda", build)
            }
            (false, false) => ok("gpu", "none that this program was built for: the CPU computes"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn slow_processors_are_warned_of() {
        assert_eq!(instructions("avx512-vnni", "avx512-vnni", true).level, Level::Ok);
        assert_eq!(instructions("neon", "neon", true).level, Level::Ok);
        assert_eq!(instructions("avx2", "avx2", false).level, Level::Warn);
        assert_eq!(instructions("scalar", "avx2", true).level, Level::Warn);
    }

    #[test]
    fn a_gpu_fails_only_where_it_was_asked_for() {
        use DeviceChoice::{Auto, Cpu, Cuda, Metal};
        for (choice, has_cuda, has_driver, level) in [
            (Auto, false, false, Level::Ok),
            (Auto, false, true, Level::Warn),
            (Auto, true, false, Level::Ok),
            (Auto, true, true, Level::Ok),
            (Cpu, false, true, Level::Ok),
            (Cuda, false, true, Level::Fail),
            (Cuda, true, false, Level::Fail),
            (Cuda, true, true, Level::Ok),
            (Metal, false, false, Level::Fail),
        ] {
            let finding = gpu(choice, has_cuda, false, has_driver);
            assert_eq!(finding.level, level, "{choice:?} {has_cuda} {has_driver}: {finding:?}");
        }
    }
}

//! `vecmemo version`.

use std::process::ExitCode;

pub(super) fn run() -> anyhow::Result<ExitCode> {
    super::print(&format!(
        "vecmemo {} ({}-{})",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS
    ))?;
    Ok(ExitCode::SUCCESS)
}

//! `vecmemo completions`: what a shell needs to complete our command line.

use std::process::ExitCode;

use anyhow::Context;
use clap_complete::Shell;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Whose completions
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments, mut command: clap::Command) -> anyhow::Result<ExitCode> {
    // Into memory first: the generator takes a closed pipe for a reason to panic.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "vecmemo", &mut script);
    super::print(String::from_utf8(script).context("the completions are not text")?.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

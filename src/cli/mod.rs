//! The command line: one file per command, and the only place where the parts are put together.

mod assemble;
mod cache;
mod calibrate;
mod client;
mod cluster;
mod compact;
mod completions;
mod config;
mod dedupe;
mod doctor;
mod erase;
mod export;
mod import;
mod invalidate;
mod keys;
mod lookup;
mod man;
mod meter;
mod migrate;
mod models;
mod reload;
mod search;
mod serve;
mod stats;
mod verify;
mod version;
mod warm;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Layered, LogFormat, Settings, Typed, TypedModels, layer};

/// An embedding cache: texts in, vectors out, each text computed once.
///
/// `vecmemo serve` answers `POST /embed` (and the OpenAI and text-embeddings-inference clients you already have);
/// `vecmemo warm FILE` fills the cache beforehand.
#[derive(Parser)]
#[command(name = "vecmemo", version, max_term_width = 100, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve embeddings over HTTP
    Serve(serve::Arguments),
    /// Embed files of texts beforehand, into the store or through a running server
    Warm(warm::Arguments),
    /// Show the cache's figures
    Stats(stats::Arguments),
    /// List, fetch, show and verify models
    Models(models::Arguments),
    /// Say which texts are cached
    Lookup(lookup::Arguments),
    /// Find the cached entries nearest to texts or to other entries
    Search(search::Arguments),
    /// List clusters of cached entries that are near-duplicates, also beside a running server
    Dedupe(dedupe::Arguments),
    /// Certify, from texts as they come, within which error near-duplicates' vectors can be reused
    Calibrate(calibrate::Arguments),
    /// Remove cached entries by what they are, or mark them stale
    Invalidate(invalidate::Arguments),
    /// Erase cached entries and every trace of them, with a receipt; or check a receipt
    Erase(erase::Arguments),
    /// Switch a running server's cache on or off, or say which it is
    Cache(cache::Arguments),
    /// Have another model take over from one that a running server serves
    Migrate(migrate::Arguments),
    /// Look at the servers of the tier shared with other machines
    Cluster(cluster::Arguments),
    /// Check that every cached entry is as it was written, also beside a running server
    Verify(verify::Arguments),
    /// Write the cached entries to .npy, Parquet or safetensors, also beside a running server
    Export(export::Arguments),
    /// Read entries from an export, or vectors made elsewhere, into the cache
    Import(import::Arguments),
    /// Give back the disk space that removed entries have left
    Compact(compact::Arguments),
    /// Look at machine, settings, folder, model and tier, and say what should be changed; changes nothing
    Doctor(doctor::Arguments),
    /// Make a key that a server lets in
    Keys(keys::Arguments),
    /// Print every setting with its value, where it comes from and what it is for
    Config(config::Arguments),
    /// Print what a shell needs to complete this command line
    Completions(completions::Arguments),
    /// Print the manual page, or write a page for every command
    Man(man::Arguments),
    /// Print the version and what this program was built for
    Version,
}

/// The settings of a command: flags and variables, and the file.
#[derive(Clone, clap::Args)]
struct SettingsArguments {
    /// Configuration file [default: vecmemo.toml if present]
    #[arg(long, env = "VECMEMO_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    typed: Typed,
}

impl SettingsArguments {
    fn layered(&self, matches: &ArgMatches) -> anyhow::Result<Layered> {
        Ok(layer(&self.typed, matches, self.config.as_deref())?)
    }

    /// The model named on the command line itself, for a running server to be asked for.
    fn named_model(&self, matches: &ArgMatches) -> Option<String> {
        match (&self.typed.model, matches.value_source("model")) {
            (Some(TypedModels::One(name)), Some(ValueSource::CommandLine)) => Some(name.clone()),
            _ => None,
        }
    }

    fn settings(&self, matches: &ArgMatches) -> anyhow::Result<Settings> {
        Ok(Settings::new(&self.layered(matches)?.typed)?)
    }
}

/// The command line as it is declared, for tests and tools that read command lines.
#[must_use]
pub fn command_line() -> clap::Command {
    Arguments::command()
}

/// Runs the program.
#[must_use]
pub fn run() -> ExitCode {
    let matches = Arguments::command().get_matches();
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let (_, of_command) = matches.subcommand().expect("a command is required");
    let outcome = match arguments.command {
        Command::Serve(arguments) => serve::run(&arguments, of_command),
        Command::Warm(arguments) => warm::run(&arguments, of_command),
        Command::Stats(arguments) => stats::run(&arguments, of_command),
        Command::Models(arguments) => models::run(&arguments, of_command),
        Command::Cluster(arguments) => cluster::run(&arguments, of_command),
        Command::Lookup(arguments) => lookup::run(&arguments, of_command),
        Command::Search(arguments) => search::run(&arguments, of_command),
        Command::Dedupe(arguments) => dedupe::run(&arguments, of_command),
        Command::Calibrate(arguments) => calibrate::run(&arguments, of_command),
        Command::Invalidate(arguments) => invalidate::run(&arguments, of_command),
        Command::Erase(arguments) => erase::run(&arguments, of_command),
        Command::Cache(arguments) => cache::run(&arguments),
        Command::Migrate(arguments) => migrate::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments, of_command),
        Command::Export(arguments) => export::run(&arguments, of_command),
        Command::Import(arguments) => import::run(&arguments, of_command),
        Command::Compact(arguments) => compact::run(&arguments, of_command),
        Command::Doctor(arguments) => doctor::run(&arguments, of_command),
        Command::Keys(arguments) => keys::run(&arguments),
        Command::Config(arguments) => config::run(&arguments, of_command),
        Command::Completions(arguments) => completions::run(&arguments, Arguments::command()),
        Command::Man(arguments) => man::run(&arguments, Arguments::command()),
        Command::Version => version::run(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Whether the reader of our output has gone, as `head` does: no error of ours.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| Some(cause.downcast_ref::<std::io::Error>()?.kind());
    error.chain().any(|cause| kind(cause) == Some(std::io::ErrorKind::BrokenPipe))
}

/// Writes a line of a command's result.
fn print(line: &str) -> anyhow::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout().lock(), "{line}").context("cannot write to standard output")
}

/// Writes a line for the person in front of the terminal, who may be nobody.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Sends log lines to standard error.
fn start_logging(settings: &Settings) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log)
        .with_context(|| format!("the setting log cannot be {:?}", settings.log))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A line that cannot be written (the disk that it goes to is full) is lost: saying so to the same stream would be a panic.
    let lines = lines.log_internal_errors(false);
    match settings.log_format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}

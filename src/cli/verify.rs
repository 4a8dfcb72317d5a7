//! `vecmemo verify`: whether every entry of every model in a folder is as it was written, also beside a running server.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::ArgMatches;
use serde_json::json;

use super::assemble::no_cache;
use super::meter::{self, Meter};
use super::{SettingsArguments, print, say};
use crate::store::{self, Repaired, Report, SideReport, SpaceReport, StoreError, unix_seconds};

/// Exit codes: damage was found; it could not be looked for.
const DAMAGED: u8 = 1;
const FAILED: u8 = 2;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Check so many entries of each file, chosen by chance, instead of all
    #[arg(long, value_name = "ENTRIES", value_parser = clap::value_parser!(u64).range(1..))]
    sample: Option<u64>,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,

    /// Put damaged entries into a quarantine file and erase them; no server may have the folder
    #[arg(long, conflicts_with = "sample")]
    repair: bool,

    #[command(flatten)]
    settings: SettingsArguments,
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    match verify(arguments, matches) {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::from(DAMAGED)),
        Err(error) if super::is_closed_pipe(&error) => Err(error),
        Err(error) => {
            say(&format!("error: {error:#}"));
            Ok(ExitCode::from(FAILED))
        }
    }
}

/// Answers whether everything is sound, after a repair if one was asked for.
fn verify(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<bool> {
    let folder = arguments.settings.settings(matches)?.data_dir;
    let mut report = look(&folder, arguments.sample)?;
    let mut repaired = None;
    if arguments.repair {
        repaired = Some(mend(&folder)?);
        if !report.is_sound() {
            report = look(&folder, None)?;
        }
    }
    if arguments.json {
        let mut value = serde_json::to_value(&report)?;
        value["sound"] = json!(report.is_sound());
        value["repaired"] = json!(repaired);
        print(&serde_json::to_string_pretty(&value)?)?;
    } else {
        show(&report, repaired.as_ref())?;
    }
    Ok(report.is_sound())
}

fn look(folder: &Path, sample: Option<u64>) -> anyhow::Result<Report> {
    let mut meters = Meters::new("checked");
    let report = store::verify(folder, sample, unix_seconds(), |path, done, total| meters.show(path, done, total));
    meters.finish();
    let report = report.with_context(|| format!("cannot look at {}", folder.display()))?;
    if report.spaces.is_empty() && report.side == SideReport::Absent {
        return Err(no_cache(folder));
    }
    Ok(report)
}

fn mend(folder: &Path) -> anyhow::Result<Repaired> {
    let mut meters = Meters::new("checked");
    let repaired = store::repair(folder, |path, done, total| meters.show(path, done, total));
    meters.finish();
    match repaired {
        Err(error @ StoreError::InUse { .. }) => Err(error).context(
            "nothing was repaired: stop the server that has the folder, repair, and start it again (it serves nothing \
             that is damaged meanwhile)",
        ),
        repaired => repaired.with_context(|| format!("cannot repair {}", folder.display())),
    }
}

/// One meter a file.
struct Meters {
    verb: &'static str,
    current: Option<(PathBuf, Meter, u64)>,
}

impl Meters {
    fn new(verb: &'static str) -> Self {
        Self { verb, current: None }
    }

    fn show(&mut self, path: &Path, done: u64, total: u64) {
        if self.current.as_ref().is_none_or(|(current, ..)| current != path) {
            self.finish();
            self.current = Some((path.to_owned(), Meter::new(self.verb, total), 0));
        }
        if let Some((_, meter, before)) = &mut self.current {
            meter.advance(done - *before);
            *before = done;
        }
    }

    fn finish(&self) {
        if let Some((_, meter, _)) = &self.current {
            meter.finish();
        }
    }
}

fn show(report: &Report, repaired: Option<&Repaired>) -> anyhow::Result<()> {
    for space in &report.spaces {
        print(&format!("{}: {}", space.path.display(), if space.is_sound() { "sound" } else { "DAMAGED" }))?;
        for line in lines(space) {
            print(&format!("  {line}"))?;
        }
    }
    print(&match &report.side {
        SideReport::Absent => "side store: none".to_owned(),
        SideReport::Sound => "side store: sound".to_owned(),
        SideReport::NotClosed => "side store: not closed in order; the next open repairs it".to_owned(),
        SideReport::InUse => "side store: in use by a running server, not looked at".to_owned(),
        SideReport::Damaged(reason) => format!("side store: DAMAGED: {reason}"),
    })?;
    if let Some(Repaired { quarantined, put_aside, lengthened }) = repaired {
        print(&format!("repaired: {quarantined} damaged entries are in quarantine and erased"))?;
        for path in lengthened {
            print(&format!("repaired: {} has its length again", path.display()))?;
        }
        for note in put_aside {
            print(&format!("repaired: {note}"))?;
        }
    }
    Ok(())
}

fn lines(space: &SpaceReport) -> Vec<String> {
    let SpaceReport { slots, free, live, checked, intact, damaged, superseded, expired, changed, .. } = space;
    let (bytes, allocated) = (meter::bytes(space.bytes), meter::bytes(space.allocated_bytes));
    let size = format!("{bytes} long, {allocated} on disk");
    if let Some(reason) = &space.unreadable {
        return vec![reason.clone(), size];
    }
    let mut lines = vec![
        format!("model {}, {} dims, {size}", space.model, space.dims),
        format!("{slots} slots: {free} free, {live} live ({superseded} superseded)"),
        format!(
            "{checked} of the live checked: {intact} intact ({expired} of them expired), {damaged} entries damaged"
        ),
    ];
    if *changed > 0 {
        lines.push(format!("{changed} were changed by a running server while they were looked at"));
    }
    lines.extend(space.faults.iter().cloned());
    lines
}

//! The guides in `docs/`: what they name is there, what they quote is said, and what they cite was measured.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::server::{Server, vecmemo};

const GUIDES: [&str; 4] = ["integration.md", "tuning.md", "operations.md", "troubleshooting.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn guide(name: &str) -> String {
    std::fs::read_to_string(root().join("docs").join(name)).unwrap()
}

fn all() -> String {
    GUIDES.map(guide).join("\n")
}

/// What stands between backticks in prose, outside of blocks.
fn quoted(text: &str) -> Vec<String> {
    let prose: Vec<&str> = text.split("```").step_by(2).collect();
    prose.join("\n").split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect()
}

/// The command lines of `vecmemo` in shell blocks and in prose.
fn command_lines(text: &str) -> Vec<String> {
    let blocks = text.split("```").skip(1).step_by(2).filter(|block| block.starts_with("sh\n"));
    let in_blocks = blocks.flat_map(str::lines).map(ToOwned::to_owned);
    let lines = in_blocks.chain(quoted(text)).filter(|line| line.starts_with("vecmemo "));
    // Without an argument it is what a command is called by, which every other mention checks as well.
    lines.map(|line| line.split(" | ").next().unwrap_or_default().to_owned()).collect()
}

/// The words of a line, as a shell makes them.
fn words(line: &str) -> Vec<String> {
    let output = Command::new("bash").args(["-c", &format!("printf '%s\\0' {line}")]).output().unwrap();
    assert!(output.status.success(), "{line}");
    let words = String::from_utf8(output.stdout).unwrap();
    words.split_terminator('\0').map(ToOwned::to_owned).collect()
}

#[test]
fn every_command_line_in_the_guides_parses() {
    let lines = command_lines(&all());
    assert!(lines.len() > 30, "{lines:#?}");
    for line in lines {
        let parsed = vecmemo::cli::command_line().try_get_matches_from(words(&line));
        // `vecmemo export` alone names the command, not a call of it.
        if line.split(' ').count() > 2 || !matches!(&parsed, Err(error) if is_incomplete(error)) {
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }
    assert!(vecmemo::cli::command_line().try_get_matches_from(["vecmemo", "exprot"]).is_err());
}

fn is_incomplete(error: &clap::Error) -> bool {
    use clap::error::ErrorKind::{
        DisplayHelpOnMissingArgumentOrSubcommand, MissingRequiredArgument, MissingSubcommand,
    };
    matches!(error.kind(), DisplayHelpOnMissingArgumentOrSubcommand | MissingRequiredArgument | MissingSubcommand)
}

/// The names of all settings, those of tables without the table.
fn settings() -> BTreeSet<String> {
    let folder = tempfile::tempdir().unwrap();
    let printed = vecmemo(folder.path()).arg("config").output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    let names = printed.lines().filter_map(|line| Some(line.trim_start_matches("# ").split_once(" =")?.0.to_owned()));
    // Those of policies and of models, which stand in the file alone.
    names.chain(["reuse", "min_similarity", "max_violation", "ttl", "name"].map(String::from)).collect()
}

fn is_name(text: &str) -> bool {
    text.contains('_') && text.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
}

#[test]
fn every_setting_and_metric_in_the_guides_is_there() {
    let folder = tempfile::tempdir().unwrap();
    // With a tier that is away: its metrics are there all the same.
    let server = Server::with(
        vecmemo(folder.path()),
        &["--data-dir", "data", "--capacity-entries", "4096", "--remote-url", "redis://127.0.0.1:1"],
    );
    let (metrics, settings) = (server.get("/metrics"), settings());
    let others = [
        "check_embedding_ctx_length",
        "prompt_name",
        "huggingface_hub",
        "api_key",
        "extra_body",
        "embed_batch_size",
        "cached_tokens",
    ];
    let names: BTreeSet<String> = quoted(&all()).into_iter().map(|quoted| before_assignment(&quoted)).collect();
    let (mut seen_metrics, mut seen_settings) = (0, 0);
    for name in names.iter().filter(|name| is_name(name)) {
        if name.starts_with("vecmemo_") {
            let is_there = metrics
                .lines()
                .any(|line| line.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with([' ', '{', '_'])));
            assert!(is_there, "there is no metric {name}");
            seen_metrics += 1;
        } else if !others.contains(&name.as_str()) {
            assert!(settings.contains(name), "there is no setting {name}");
            seen_settings += 1;
        }
    }
    assert!(seen_metrics > 15 && seen_settings > 20, "{seen_metrics} metrics, {seen_settings} settings");
}

/// `path = "exact"` speaks of `path`.
fn before_assignment(quoted: &str) -> String {
    quoted.split([' ', '=']).next().unwrap_or_default().to_owned()
}

#[test]
fn every_table_of_tuning_names_settings() {
    let settings = settings();
    let guide = guide("tuning.md");
    let rows = guide.lines().filter(|line| line.starts_with("| `"));
    let first: Vec<&str> = rows.map(|row| row.trim_start_matches("| ").split(" | ").next().unwrap()).collect();
    assert!(first.len() > 25, "{first:?}");
    for cell in first {
        for name in quoted(cell).iter().filter(|name| **name != "[search]" && **name != "[remote]") {
            assert!(settings.contains(&before_assignment(name)), "there is no setting {name}");
        }
    }
}

/// A text in one line, without the table's bars and what differs in white space.
fn flat(text: &str) -> String {
    text.replace(['|', '\\', '*', '`'], " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_figure_in_tuning_stands_where_it_was_measured() {
    let sources = flat(&(std::fs::read_to_string(root().join("README.md")).unwrap() + &guide("fleet.md")));
    let guide = guide("tuning.md");
    let mut figures = 0;
    for row in guide.lines().filter(|line| line.starts_with("| `")) {
        for figure in row.split('"').skip(1).step_by(2).filter(|figure| figure.contains(' ')) {
            assert!(sources.contains(&flat(figure)), "{figure:?} stands nowhere");
            figures += 1;
        }
    }
    assert!(figures > 12, "{figures}");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn every_message_in_troubleshooting_is_said_by_the_program() {
    let code =
        sources(&root().join("src")).into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "rs"));
    // A literal may go over lines, which the compiler joins.
    let code: String = code.map(|path| std::fs::read_to_string(path).unwrap()).collect::<Vec<_>>().join("\n");
    let joined: String = code.split("\\\n").map(str::trim_start).collect();
    let guide = guide("troubleshooting.md");
    let headings: Vec<&str> = guide.lines().filter(|line| line.starts_with("### ")).collect();
    let messages: Vec<String> = headings.iter().flat_map(|heading| quoted(heading)).collect();
    assert!(messages.len() > 20, "{messages:?}");
    for message in messages {
        for part in message.split('…').map(|part| part.trim_matches([' ', '.', ':'])).filter(|part| part.len() > 2) {
            assert!(joined.contains(part), "nothing says {part:?} of {message:?}");
        }
    }
}

#[test]
fn every_link_between_guides_leads_somewhere() {
    for name in GUIDES {
        for link in guide(name).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let path = root().join("docs").join(file);
            assert!(path.exists(), "{name} links {link}");
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let headings = text.lines().filter(|line| line.starts_with('#'));
            let mut anchors = headings.map(|line| line.trim_start_matches(['#', ' ']).to_lowercase().replace(' ', "-"));
            assert!(place.is_empty() || anchors.any(|anchor| anchor == place), "{name} links {link}");
        }
    }
}

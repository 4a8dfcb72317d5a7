//! Manual pages and completions: what the programs that read them say of them.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::server::vecmemo;

fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8_lossy(&stderr).into_owned());
    assert!(status.success(), "{command:?}: {status}\n{stdout}{stderr}");
    stdout
}

/// Whether a program is on this machine.
fn there_is(program: &str) -> bool {
    Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success()
}

#[test]
fn bash_completes_commands_and_settings() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("vecmemo.bash");
    std::fs::write(&script, run(vecmemo(folder.path()).args(["completions", "bash"]))).unwrap();
    run(Command::new("bash").arg("-n").arg(&script));
    let completed = |words: &[&str]| {
        let ask = r#"source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vecmemo vecmemo "${!#}" "${@: -2:1}"; echo "${COMPREPLY[*]}""#;
        run(Command::new("bash").args(["-c", ask]).arg(&script).args(words)).trim().to_owned()
    };
    assert_eq!(completed(&["vecmemo", "ser"]), "serve");
    assert_eq!(completed(&["vecmemo", "serve", "--data-d"]), "--data-dir");
    assert_eq!(completed(&["vecmemo", "serve", "--durability", "al"]), "always");
}

#[test]
fn every_shell_reads_its_completions() {
    let folder = tempfile::tempdir().unwrap();
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let script = run(vecmemo(folder.path()).args(["completions", shell]));
        assert!(script.contains("migrate"), "{shell}: {script}");
        if there_is(shell) {
            let file = folder.path().join(shell);
            std::fs::write(&file, script).unwrap();
            run(Command::new(shell).arg(check).arg(&file));
        }
    }
    for shell in ["elvish", "powershell"] {
        assert!(run(vecmemo(folder.path()).args(["completions", shell])).contains("migrate"));
    }
}

/// The names of all pages, by what the program itself says its commands are.
fn pages(folder: &Path, commands: &[&str]) -> Vec<String> {
    let help = run(vecmemo(folder).args(commands).arg("--help"));
    let mut names = vec![["vecmemo"].iter().chain(commands).copied().collect::<Vec<_>>().join("-")];
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    for name in listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()) {
        if !["", "help"].contains(&name) {
            names.extend(pages(folder, &[commands, &[name]].concat()));
        }
    }
    names
}

#[test]
fn every_command_has_a_page_that_man_shows() {
    let folder = tempfile::tempdir().unwrap();
    run(vecmemo(folder.path()).args(["man", "pages"]));
    let mut written: Vec<String> = std::fs::read_dir(folder.path().join("pages"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().trim_end_matches(".1").to_owned())
        .collect();
    let mut expected = pages(folder.path(), &[]);
    written.sort();
    expected.sort();
    assert_eq!(written, expected);
    assert!(expected.contains(&"vecmemo-models-fetch".to_owned()) && expected.len() > 25, "{expected:?}");
    for name in &written {
        let page = folder.path().join(format!("pages/{name}.1"));
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(text.contains(&format!("{} \\- ", name.replace('-', "\\-"))), "{name} does not say what it is for");
        if there_is("man") {
            let shown =
                Command::new("man").args(["--warnings", "-l"]).arg(&page).env("MANWIDTH", "120").output().unwrap();
            let complaints = String::from_utf8_lossy(&shown.stderr).into_owned();
            assert!(shown.status.success() && complaints.is_empty(), "{name}: {complaints}");
        }
        if there_is("mandoc") {
            run(Command::new("mandoc").args(["-T", "lint", "-W", "error"]).arg(&page));
        }
    }
    let main = run(vecmemo(folder.path()).arg("man"));
    assert_eq!(main.trim_end(), std::fs::read_to_string(folder.path().join("pages/vecmemo.1")).unwrap().trim_end());
}

//! The arrows between modules point one way: a source file that names a module it may not know fails here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module and those it may name. `src/ARCHITECTURE.md` draws the same.
const ARROWS: [(&str, &[&str]); 13] = [
    ("domain", &[]),
    ("urgency", &[]),
    ("access", &["domain"]),
    ("store", &["domain", "urgency"]),
    ("index", &["domain", "urgency"]),
    ("remote", &["domain"]),
    ("reuse", &["domain", "index"]),
    ("engine", &["domain", "urgency"]),
    ("batch", &["domain", "urgency", "engine"]),
    ("cache", &["domain", "urgency", "store", "index", "remote", "reuse", "batch"]),
    ("http", &["domain", "access", "store", "batch", "cache"]),
    ("config", &["domain", "access", "store", "remote", "engine", "batch", "cache", "http"]),
    ("cli", &["domain", "access", "store", "index", "remote", "reuse", "engine", "batch", "cache", "http", "config"]),
];

/// What the crate's root itself is made of.
const ROOT: [&str; 2] = ["lib", "main"];

/// The source files of a path: of all in a folder, or the one.
fn sources(path: PathBuf) -> Vec<PathBuf> {
    if path.is_dir() {
        fs::read_dir(path).unwrap().flat_map(|entry| sources(entry.unwrap().path())).collect()
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        vec![path]
    } else {
        Vec::new()
    }
}

/// A module's source files: a folder's, or its only one.
fn sources_of(root: &Path, module: &str) -> Vec<PathBuf> {
    let folder = root.join(module);
    sources(if folder.is_dir() { folder } else { folder.with_extension("rs") })
}

/// The top-level modules a source names: after `crate::`, alone or in braces. Comments do not count.
fn named(source: &str) -> BTreeSet<String> {
    let code: String =
        source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let list = match rest.strip_prefix('{') {
            Some(braced) => top_level_items(braced),
            None => vec![rest],
        };
        for item in list {
            let name: String = item.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            found.insert(name);
        }
    }
    found
}

/// The comma-separated items up to the closing brace, nested braces apart.
fn top_level_items(braced: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (at, c) in braced.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&braced[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&braced[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items
}

#[test]
fn modules_name_only_those_their_arrows_allow() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let modules: BTreeSet<&str> = ARROWS.iter().map(|(module, _)| *module).collect();
    for entry in fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let is_module = !sources(path).is_empty() && !ROOT.contains(&name.as_str());
        assert!(
            !is_module || modules.contains(name.as_str()),
            "src/{name} has no arrows: say in this test what it may name"
        );
    }
    let mut wrong = Vec::new();
    for (module, allowed) in ARROWS {
        let files = sources_of(&root, module);
        assert!(!files.is_empty(), "there is no module {module}");
        for file in files {
            for name in named(&fs::read_to_string(&file).unwrap()) {
                if modules.contains(name.as_str()) && name != module && !allowed.contains(&name.as_str()) {
                    wrong.push(format!("{} names {name}", file.strip_prefix(&root).unwrap().display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that point the wrong way: {wrong:#?}");
}

#[test]
fn names_are_found_alone_and_in_braces() {
    let source = "use crate::{store::{a, cache}, domain};\n// crate::http\nfn f() { crate::batch::g(mycrate::cli::x) }";
    let expected: BTreeSet<String> = ["store", "domain", "batch"].map(String::from).into();
    assert_eq!(named(source), expected);
}

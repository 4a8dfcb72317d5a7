//! The Debian package: what it is made of is here, and its settings are settings.

use std::path::Path;

use crate::support::server::vecmemo;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_settings_of_the_package_are_ours_with_and_without_their_comment_signs() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = std::fs::read_to_string(root().join("deploy/debian/vecmemo.toml")).unwrap();
    // What is commented out and is no sentence is a setting or a table.
    let set: String = shipped
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .collect::<Vec<_>>()
        .join("\n");
    assert!(set.contains("\ncapacity_entries = ") && set.contains("\n[policies.default]"), "{set}");
    for (name, content) in [("shipped.toml", shipped), ("set.toml", set)] {
        let file = folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        let read = vecmemo(folder.path()).arg("config").arg("--config").arg(&file).output().unwrap();
        assert!(read.status.success(), "{name}: {}", String::from_utf8_lossy(&read.stderr));
    }
}

#[test]
fn every_file_of_the_package_is_here_or_made_by_its_script() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = toml::from_str(&manifest).unwrap();
    let deb = &manifest["package"]["metadata"]["deb"];
    let assets = deb["assets"].as_array().unwrap();
    let (made, kept): (Vec<&str>, Vec<&str>) =
        assets.iter().map(|asset| asset[0].as_str().unwrap()).partition(|source| source.starts_with("target/"));
    assert!(made.len() == 5 && kept.len() > 4, "{assets:?}");
    for source in kept {
        assert!(root().join(source).is_file(), "{source}");
    }
    let script = std::fs::read_to_string(root().join("scripts/package-debian")).unwrap();
    assert!(script.contains("parts=target/package-debian") && script.contains("for shell in bash zsh fish"));
    let changelog = std::fs::read_to_string(root().join(deb["changelog"].as_str().unwrap())).unwrap();
    assert!(changelog.starts_with(&format!("vecmemo ({}-", env!("CARGO_PKG_VERSION"))), "another version: {changelog}");
    let installed: Vec<&str> = assets.iter().map(|asset| asset[1].as_str().unwrap()).collect();
    for conf in deb["conf-files"].as_array().unwrap() {
        let (folder, _) = conf.as_str().unwrap().trim_start_matches('/').rsplit_once('/').unwrap();
        assert!(installed.iter().any(|place| place.trim_end_matches('/') == folder), "{conf}");
    }
}

/// What the package's drop-in changes is there to be changed, and it names the program where the package puts it.
#[test]
fn the_drop_in_changes_the_unit() {
    let unit = std::fs::read_to_string(root().join("deploy/systemd/vecmemo.service")).unwrap();
    let drop_in = std::fs::read_to_string(root().join("deploy/debian/10-package.conf")).unwrap();
    for name in ["ExecStart", "ExecStartPre", "DynamicUser"] {
        assert!(unit.lines().any(|line| line.starts_with(&format!("{name}="))), "{name}");
    }
    for (set, value) in [("ExecStart", "serve"), ("ExecStartPre", "models fetch")] {
        assert!(unit.contains(&format!("{set}=/usr/local/bin/vecmemo {value}\n")));
        assert!(drop_in.contains(&format!("{set}=\n{set}=/usr/bin/vecmemo {value}\n")));
    }
}

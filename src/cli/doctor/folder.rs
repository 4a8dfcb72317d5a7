//! The data folder: whether the service may write there, who has it, and what its files say they are.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::Access;

use super::disk;
use super::finding::{Finding, fail, ok};
use super::holder::Holder;
use crate::config::Settings;
use crate::store::{ReadOnly, StoreError};

const CHECK: &str = "data folder";

pub(super) fn check(settings: &Settings, holder: Option<&Holder>) -> Vec<Finding> {
    let folder = &settings.data_dir;
    if !folder.exists() {
        return vec![to_be_made(folder)];
    }
    let shown = folder.display();
    if !folder.is_dir() {
        return vec![fail(CHECK, format!("{shown} is not a folder"), "name a folder with --data-dir")];
    }
    if let Err(error) = rustix::fs::access(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        return vec![fail(CHECK, format!("{shown} cannot be written: {error}"), own(folder))];
    }
    let mut findings = vec![match holder {
        Some(holder) => ok(CHECK, format!("{shown} is in use by {holder}")),
        None => ok(CHECK, format!("{shown} is in use by nobody")),
    }];
    findings.extend(foreign(folder));
    match ReadOnly::spaces(folder) {
        Ok(spaces) => findings.extend(spaces.iter().map(|space| health(space))),
        Err(error) => findings.push(fail(CHECK, error.to_string(), own(folder))),
    }
    findings
}

fn own(folder: &Path) -> String {
    let user = rustix::process::geteuid().as_raw();
    format!("chown -R {user} {}, or name another --data-dir", folder.display())
}

fn to_be_made(folder: &Path) -> Finding {
    let above = disk::existing(folder);
    match rustix::fs::access(&above, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) if above.is_dir() => ok(CHECK, format!("{} will be made", folder.display())),
        Ok(()) => fail(
            CHECK,
            format!("{} cannot be made: {} is not a folder", folder.display(), above.display()),
            "name another --data-dir",
        ),
        Err(error) => {
            fail(CHECK, format!("{} cannot be made in {}: {error}", folder.display(), above.display()), own(&above))
        }
    }
}

/// Files of another owner than the folder's, as a command run as root leaves them behind.
fn foreign(folder: &Path) -> Option<Finding> {
    let owner = std::fs::metadata(folder).ok()?.uid();
    let files = std::fs::read_dir(folder).ok()?.flatten();
    let foreign =
        files.filter_map(|file| Some((file.file_name(), file.metadata().ok()?.uid()))).find(|(_, of)| *of != owner);
    foreign.map(|(name, of)| {
        let found = format!("{} belongs to user {of}, its folder to user {owner}", name.to_string_lossy());
        fail(CHECK, found, format!("chown -R {owner} {}", folder.display()))
    })
}

/// What a space's header says of it. The entries are for `vecmemo verify`.
fn health(path: &Path) -> Finding {
    let looked = ReadOnly::open(path).and_then(|space| Ok((space.faults()?, space)));
    let repair = "stop the server, then vecmemo verify --repair";
    match looked {
        Ok((faults, space)) if faults.is_empty() => {
            let (model, dims, capacity) = (space.model(), space.dims(), space.capacity());
            ok("space", format!("{}: model {model}, {capacity} slots of {dims} values", path.display()))
        }
        Ok((faults, _)) => fail("space", format!("{}: {}", path.display(), faults.join("; ")), repair),
        Err(error @ StoreError::NewerFormat { .. }) => {
            fail("space", error.to_string(), "use the newer vecmemo that wrote it")
        }
        Err(error @ StoreError::NotASpace { .. }) => fail("space", error.to_string(), repair),
        Err(error) => fail("space", error.to_string(), "make the file readable"),
    }
}

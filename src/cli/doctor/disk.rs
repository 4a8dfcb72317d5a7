//! The disk below the data folder: what kind it is, whether it has room, and how long a sync takes.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::finding::{Finding, fail, ok, warn};
use super::model::{Needs, time};
use crate::cli::meter::bytes;
use crate::config::Settings;
use crate::store::Durability;

/// A disk that takes longer to sync a page makes writers wait.
const SYNC_SLOW: Duration = Duration::from_millis(50);
/// Less than this is full: not even the side store has room.
const FREE_BYTES_MIN: u64 = 64 << 20;

pub(super) fn check(settings: &Settings, needs: &Needs) -> Vec<Finding> {
    let folder = existing(&settings.data_dir);
    let status = match rustix::fs::statvfs(&folder) {
        Ok(status) => status,
        Err(error) => {
            return vec![fail(
                "disk",
                format!("{} cannot be examined: {error}", folder.display()),
                "name another --data-dir",
            )];
        }
    };
    let mut findings = Vec::new();
    #[cfg(target_os = "linux")]
    if let Ok(status) = rustix::fs::statfs(&folder) {
        findings.push(kind(status.f_type as u32));
    }
    if status.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        let advice = "mount it for writing, or name another --data-dir";
        findings.push(fail("disk", format!("{} is on a read-only file system", folder.display()), advice));
        return findings;
    }
    let occupied = occupied_bytes(&settings.data_dir);
    findings.push(room(status.f_bavail * status.f_frsize, occupied, needs.disk_bytes));
    let durability = settings.models.first().map(|model| model.store.durability);
    findings.push(sync(probe(&folder), durability == Some(Durability::Always)));
    findings
}

/// What the files right in a folder take of the disk.
fn occupied_bytes(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum()
}

/// The folder, or the nearest one above it that is there.
pub(super) fn existing(folder: &Path) -> PathBuf {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/")).to_owned()
}

/// What a file system's number says of it: `linux/magic.h`, and those of file systems that are not in it.
fn kind(number: u32) -> Finding {
    let of = |name: &str| format!("{name} file system");
    let shared = "use a disk of this machine: locks, and maps beside writes, cannot be relied on over a network";
    match number {
        0x0000_6969 => fail("disk", of("NFS"), shared),
        0xff53_4d42 | 0xfe53_4d42 | 0x0000_517b => fail("disk", of("SMB"), shared),
        0x00c3_6400 => fail("disk", of("Ceph"), shared),
        0x0102_1997 => fail("disk", of("9P"), shared),
        0x0102_1994 | 0x8584_58f6 => warn(
            "disk",
            "a file system in memory: entries are gone after a restart of the machine",
            "name a --data-dir on a disk",
        ),
        0x794c_7630 => {
            warn("disk", "a container's own layer: entries are gone with the container", "mount a volume at --data-dir")
        }
        0x6573_5546 => warn(
            "disk",
            of("FUSE"),
            "use a disk of this machine, unless this one is known to keep maps and writes together",
        ),
        0x0000_ef53 => ok("disk", of("ext4")),
        0x5846_5342 => ok("disk", of("XFS")),
        0x9123_683e => ok("disk", of("Btrfs")),
        0x2fc1_2fc1 => ok("disk", of("ZFS")),
        0xf2f5_2010 => ok("disk", of("F2FS")),
        other => ok("disk", format!("file system {other:#010x}")),
    }
}

/// Whether the store can grow to its bound. `occupied` is what it has already.
fn room(free: u64, occupied: u64, needed: u64) -> Finding {
    let missing = needed.saturating_sub(occupied);
    let found =
        format!("{} free; the store has {} and takes {} when it is full", bytes(free), bytes(occupied), bytes(needed));
    if free < FREE_BYTES_MIN {
        return fail("room", found, "make room: nothing more is stored on a full disk");
    }
    if free < missing {
        return warn("room", found, format!("make room, or set disk_bytes_max to at most {}", free + occupied));
    }
    ok("room", found)
}

/// The median time of a page's write and sync, to a file that has no name.
fn probe(folder: &Path) -> io::Result<Duration> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    measure(rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)?)
}

fn measure(file: OwnedFd) -> io::Result<Duration> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::from(file);
    let mut took = [Duration::ZERO; 3];
    for (at, took) in took.iter_mut().enumerate() {
        let begun = Instant::now();
        file.write_all_at(&[0x76; 4096], at as u64 * 4096)?;
        file.sync_data()?;
        *took = begun.elapsed();
    }
    took.sort_unstable();
    Ok(took[1])
}

fn sync(took: io::Result<Duration>, is_waited_for: bool) -> Finding {
    match took {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let advice = "look with another tool: this file system knows no files without a name, and others would be left behind";
            warn("sync", "was not measured", advice)
        }
        Err(error) => fail(
            "sync",
            format!("a page could not be written: {error}"),
            "make the folder writable, or name another --data-dir",
        ),
        Ok(took) if took > SYNC_SLOW => {
            let who = if is_waited_for {
                "every answer waits for one (durability is always)"
            } else {
                "closing and interval syncs take that long"
            };
            warn(
                "sync",
                format!("a page and its sync take {}: {who}", time(took)),
                "use a faster disk, or durability interval or process",
            )
        }
        Ok(took) => ok("sync", format!("a page and its sync take {}", time(took))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn shared_disks_fail_and_fleeting_ones_warn() {
        for (number, level) in [
            (0x6969, Level::Fail),
            (0xff53_4d42, Level::Fail),
            (0x0102_1994, Level::Warn),
            (0x794c_7630, Level::Warn),
            (0xef53, Level::Ok),
            (7, Level::Ok),
        ] {
            assert_eq!(kind(number).level, level, "{number:x}");
        }
    }

    #[test]
    fn room_is_what_the_store_may_still_take() {
        const GB: u64 = 1 << 30;
        assert_eq!(room(5 * GB, 0, 4 * GB).level, Level::Ok);
        assert_eq!(room(GB, 0, 4 * GB).level, Level::Warn);
        assert_eq!(room(GB, 3 * GB, 4 * GB).level, Level::Ok);
        assert_eq!(room(1 << 20, 4 * GB, 4 * GB).level, Level::Fail);
    }

    #[test]
    fn slow_and_failing_syncs_are_told() {
        assert_eq!(sync(Ok(Duration::from_millis(2)), true).level, Level::Ok);
        assert_eq!(sync(Ok(Duration::from_millis(80)), true).level, Level::Warn);
        assert_eq!(sync(Err(io::ErrorKind::StorageFull.into()), false).level, Level::Fail);
        assert_eq!(sync(Err(io::ErrorKind::Unsupported.into()), false).level, Level::Warn);
    }

    #[test]
    fn the_probe_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        // Where this file system knows no files without a name there is nothing to be left.
        let _ = probe(folder.path());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

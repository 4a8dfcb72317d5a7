//! `kill -9` in the middle of writing: every put that had returned is there afterwards, whole.
//!
//! The test starts itself again as a child that puts entries and says after each call which; the parent kills it at
//! some moment, opens the folder, and compares with what the child had said.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::*;

const CHILD: &str = "VECMEMO_TEST_CRASH_FOLDER";
const CAPACITY: u64 = 1_000_000;
const TEST: &str = "store::tests::crash::kill_9_loses_no_entry_whose_put_returned";

#[test]
fn kill_9_loses_no_entry_whose_put_returned() {
    if let Some(folder) = std::env::var_os(CHILD) {
        write_until_killed(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 1..=4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([TEST, "--exact", "--nocapture"])
            .env(CHILD, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut puts = 0;
        for line in lines {
            if let Some(n) = line.strip_prefix("put ").and_then(|n| n.parse::<u32>().ok()) {
                acknowledged = n;
                puts += 1;
                if puts == 40 * round {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(puts >= 40 * round, "the child wrote until it was killed");
        let store = open(folder.path(), CAPACITY);
        let found = served(&store, 0..acknowledged, NOW);
        assert_eq!(found.len(), acknowledged as usize, "round {round}");
        assert!(found.iter().all(|(n, value)| is_first_edition(*n, value)));
        let info = store.info();
        assert_eq!((info.quarantined, info.put_aside.len()), (0, 0));
    }
}

/// Puts seven at a time, going on where the entries end.
fn write_until_killed(folder: &Path) -> ! {
    let store = open(folder, CAPACITY);
    let mut next = u32::try_from(store.info().entries).unwrap();
    loop {
        put(&store, next..next + 7).unwrap();
        next += 7;
        println!("put {next}");
        std::io::stdout().flush().unwrap();
    }
}

//! A file that is cut under the running server: what it held is lost, and nothing else.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::media::{embed, is_cached, is_close, start, texts};
use crate::support::PATIENCE;

/// The file is cut in the middle of reading: hits become misses, the process lives, and nothing wrong is answered.
#[test]
fn a_file_cut_under_the_running_server_costs_hits_alone_and_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path());
    let known = texts("known", 0..1000);
    let vectors = embed(&server, &known);
    assert!(is_cached(&server.client(), &known[900..]));
    let space = std::fs::read_dir(folder.path().join("data")).unwrap().flatten().map(|item| item.path());
    let space = space.into_iter().find(|path| path.extension().is_some_and(|name| name == "space")).unwrap();
    let rows_offset = {
        let mut header = [0; 40];
        std::os::unix::fs::FileExt::read_exact_at(&File::open(&space).unwrap(), &mut header, 0).unwrap();
        u64::from_le_bytes(header[32..40].try_into().unwrap())
    };

    let done = AtomicBool::new(false);
    let asked = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|reader| {
                let (client, known, vectors, done) = (server.client(), &known, &vectors, &done);
                scope.spawn(move || {
                    let mut asked = 0;
                    while !done.load(Ordering::Relaxed) || asked < 10 {
                        let from = (asked * 7 + reader * 300) % 950;
                        let inputs = &known[from..from + 50];
                        let (status, found) = client.post("/embed", &json!({ "inputs": inputs })).unwrap();
                        assert_eq!(status, 200, "{found}");
                        for (expected, found) in vectors[from..].iter().zip(found.as_array().unwrap()) {
                            assert!(is_close(expected, found), "a wrong vector");
                        }
                        asked += 1;
                    }
                    asked
                })
            })
            .collect();
        // From behind: within a row, within the rows, the first row, the records, the header, all.
        let ends = [rows_offset + 30_000 + 13, rows_offset + 8192, rows_offset, 20_000, 4096, 0];
        for end in ends {
            File::options().write(true).open(&space).unwrap().set_len(end).unwrap();
            // Readers meet it as it is for a while; nothing waits for this.
            std::thread::sleep(Duration::from_millis(50));
        }
        let started = Instant::now();
        while server.metric("vecmemo_store_lost_pages_total") == 0.0 {
            assert!(started.elapsed() < PATIENCE, "the cut is counted: {}", server.get("/metrics"));
            std::thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum::<usize>()
    });
    let ready = server.get("/ready");
    assert!(ready.contains("\"status\":\"ready\"") && !ready.contains("\"store\":\"ok\""), "{ready}");
    let log = server.log();
    assert!(log.contains("cut"), "{log}");
    let after = texts("after", 0..100);
    let after_vectors = embed(&server, &after);
    assert!(is_cached(&server.client(), &after), "it is written to, and read, as before");
    assert_eq!(embed(&server, &after), after_vectors);
    let faults = server.metric("vecmemo_store_lost_pages_total");
    drop(server);

    let server = start(folder.path());
    assert_eq!(embed(&server, &after), after_vectors);
    assert!(is_cached(&server.client(), &after));
    for (expected, found) in vectors.iter().zip(embed(&server, &known)) {
        assert!(is_close(expected, &found));
    }
    println!("cut six times under the server: {asked} requests answered, {faults} faults survived, 0 wrong");
}

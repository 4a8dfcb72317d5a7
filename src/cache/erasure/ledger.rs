//! The folder of erasures: what is to be done, what was done, and by what it can be checked.
//!
//! ```text
//! erasures/
//!   salt            32 random bytes, made at the first erasure
//!   ID.intent       an erasure that is being carried out, with its keys: overwritten and removed when it is done
//!   receipts.jsonl  one receipt a line, only ever added to
//!   ID.keys         8 bytes a key, in order: the first of BLAKE3-keyed(salt, key), little-endian
//!   exports.jsonl   one line an export that was made of this folder
//! ```
//!
//! Receipts and keys grow by about 2 KB an erasure and 8 bytes an erased key, and are kept for as long as the folder is: a proof
//! that is dropped to save room is none. Erasures are asked for by people, so a million of them, the work of centuries, is 2 GB.
//!
//! Eight bytes of a keyed hash name no key. They are enough to see that one is there: among a million entries and a million
//! erased keys one is taken for another with a chance of one in eighteen million.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::receipt::{KnownExport, Receipt};
use crate::domain::Key;
use crate::store::shred::{self, shred};

const FOLDER: &str = "erasures";
const SALT: &str = "salt";
const INTENT: &str = "intent";
/// What the name of an intent that is not whole ends with.
const UNFINISHED: &str = "intent-new";
const KEYS: &str = "keys";
const RECEIPTS: &str = "receipts.jsonl";
const EXPORTS: &str = "exports.jsonl";
/// The longest file of lines that is read.
const LINES_BYTES_MAX: u64 = 1 << 30;

/// A data folder's erasures. Reading needs no permission of who writes.
#[derive(Clone, Debug)]
pub struct Ledger {
    folder: PathBuf,
}

/// A line of `exports.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportLine {
    /// Where it was written.
    pub path: String,
    /// The model, by fingerprint.
    pub fingerprint: String,
    /// When, in Unix seconds.
    pub made: u32,
    /// How many entries it has.
    pub entries: u64,
}

/// What stands for keys, so that they can be known again.
pub struct Veiled {
    salt: [u8; 32],
    keys: HashSet<u64>,
}

impl Veiled {
    /// Whether a key is among them.
    #[must_use]
    pub fn has(&self, key: &Key) -> bool {
        !self.keys.is_empty() && self.keys.contains(&short(&self.salt, key))
    }
}

fn short(salt: &[u8; 32], key: &Key) -> u64 {
    let hash = blake3::keyed_hash(salt, key.as_bytes());
    u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
}

impl Ledger {
    /// That of a data folder. Nothing is made.
    #[must_use]
    pub fn of(data_folder: &Path) -> Self {
        Self { folder: data_folder.join(FOLDER) }
    }

    /// Every receipt, the oldest first. A line that a crash has cut is passed over.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn receipts(&self) -> io::Result<Vec<Receipt>> {
        self.lines(RECEIPTS)
    }

    /// The latest receipt of an erasure.
    ///
    /// # Errors
    /// As for [`Self::receipts`].
    pub fn receipt(&self, id: &str) -> io::Result<Option<Receipt>> {
        Ok(self.receipts()?.into_iter().rfind(|receipt| receipt.id == id))
    }

    /// What stands for an erasure's keys, if it is what the receipt says it is.
    ///
    /// # Errors
    /// When it cannot be read, or is another.
    pub fn keys_of(&self, receipt: &Receipt) -> io::Result<Veiled> {
        let bytes = fs::read(self.path_of(&receipt.id, KEYS)?)?;
        if blake3::hash(&bytes).to_hex().as_str() != receipt.keys.digest {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file of its keys is another one"));
        }
        let keys = bytes.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        Ok(Veiled { salt: self.salt()?, keys })
    }

    /// What stands for all keys that were erased at or after a Unix second.
    ///
    /// # Errors
    /// When something is there and cannot be read.
    pub fn erased_since(&self, time: u32) -> io::Result<Veiled> {
        let mut all = Veiled { salt: [0; 32], keys: HashSet::new() };
        for receipt in self.receipts()?.into_iter().filter(|receipt| receipt.completed >= time) {
            let Veiled { salt, keys } = self.keys_of(&receipt)?;
            all.salt = salt;
            all.keys.extend(keys);
        }
        Ok(all)
    }

    /// Notes that an export was made.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn note_export(&self, line: &ExportLine) -> io::Result<()> {
        self.make()?;
        self.append(EXPORTS, line)
    }

    /// The exports of models, each place once.
    pub(super) fn exports(&self, fingerprints: &[String], stored: &[(String, u32)]) -> io::Result<Vec<KnownExport>> {
        let mut known: Vec<KnownExport> = Vec::new();
        for line in self.lines::<ExportLine>(EXPORTS)? {
            if !fingerprints.contains(&line.fingerprint) {
                continue;
            }
            let holds = |(of, created): &&(String, u32)| *of == line.fingerprint && *created <= line.made;
            let holds = stored.iter().filter(holds).count();
            let ExportLine { path, made, entries, .. } = line;
            let there = Path::new(&path).exists();
            known.retain(|other| other.path != path);
            known.push(KnownExport { path, made, entries, holds, there });
        }
        Ok(known)
    }

    /// Writes down what is to be done; on the medium when this returns.
    pub(super) fn begin(&self, id: &str, intent: &impl Serialize) -> io::Result<()> {
        self.make()?;
        let json = serde_json::to_vec(intent).expect("an intent is strings and numbers");
        let path = self.path_of(id, INTENT)?;
        let new = path.with_extension(UNFINISHED);
        write(&new, &json)?;
        // It has the same keys; only what is left to be done is less. A crash between the two is one before it was begun again.
        shred(&path)?;
        fs::rename(&new, &path)?;
        self.sync()
    }

    /// What was begun and is not done, in the order of names. What is not whole was not begun.
    pub(super) fn begun<T: DeserializeOwned>(&self) -> io::Result<Vec<T>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
        let is_ours = |path: &PathBuf| path.extension().is_some_and(|end| end == INTENT || end == UNFINISHED);
        paths.retain(is_ours);
        paths.sort();
        let ends = |path: &Path, end: &str| path.extension().is_some_and(|extension| extension == end);
        // One that was being overwritten: it was done, or another is there in its place. JSON has no zeros.
        for path in paths.iter().filter(|path| ends(path, INTENT)) {
            if fs::read(path)?.contains(&0) {
                shred(path)?;
            }
        }
        // One that was written and has not taken the place of the former one, which is gone, is as good.
        for path in paths.iter().filter(|path| ends(path, UNFINISHED)) {
            let is_whole = serde_json::from_slice::<T>(&fs::read(path)?).is_ok();
            let whole = path.with_extension(INTENT);
            if is_whole && !whole.exists() { fs::rename(path, whole)? } else { shred(path)? }
        }
        let mut begun = Vec::new();
        paths.dedup_by_key(|path| path.with_extension(INTENT));
        for path in paths.iter().map(|path| path.with_extension(INTENT)).filter(|path| path.exists()) {
            begun.push(serde_json::from_slice(&fs::read(path)?)?);
        }
        Ok(begun)
    }

    /// Nothing of it is to be done any more, and the keys are gone.
    pub(super) fn done(&self, id: &str) -> io::Result<()> {
        shred(&self.path_of(id, INTENT)?)
    }

    /// Keeps what stands for keys; answers with its digest.
    pub(super) fn keep_keys<'a>(&self, id: &str, keys: impl Iterator<Item = &'a Key>) -> io::Result<String> {
        let salt = self.salt()?;
        let mut veiled: Vec<u64> = keys.map(|key| short(&salt, key)).collect();
        veiled.sort_unstable();
        veiled.dedup();
        let bytes: Vec<u8> = veiled.iter().flat_map(|key| key.to_le_bytes()).collect();
        write(&self.path_of(id, KEYS)?, &bytes)?;
        self.sync()?;
        Ok(blake3::hash(&bytes).to_hex().to_string())
    }

    /// Adds a receipt, sealed after the last; on the medium when this returns.
    pub(super) fn add(&self, receipt: Receipt) -> io::Result<Receipt> {
        let last = self.receipts()?.pop();
        let receipt = receipt.sealed(last.map(|last| last.digest));
        self.append(RECEIPTS, &receipt)?;
        Ok(receipt)
    }

    fn make(&self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        shred::sync_folder_of(&self.folder)
    }

    fn salt(&self) -> io::Result<[u8; 32]> {
        let path = self.folder.join(SALT);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (one, other) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
                let salt = *blake3::hash(&[*one.as_bytes(), *other.as_bytes()].concat()).as_bytes();
                let new = self.folder.join("salt.new");
                write(&new, &salt)?;
                fs::rename(&new, &path)?;
                self.sync()?;
                Ok(salt)
            }
            bytes => bytes?.try_into().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the salt is cut short")),
        }
    }

    /// An id is a name of ours, or came from another machine: it must not lead elsewhere.
    fn path_of(&self, id: &str, end: &str) -> io::Result<PathBuf> {
        if !is_id(id) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no erasure has such a name"));
        }
        Ok(self.folder.join(format!("{id}.{end}")))
    }

    fn lines<T: DeserializeOwned>(&self, name: &str) -> io::Result<Vec<T>> {
        let file = match File::open(self.folder.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file?,
        };
        let mut text = String::new();
        file.take(LINES_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    fn append(&self, name: &str, line: &impl Serialize) -> io::Result<()> {
        let path = self.folder.join(name);
        let mut file = File::options().read(true).append(true).create(true).open(&path)?;
        let mut text = serde_json::to_string(line).expect("lines are strings and numbers");
        text.push('\n');
        // What a crash has cut is ended, so that it spoils nothing that comes after it.
        let mut last = [b'\n'];
        if file.metadata()?.len() > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        if last != [b'\n'] {
            text.insert(0, '\n');
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

/// Whether a text may be the name of an erasure.
#[must_use]
pub fn is_id(id: &str) -> bool {
    (1..=80).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(range: std::ops::Range<u8>) -> Vec<Key> {
        range.map(|byte| Key::from_bytes([byte; 32])).collect()
    }

    #[test]
    fn receipts_are_a_chain_and_a_line_that_a_crash_has_cut_spoils_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::of(folder.path());
        assert_eq!(ledger.receipts().unwrap(), []);
        ledger.make().unwrap();
        let first = ledger.add(Receipt::begun("a")).unwrap();
        File::options().append(true).open(ledger.folder.join(RECEIPTS)).unwrap().write_all(b"{\"format\":").unwrap();
        let second = ledger.add(Receipt::begun("b")).unwrap();
        assert_eq!(ledger.receipts().unwrap(), [first.clone(), second.clone()]);
        assert_eq!((first.previous, second.previous), (None, Some(first.digest)));
        assert_eq!(ledger.receipt("a").unwrap().unwrap().id, "a");
        assert_eq!(ledger.receipt("c").unwrap(), None);
    }

    #[test]
    fn keys_are_known_again_and_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::of(folder.path());
        ledger.make().unwrap();
        let digest = ledger.keep_keys("a", keys(0..9).iter()).unwrap();
        let mut receipt = Receipt { completed: 100, ..Receipt::begun("a") };
        receipt.keys.digest = digest;
        let receipt = ledger.add(receipt).unwrap();
        let veiled = ledger.keys_of(&receipt).unwrap();
        assert!(keys(0..9).iter().all(|key| veiled.has(key)) && !keys(9..200).iter().any(|key| veiled.has(key)));
        let bytes = fs::read(ledger.folder.join("a.keys")).unwrap();
        assert!(bytes.len() == 9 * 8 && !bytes.windows(8).any(|window| window == [3; 8]));
        assert!(ledger.erased_since(100).unwrap().has(&keys(0..1)[0]));
        assert!(!ledger.erased_since(101).unwrap().has(&keys(0..1)[0]));
        fs::write(ledger.folder.join("a.keys"), [0; 8]).unwrap();
        assert!(ledger.keys_of(&receipt).is_err());
        assert!(ledger.keys_of(&Receipt::begun("../a")).is_err());
    }

    #[test]
    fn an_intent_is_there_until_it_is_done_and_exports_are_known_by_model() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::of(folder.path());
        let begun = || ledger.begun::<String>().unwrap();
        assert!(begun().is_empty());
        ledger.begin("a", &"one").unwrap();
        ledger.begin("b", &"another").unwrap();
        ledger.begin("a", &"less").unwrap();
        assert_eq!(begun(), ["less", "another"]);
        ledger.done("b").unwrap();
        // Those whose overwriting a crash has cut: one that was done, and one whose place another was to take.
        fs::write(ledger.folder.join("d.intent"), [0; 6]).unwrap();
        fs::write(ledger.folder.join("a.intent"), *b"\0\0ess\"").unwrap();
        fs::write(ledger.folder.join("a.intent-new"), "\"less\"").unwrap();
        assert_eq!(begun(), ["less"]);
        // One that a crash has left behind, and one that it has not let be begun.
        fs::write(ledger.folder.join("a.intent-new"), "\"less\"").unwrap();
        fs::write(ledger.folder.join("c.intent-new"), "\"les").unwrap();
        assert_eq!((begun(), fs::read_dir(&ledger.folder).unwrap().count()), (vec!["less".to_owned()], 1));
        ledger.done("a").unwrap();
        assert!(begun().is_empty());
        let line = |path: &str, made| ExportLine { path: path.into(), fingerprint: "m".into(), made, entries: 5 };
        for line in [line("/x", 10), line("/y", 20), line("/x", 30)] {
            ledger.note_export(&line).unwrap();
        }
        let stored = [("m".to_owned(), 15), ("m".to_owned(), 25), ("n".to_owned(), 1)];
        let known = ledger.exports(&["m".to_owned()], &stored).unwrap();
        let told: Vec<_> = known.iter().map(|export| (export.path.as_str(), export.made, export.holds)).collect();
        assert_eq!(told, [("/y", 20, 1), ("/x", 30, 2)]);
        assert_eq!(ledger.exports(&["n".to_owned()], &stored).unwrap(), []);
    }
}

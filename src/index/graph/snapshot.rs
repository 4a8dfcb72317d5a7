//! Segments in files, so that a start need not build them.
//!
//! ```text
//! segment-NUMBER.graph
//!   magic  dims  nodes  breadth for few, for many        4 × u32 after 8 bytes, little-endian
//!   scales  f32 a node │ places  u32 │ links  32 × u32 │ codes  i8, dims up to a multiple of 64
//!   checksum of all before                                XXH3, 128 bits
//! ```
//!
//! A file is written under another name, synced, renamed, and the folder synced: a crash leaves it whole or not at all. It is
//! read into memory, and looked at only after its length and its checksum stand; a file of which one does not is removed,
//! and its rows are built into a new one. Whether rows are still what they were is not said here: their codes are compared.

use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use xxhash_rust::xxh3::Xxh3;

use super::super::codes::stride;
use super::super::lines::Lines;
use super::segment::{Breadths, LINKS, NO_LINK, NODES_MAX, Parts, Segment};

const MAGIC: &[u8; 8] = b"vmgraph1";
const HEAD_BYTES: usize = MAGIC.len() + 4 * size_of::<u32>();
const CHECKSUM_BYTES: usize = size_of::<u128>();
/// What a file's name begins and ends with.
const NAME: (&str, &str) = ("segment-", ".graph");
/// What the name of a file that is not whole ends with.
const UNFINISHED: &str = ".new";

/// A folder of segments.
pub(super) struct Snapshots {
    folder: PathBuf,
    dims: usize,
    last: AtomicU32,
}

impl Snapshots {
    pub(super) fn new(folder: PathBuf, dims: usize) -> Self {
        Self { folder, dims, last: AtomicU32::new(0) }
    }

    /// The largest number that any file has, or had.
    pub(super) fn last(&self) -> u32 {
        self.last.load(Ordering::Relaxed)
    }

    /// All segments that are whole, the latest first. What is not is removed.
    pub(super) fn load(&self) -> Vec<(NonZero<u32>, Segment)> {
        let mut segments = Vec::new();
        for path in self.files() {
            let Some(number) = number_of(&path) else {
                self.discard(&path, "was not finished");
                continue;
            };
            self.last.fetch_max(number.get(), Ordering::Relaxed);
            match fs::read(&path).map(|bytes| parsed(&bytes, self.dims)) {
                Ok(Ok(segment)) => segments.push((number, segment)),
                Ok(Err(damage)) => self.discard(&path, damage),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a segment of the graph cannot be read; it is built again");
                }
            }
        }
        segments.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
        segments
    }

    /// The files that are ours: segments, and what was to become one.
    fn files(&self) -> Vec<PathBuf> {
        files(&self.folder).unwrap_or_default()
    }

    /// Those of no segment among these.
    pub(super) fn files_but(&self, numbers: &[NonZero<u32>]) -> Vec<PathBuf> {
        let is_other = |path: &PathBuf| number_of(path).is_none_or(|number| !numbers.contains(&number));
        self.files().into_iter().filter(is_other).collect()
    }

    fn discard(&self, path: &Path, why: &str) {
        tracing::warn!(path = %path.display(), "a segment of the graph {why}; it is removed, and built again");
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "cannot be removed");
        }
    }

    /// Writes a segment. It is on the medium when this returns.
    pub(super) fn save(&self, number: NonZero<u32>, segment: &Segment) -> io::Result<()> {
        self.last.fetch_max(number.get(), Ordering::Relaxed);
        fs::create_dir_all(&self.folder)?;
        let path = self.path(number);
        let unfinished = path.with_extension(format!("graph{UNFINISHED}"));
        let written = self.write(&unfinished, segment).and_then(|()| fs::rename(&unfinished, &path));
        if written.is_err() {
            // It may be what fills the disk.
            let _ = fs::remove_file(&unfinished);
        }
        written?;
        File::open(&self.folder)?.sync_all()
    }

    fn write(&self, path: &Path, segment: &Segment) -> io::Result<()> {
        let Parts { codes, scales, links, places } = segment.parts();
        let Breadths { few, many } = segment.breadths;
        let mut head = MAGIC.to_vec();
        for number in [self.dims as u32, places.len() as u32, few, many] {
            head.extend(number.to_le_bytes());
        }
        let mut file = File::create(path)?;
        let mut checksum = Xxh3::new();
        let mut write = |bytes: &[u8]| {
            checksum.update(bytes);
            file.write_all(bytes)
        };
        write(&head)?;
        for words in [bytemuck::cast_slice(scales), places.as_slice(), links.as_slice()] {
            for words in words.chunks(1 << 16) {
                let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
                write(&bytes)?;
            }
        }
        write(bytemuck::cast_slice(codes.as_slice()))?;
        let checksum = checksum.digest128();
        file.write_all(&checksum.to_le_bytes())?;
        file.sync_all()
    }

    pub(super) fn remove(&self, number: NonZero<u32>) {
        match fs::remove_file(self.path(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(number, %error, "a segment that is of no use any more cannot be removed");
            }
            _ => {}
        }
    }

    fn path(&self, number: NonZero<u32>) -> PathBuf {
        self.folder.join(format!("{}{number}{}", NAME.0, NAME.1))
    }
}

/// The files in a folder that are segments, or were to become one. None if there is no folder.
pub(super) fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let is_unfinished = |path: &Path| path.to_str().is_some_and(|path| path.ends_with(".graph.new"));
    let is_ours = |path: &PathBuf| number_of(path).is_some() || is_unfinished(path);
    Ok(entries.collect::<io::Result<Vec<_>>>()?.into_iter().map(|entry| entry.path()).filter(is_ours).collect())
}

/// The number in a segment's name.
fn number_of(path: &Path) -> Option<NonZero<u32>> {
    path.file_name()?.to_str()?.strip_prefix(NAME.0)?.strip_suffix(NAME.1)?.parse().ok()
}

/// The segment that a file's bytes are, or what is wrong with them.
fn parsed(bytes: &[u8], dims: usize) -> Result<Segment, &'static str> {
    let cut = "is cut short";
    let (whole, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(cut)?;
    let (head, rest) = whole.split_at_checked(HEAD_BYTES).ok_or(cut)?;
    let (magic, head) = head.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err("is of another format");
    }
    let numbers = words(head);
    let [of_dims, nodes, few, many] = numbers[..] else { return Err(cut) };
    let (nodes, stride) = (nodes as usize, stride(dims));
    if of_dims as usize != dims || nodes > NODES_MAX {
        return Err("is of other rows");
    }
    let node_bytes = size_of::<u32>() * (2 + LINKS) + stride;
    if nodes.checked_mul(node_bytes) != Some(rest.len()) {
        return Err("has not the length that it should have");
    }
    if xxhash_rust::xxh3::xxh3_128(whole).to_le_bytes() != *checksum {
        return Err("is damaged");
    }
    let (scales, rest) = rest.split_at(nodes * size_of::<u32>());
    let (places, rest) = rest.split_at(nodes * size_of::<u32>());
    let (links, rest) = rest.split_at(nodes * LINKS * size_of::<u32>());
    let mut codes = Lines::zeroed(nodes * stride);
    codes.as_mut_slice().copy_from_slice(bytemuck::cast_slice(rest));
    let scales = words(scales).into_iter().map(f32::from_bits).collect();
    let parts = Parts { codes, scales, links: words(links), places: words(places) };
    // The checksum says that this is what was written; that it makes sense is said here.
    if parts.links.iter().any(|&link| link as usize >= nodes && link != NO_LINK) || few == 0 || many < few {
        return Err("makes no sense");
    }
    Ok(Segment::new(parts, stride, Breadths { few, many }))
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

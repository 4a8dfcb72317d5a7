//! A folder that NumPy reads without us: the vectors as one array, the facts as JSON lines in the same order.
//!
//! ```text
//! manifest.json    fingerprint, dims, count, SHA-256 of the other two
//! vectors.npy      f16 [count, dims], C order
//! entries.jsonl    line i is about row i
//! ```
//!
//! The header's code is ours, in both directions: forty lines for the three element types that vectors have, where the
//! crates for it bring a parser of Python literals.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use half::f16;
use sha2::{Digest, Sha256};

use super::facts::{Batch, Facts, Manifest, Sink, Source, read_lines, write_line};
use super::partial::{Partial, create};

const VECTORS: &str = "vectors.npy";
const ENTRIES: &str = "entries.jsonl";
const MANIFEST: &str = "manifest.json";

/// The magic, the version and the length field of NumPy's format 1.0.
const PREAMBLE_BYTES: usize = 10;
/// Room for any shape, and a multiple of 64, so that the data is aligned.
const HEADER_BYTES: usize = 128;
/// The longest header read.
const HEADER_BYTES_MAX: u32 = 1 << 16;

/// A header of an array of f16.
fn header(rows: u64, dims: usize) -> [u8; HEADER_BYTES] {
    let text = format!("{{'descr': '<f2', 'fortran_order': False, 'shape': ({rows}, {dims}), }}");
    let mut header = [b' '; HEADER_BYTES];
    header[..8].copy_from_slice(b"\x93NUMPY\x01\x00");
    header[8..PREAMBLE_BYTES].copy_from_slice(&((HEADER_BYTES - PREAMBLE_BYTES) as u16).to_le_bytes());
    header[PREAMBLE_BYTES..PREAMBLE_BYTES + text.len()].copy_from_slice(text.as_bytes());
    header[HEADER_BYTES - 1] = b'\n';
    header
}

/// Writes such a folder.
pub(super) struct NpySink {
    partial: Partial,
    vectors: BufWriter<File>,
    entries: BufWriter<File>,
    count: u64,
}

impl NpySink {
    pub(super) fn new(place: &Path) -> anyhow::Result<Self> {
        let partial = Partial::new(place)?;
        partial.create_folder()?;
        let file = |name| anyhow::Ok(BufWriter::with_capacity(1 << 20, create(&partial.path.join(name))?));
        let (mut vectors, entries) = (file(VECTORS)?, file(ENTRIES)?);
        // How many rows there will be is known at the end.
        vectors.write_all(&header(0, 0)).context("cannot write the vectors")?;
        Ok(Self { partial, vectors, entries, count: 0 })
    }
}

impl Sink for NpySink {
    fn add(&mut self, facts: Facts, row: &[f16]) -> anyhow::Result<()> {
        self.count += 1;
        self.vectors.write_all(bytemuck::cast_slice(row)).context("cannot write the vectors")?;
        write_line(&mut self.entries, &facts)
    }

    fn finish(self: Box<Self>, mut manifest: Manifest) -> anyhow::Result<()> {
        let Self { partial, vectors, entries, count } = *self;
        manifest.count = count;
        let mut vectors = vectors.into_inner().context("cannot write the vectors")?;
        vectors.seek(SeekFrom::Start(0)).context("cannot write the vectors")?;
        vectors.write_all(&header(count, manifest.dims)).context("cannot write the vectors")?;
        let entries = entries.into_inner().context("cannot write the entries")?;
        for (name, mut file) in [(VECTORS, vectors), (ENTRIES, entries)] {
            file.sync_all().with_context(|| format!("cannot sync {name}"))?;
            file.seek(SeekFrom::Start(0)).with_context(|| format!("cannot read {name}"))?;
            manifest.sha256.insert(name.to_owned(), sha256(file).with_context(|| format!("cannot read {name}"))?);
        }
        let mut file = create(&partial.path.join(MANIFEST))?;
        let json = serde_json::to_string_pretty(&manifest).context("the manifest has no JSON form")?;
        file.write_all(json.as_bytes()).and_then(|()| file.sync_all()).context("cannot write the manifest")?;
        partial.publish()
    }
}

fn sha256(mut file: File) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    let mut bytes = vec![0; 1 << 20];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hasher.update(&bytes[..read]),
        }
    }
}

/// Reads such a folder.
pub(super) struct NpySource {
    manifest: Manifest,
    vectors: Array,
    entries: BufReader<File>,
}

/// Whether a path is such a folder.
pub(super) fn is_export(path: &Path) -> bool {
    path.join(MANIFEST).is_file()
}

impl NpySource {
    /// Checks the whole of both files before anything is shown of them.
    pub(super) fn open(folder: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            File::open(&path).with_context(|| format!("cannot open {}", path.display()))
        };
        let mut json = Vec::new();
        read(MANIFEST)?.take(1 << 20).read_to_end(&mut json).context("cannot read the manifest")?;
        let manifest = Manifest::parse(&json)?;
        for name in [VECTORS, ENTRIES] {
            let found = sha256(read(name)?).with_context(|| format!("cannot read {name}"))?;
            let expected = manifest.sha256.get(name).map_or("nothing", String::as_str);
            ensure!(found == expected, "{name} has SHA-256 {found}, the manifest says {expected}");
        }
        let vectors = Array::open(&folder.join(VECTORS))?;
        ensure!(vectors.element == Element::F16, "{VECTORS} has another element type than f16");
        ensure!(
            (vectors.rows, vectors.dims) == (manifest.count, manifest.dims),
            "{VECTORS} has {} rows of {} values, the manifest says {} of {}",
            vectors.rows,
            vectors.dims,
            manifest.count,
            manifest.dims
        );
        Ok(Self { manifest, vectors, entries: BufReader::with_capacity(1 << 20, read(ENTRIES)?) })
    }
}

impl Source for NpySource {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn next(&mut self) -> anyhow::Result<Batch> {
        let (count, dims) = (self.manifest.rows_at_once() as u64, self.manifest.dims);
        let count = count.min(self.vectors.left) as usize;
        let mut rows = vec![f16::ZERO; count * dims];
        self.vectors.read(bytemuck::cast_slice_mut(&mut rows), count)?;
        Ok(Batch { facts: read_lines(&mut self.entries, count)?, rows })
    }
}

/// What an array is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Element {
    F16,
    F32,
    F64,
}

impl Element {
    pub(in crate::cli) fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// A file with one array of vectors, read row after row.
pub(in crate::cli) struct Array {
    path: PathBuf,
    file: BufReader<File>,
    pub(in crate::cli) element: Element,
    pub(in crate::cli) rows: u64,
    pub(in crate::cli) dims: usize,
    /// Rows not read yet.
    left: u64,
}

impl Array {
    /// Reads the header: two dimensions, C order, little-endian f16, f32 or f64, and as long as it says.
    pub(in crate::cli) fn open(path: &Path) -> anyhow::Result<Self> {
        let wrong = || format!("{} is not an array of vectors", path.display());
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let len = file.metadata().with_context(|| format!("cannot examine {}", path.display()))?.len();
        let mut file = BufReader::with_capacity(1 << 20, file);
        let (element, rows, dims) = read_header(&mut file).with_context(wrong)?;
        let start = file.stream_position().with_context(wrong)?;
        let expected =
            rows.checked_mul(dims as u64 * element.bytes() as u64).and_then(|bytes| bytes.checked_add(start));
        if expected != Some(len) {
            bail!("{}: it is {len} bytes long, not as long as {rows} rows of {dims} values are", wrong());
        }
        Ok(Self { path: path.to_owned(), file, element, rows, dims, left: rows })
    }

    /// Reads the next rows, as many as `bytes` has room for.
    fn read(&mut self, bytes: &mut [u8], count: usize) -> anyhow::Result<()> {
        self.left -= count as u64;
        self.file.read_exact(bytes).with_context(|| format!("cannot read {}", self.path.display()))
    }

    /// The next rows in f32, at most `count`; none at the end. What f32 cannot hold becomes infinite.
    pub(in crate::cli) fn next(&mut self, count: usize) -> anyhow::Result<Vec<f32>> {
        let count = self.left.min(count as u64) as usize;
        let mut bytes = vec![0; count * self.dims * self.element.bytes()];
        self.read(&mut bytes, count)?;
        Ok(match self.element {
            Element::F16 => bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
            Element::F32 => bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            Element::F64 => bytes.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32).collect(),
        })
    }
}

fn read_header(file: &mut impl Read) -> anyhow::Result<(Element, u64, usize)> {
    let mut preamble = [0; 8];
    file.read_exact(&mut preamble)?;
    ensure!(preamble.starts_with(b"\x93NUMPY"), "it does not begin as a .npy file");
    let len = match preamble[6] {
        1 => {
            let mut len = [0; 2];
            file.read_exact(&mut len)?;
            u32::from(u16::from_le_bytes(len))
        }
        2 | 3 => {
            let mut len = [0; 4];
            file.read_exact(&mut len)?;
            u32::from_le_bytes(len)
        }
        version => bail!("its format version is {version}, this program reads 1 to 3"),
    };
    ensure!(len <= HEADER_BYTES_MAX, "its header is {len} bytes long, this program reads up to {HEADER_BYTES_MAX}");
    let mut header = vec![0; len as usize];
    file.read_exact(&mut header)?;
    parse_header(std::str::from_utf8(&header)?)
}

/// Reads the dictionary that a header is: strings, booleans and a tuple of numbers, as NumPy writes them.
fn parse_header(header: &str) -> anyhow::Result<(Element, u64, usize)> {
    let value = |name: &str| -> anyhow::Result<&str> {
        let found = header.split_once(&format!("'{name}':")).or_else(|| header.split_once(&format!("\"{name}\":")));
        let (_, after) = found.with_context(|| format!("its header has no {name}"))?;
        let after = after.trim_start();
        let end = if after.starts_with('(') { after.find(')').map(|end| end + 1) } else { after.find([',', '}']) };
        Ok(after[..end.unwrap_or(after.len())].trim())
    };
    let element = match value("descr")?.trim_matches(['\'', '"']) {
        "<f2" => Element::F16,
        "<f4" => Element::F32,
        "<f8" => Element::F64,
        other => bail!("its elements are {other:?}: it must be <f2, <f4 or <f8 (in NumPy: array.astype('<f4'))"),
    };
    ensure!(
        value("fortran_order")? == "False",
        "it is in Fortran order: in NumPy, save numpy.ascontiguousarray(array)"
    );
    let shape = value("shape")?;
    let inside = shape.strip_prefix('(').and_then(|shape| shape.strip_suffix(')'));
    let numbers = inside.with_context(|| format!("its shape is {shape}"))?.split(',').map(str::trim);
    let numbers: Result<Vec<u64>, _> = numbers.filter(|number| !number.is_empty()).map(str::parse).collect();
    match numbers.ok().as_deref() {
        Some(&[rows, dims]) if (1..=1 << 16).contains(&dims) => Ok((element, rows, dims as usize)),
        _ => bail!("its shape is {shape}: it must be rows by dims"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<(Element, u64, usize), String> {
        read_header(&mut &*bytes).map_err(|error| format!("{error:#}"))
    }

    fn with_header(header: &str) -> Vec<u8> {
        [b"\x93NUMPY\x01\x00".as_slice(), &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat()
    }

    #[test]
    fn our_header_reads_back_whatever_the_shape() {
        for (rows, dims) in [(0, 1), (1, 384), (u64::from(u32::MAX), 65_536)] {
            let header = header(rows, dims);
            assert_eq!(parse(&header), Ok((Element::F16, rows, dims)));
            assert!(header.ends_with(b"\n") && header.len().is_multiple_of(64));
        }
    }

    #[test]
    fn headers_as_others_write_them_are_read() {
        let plain = with_header("{\"descr\": \"<f8\", \"fortran_order\": False, \"shape\": (3, 4)}\n");
        assert_eq!(parse(&plain), Ok((Element::F64, 3, 4)));
        let text = "{'shape': (7,2,), 'descr':'<f4','fortran_order':False}";
        let mut second = b"\x93NUMPY\x02\x00".to_vec();
        second.extend((text.len() as u32).to_le_bytes());
        second.extend(text.as_bytes());
        assert_eq!(parse(&second), Ok((Element::F32, 7, 2)));
    }

    #[test]
    fn what_is_not_an_array_of_vectors_is_refused_with_a_reason() {
        let bad = |header: &str| parse(&with_header(header)).unwrap_err();
        assert!(parse(b"PK\x03\x04....").unwrap_err().contains("does not begin"));
        assert!(parse(b"\x93NUMPY\x09\x00").unwrap_err().contains("version is 9"));
        assert!(parse(b"\x93NUMPY\x02\x00\xff\xff\xff\xff").unwrap_err().contains("bytes long"));
        assert!(parse(b"\x93NUMPY\x01\x00\xff\xff{").is_err());
        assert!(bad("{'descr': '>f4', 'fortran_order': False, 'shape': (3, 4), }").contains("astype"));
        assert!(bad("{'descr': '<i8', 'fortran_order': False, 'shape': (3, 4), }").contains("<i8"));
        assert!(bad("{'descr': '<f4', 'fortran_order': True, 'shape': (3, 4), }").contains("Fortran"));
        for shape in ["(3,)", "(3, 4, 5)", "(3, 0)", "(-3, 4)", "(3, 99999999)", "3, 4", "()"] {
            let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
            assert!(bad(&header).contains("shape"), "{shape}");
        }
        assert!(bad("").contains("no descr"));
    }
}

//! One file that every tensor library reads.
//!
//! ```text
//! embeddings   F16 [count, dims]
//! keys         U8  [count, 32]
//! norms        F32 [count]         the vectors' lengths before they were scaled to one
//! entries      U8  [bytes]         the facts as JSON lines, in the same order
//! __metadata__ vecmemo             the manifest, as JSON
//! ```
//!
//! The library's own writer wants everything in memory at once; so the header is made by its [`Metadata`], which checks
//! it, and the tensors are written here, one after the other: the vectors at their place as they come, the rest from
//! scratch files at the end. The header's room is kept free in front of them and filled with spaces, as the format allows.
//! (`norms` lies at a multiple of four unless both count and dims are odd; the format does not ask for more.)

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, ensure};
use half::f16;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::facts::{Batch, Facts, Manifest, Sink, Source, read_lines, write_line};
use super::partial::Partial;

/// The header's length, the length field included; a multiple of 8.
const HEADER_BYTES: usize = 4096;
/// The longest header read, as the library has it.
const HEADER_BYTES_MAX: u64 = 100_000_000;
const LENGTH_BYTES: usize = size_of::<u64>();
/// The metadata's one key.
const MANIFEST: &str = "vecmemo";

/// Writes such a file.
pub(super) struct SafetensorsSink {
    partial: Partial,
    /// The file itself, where the vectors go.
    out: BufWriter<File>,
    keys: BufWriter<File>,
    norms: BufWriter<File>,
    entries: BufWriter<File>,
    count: u64,
}

impl SafetensorsSink {
    pub(super) fn new(place: &Path) -> anyhow::Result<Self> {
        let partial = Partial::new(place)?;
        let mut out = BufWriter::with_capacity(1 << 20, partial.create_file()?);
        out.write_all(&[b' '; HEADER_BYTES]).context("cannot write the header")?;
        let scratch = |name| anyhow::Ok(BufWriter::with_capacity(1 << 16, partial.scratch(name)?));
        let (keys, norms, entries) = (scratch("keys")?, scratch("norms")?, scratch("entries")?);
        Ok(Self { partial, out, keys, norms, entries, count: 0 })
    }
}

impl Sink for SafetensorsSink {
    fn add(&mut self, facts: Facts, row: &[f16]) -> anyhow::Result<()> {
        self.count += 1;
        self.out.write_all(bytemuck::cast_slice(row)).context("cannot write the vectors")?;
        self.keys.write_all(facts.key.as_bytes()).context("cannot write the keys")?;
        self.norms.write_all(&facts.norm.to_le_bytes()).context("cannot write the norms")?;
        write_line(&mut self.entries, &facts)
    }

    fn finish(self: Box<Self>, mut manifest: Manifest) -> anyhow::Result<()> {
        let Self { partial, mut out, keys, norms, entries, count } = *self;
        manifest.count = count;
        let (rows, dims) = (usize::try_from(count)?, manifest.dims);
        let mut entries_bytes = 0;
        for (spool, name) in [(keys, "keys"), (norms, "norms"), (entries, "entries")] {
            let mut spool = spool.into_inner().with_context(|| format!("cannot write the {name}"))?;
            spool.seek(SeekFrom::Start(0)).with_context(|| format!("cannot read the {name}"))?;
            entries_bytes = std::io::copy(&mut spool, &mut out).with_context(|| format!("cannot write the {name}"))?;
        }
        let header = header(&manifest, rows, dims, usize::try_from(entries_bytes)?)?;
        let mut out = out.into_inner().context("cannot write the vectors")?;
        out.seek(SeekFrom::Start(0)).context("cannot write the header")?;
        out.write_all(&header).context("cannot write the header")?;
        out.sync_all().context("cannot sync the file")?;
        partial.publish()
    }
}

/// Length field and header, padded to [`HEADER_BYTES`].
fn header(manifest: &Manifest, rows: usize, dims: usize, entries_bytes: usize) -> anyhow::Result<Vec<u8>> {
    let mut end = 0;
    let mut tensor = |name: &str, dtype, shape: Vec<usize>, bytes: usize| {
        let data_offsets = (end, end + bytes);
        end += bytes;
        (name.to_owned(), TensorInfo { dtype, shape, data_offsets })
    };
    let tensors = vec![
        tensor("embeddings", Dtype::F16, vec![rows, dims], rows * dims * 2),
        tensor("keys", Dtype::U8, vec![rows, 32], rows * 32),
        tensor("norms", Dtype::F32, vec![rows], rows * 4),
        tensor("entries", Dtype::U8, vec![entries_bytes], entries_bytes),
    ];
    let about = HashMap::from([(MANIFEST.to_owned(), manifest.to_json())]);
    let json = serde_json::to_vec(&Metadata::new(Some(about), tensors)?)?;
    let room = HEADER_BYTES - LENGTH_BYTES;
    ensure!(json.len() <= room, "the header is {} bytes long, there is room for {room}", json.len());
    let mut header = (room as u64).to_le_bytes().to_vec();
    header.extend_from_slice(&json);
    header.resize(HEADER_BYTES, b' ');
    Ok(header)
}

/// Reads such a file.
pub(super) struct SafetensorsSource {
    manifest: Manifest,
    embeddings: BufReader<File>,
    keys: BufReader<File>,
    norms: BufReader<File>,
    entries: BufReader<File>,
    left: u64,
}

impl SafetensorsSource {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let open = || File::open(path).with_context(|| format!("cannot open {}", path.display()));
        let mut file = open()?;
        let len = file.metadata().context("cannot examine the file")?.len();
        let mut length = [0; LENGTH_BYTES];
        file.read_exact(&mut length).context("it is too short to be a .safetensors file")?;
        let header_bytes = u64::from_le_bytes(length);
        ensure!(header_bytes <= HEADER_BYTES_MAX.min(len), "it does not begin as a .safetensors file");
        let mut header = vec![0; usize::try_from(header_bytes)?];
        file.read_exact(&mut header).context("its header is cut off")?;
        let metadata: Metadata = serde_json::from_slice(&header).context("its header cannot be read")?;
        let data = LENGTH_BYTES as u64 + header_bytes;
        ensure!(data + metadata.data_len() as u64 == len, "it is not as long as its header says");

        let about = metadata.metadata().as_ref().and_then(|about| about.get(MANIFEST));
        let about = about.context("it has no metadata named vecmemo: it was not exported by vecmemo")?;
        let manifest = Manifest::parse(about.as_bytes())?;
        let rows = usize::try_from(manifest.count)?;
        let at = |name: &str, dtype: Dtype, shape: Option<&[usize]>| {
            let info = metadata.info(name).with_context(|| format!("it has no tensor named {name}"))?;
            ensure!(
                info.dtype == dtype && shape.is_none_or(|shape| info.shape == shape),
                "{name} is {:?} {:?}, not as the manifest says",
                info.dtype,
                info.shape
            );
            let mut part = open()?;
            part.seek(SeekFrom::Start(data + info.data_offsets.0 as u64)).context("cannot read the file")?;
            Ok(BufReader::with_capacity(1 << 16, part))
        };
        Ok(Self {
            embeddings: at("embeddings", Dtype::F16, Some(&[rows, manifest.dims]))?,
            keys: at("keys", Dtype::U8, Some(&[rows, 32]))?,
            norms: at("norms", Dtype::F32, Some(&[rows]))?,
            entries: at("entries", Dtype::U8, None)?,
            left: manifest.count,
            manifest,
        })
    }
}

impl Source for SafetensorsSource {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn next(&mut self) -> anyhow::Result<Batch> {
        let count = (self.manifest.rows_at_once() as u64).min(self.left);
        self.left -= count;
        let count = count as usize;
        let mut rows = vec![f16::ZERO; count * self.manifest.dims];
        self.embeddings.read_exact(bytemuck::cast_slice_mut(&mut rows)).context("cannot read the vectors")?;
        let (mut keys, mut norms) = (vec![[0_u8; 32]; count], vec![0_f32; count]);
        self.keys.read_exact(keys.as_flattened_mut()).context("cannot read the keys")?;
        self.norms.read_exact(bytemuck::cast_slice_mut(&mut norms)).context("cannot read the norms")?;
        let mut facts = read_lines(&mut self.entries, count)?;
        for ((facts, key), norm) in facts.iter_mut().zip(keys).zip(norms) {
            ensure!(*facts.key.as_bytes() == key, "keys and entries differ at {}", facts.key);
            facts.norm = norm;
        }
        Ok(Batch { facts, rows })
    }
}

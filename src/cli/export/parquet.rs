//! One Parquet file: a row an entry, a column a fact, the manifest in the file's own metadata under `vecmemo`.
//!
//! `embedding` is a list of f32, because that is what every reader knows: pandas and polars show lists of floats, pyarrow
//! flattens them without a copy, DuckDB and Spark take them as arrays. Parquet's f16 is newer, and a string of bytes
//! would be opaque. Nothing is lost, for every f16 is an f32; and little is paid, for the bytes are stored by place
//! (byte stream split) and compressed, so that the ones that are always zero take no room.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use half::f16;
use parquet::basic::{Compression, Encoding};
use parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, FloatType, Int32Type,
    Int64Type,
};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::{ColumnPath, Type};

use super::facts::{Batch, Facts, Manifest, Sink, Source};
use super::partial::Partial;
use crate::domain::Key;

/// The columns, in the order they are written and read in.
const SCHEMA: &str = "
    message entries {
        required fixed_len_byte_array(32) key;
        required group embedding (LIST) { repeated group list { required float element; } }
        required float norm;
        required int32 tokens (INTEGER(32, false));
        required boolean truncated;
        required boolean copied;
        required boolean pinned;
        required boolean refresh_ahead;
        required boolean stale;
        required int64 created (TIMESTAMP(MILLIS, true));
        optional int64 expires (TIMESTAMP(MILLIS, true));
        required binary namespace (STRING);
        required group tags (LIST) { repeated group list { required binary element (STRING); } }
        optional binary payload (JSON);
        required boolean incomplete;
        required binary checksum (STRING);
    }
";
/// The key of the manifest in the file's metadata.
const MANIFEST: &str = "vecmemo";
/// About how many bytes of f32 a row group holds: what is in memory while it is written.
const GROUP_BYTES: usize = 32 << 20;

fn schema() -> Type {
    parse_message_type(SCHEMA).expect("the schema is valid")
}

/// Writes such a file.
pub(super) struct ParquetSink {
    partial: Partial,
    writer: SerializedFileWriter<File>,
    dims: usize,
    facts: Vec<Facts>,
    values: Vec<f32>,
    count: u64,
}

impl ParquetSink {
    pub(super) fn new(place: &Path, dims: usize) -> anyhow::Result<Self> {
        let partial = Partial::new(place)?;
        let embedding = ColumnPath::new(["embedding", "list", "element"].map(String::from).into());
        let properties = WriterProperties::builder()
            .set_created_by(concat!("vecmemo ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_compression(Compression::SNAPPY)
            .set_column_dictionary_enabled(embedding.clone(), false)
            .set_column_encoding(embedding, Encoding::BYTE_STREAM_SPLIT)
            .set_column_dictionary_enabled(ColumnPath::from("key"), false)
            .build();
        let writer = SerializedFileWriter::new(partial.create_file()?, Arc::new(schema()), Arc::new(properties));
        let writer = writer.context("cannot write the file")?;
        Ok(Self { partial, writer, dims, facts: Vec::new(), values: Vec::new(), count: 0 })
    }

    /// Writes what has gathered as one row group.
    fn flush(&mut self) -> anyhow::Result<()> {
        if self.facts.is_empty() {
            return Ok(());
        }
        let (facts, values) = (std::mem::take(&mut self.facts), std::mem::take(&mut self.values));
        let mut group = self.writer.next_row_group()?;
        // A list's first element begins a record (level 0), the others go on with it (level 1).
        let definition = vec![1; values.len()];
        let repetition: Vec<i16> = (0..values.len()).map(|at| i16::from(at % self.dims != 0)).collect();
        let plain = (None, None);
        let keys: Vec<_> = facts.iter().map(|facts| FixedLenByteArray::from(facts.key.as_bytes().to_vec())).collect();
        write::<FixedLenByteArrayType>(&mut group, &keys, plain)?;
        write::<FloatType>(&mut group, &values, (Some(&definition), Some(&repetition)))?;
        write::<FloatType>(&mut group, &collect(&facts, |facts| facts.norm), plain)?;
        write::<Int32Type>(&mut group, &collect(&facts, |facts| facts.tokens.cast_signed()), plain)?;
        for flag in FLAGS {
            write::<BoolType>(&mut group, &collect(&facts, flag), plain)?;
        }
        write::<Int64Type>(&mut group, &collect(&facts, |facts| to_millis(facts.created)), plain)?;
        let expires: Vec<_> = facts.iter().filter_map(|facts| facts.expires.map(to_millis)).collect();
        let has_expires = collect(&facts, |facts| i16::from(facts.expires.is_some()));
        write::<Int64Type>(&mut group, &expires, (Some(&has_expires), None))?;
        let namespaces = collect(&facts, |facts| ByteArray::from(facts.namespace.as_str()));
        write::<ByteArrayType>(&mut group, &namespaces, plain)?;

        let (mut tags, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
        for facts in &facts {
            if facts.tags.is_empty() {
                definition.push(0);
                repetition.push(0);
            }
            for (at, tag) in facts.tags.iter().enumerate() {
                tags.push(ByteArray::from(tag.as_str()));
                definition.push(1);
                repetition.push(i16::from(at > 0));
            }
        }
        write::<ByteArrayType>(&mut group, &tags, (Some(&definition), Some(&repetition)))?;
        let payloads: Vec<_> = facts.iter().filter_map(|facts| facts.payload.as_deref().map(ByteArray::from)).collect();
        let has_payload = collect(&facts, |facts| i16::from(facts.payload.is_some()));
        write::<ByteArrayType>(&mut group, &payloads, (Some(&has_payload), None))?;
        write::<BoolType>(&mut group, &collect(&facts, |facts| facts.incomplete), plain)?;
        let checksums = collect(&facts, |facts| ByteArray::from(facts.checksum.as_str()));
        write::<ByteArrayType>(&mut group, &checksums, plain)?;
        group.close()?;
        Ok(())
    }
}

/// The flags that stand together in the schema.
const FLAGS: [fn(&Facts) -> bool; 5] = [
    |facts| facts.truncated,
    |facts| facts.copied,
    |facts| facts.pinned,
    |facts| facts.refresh_ahead,
    |facts| facts.stale,
];

fn collect<T>(facts: &[Facts], value: impl Fn(&Facts) -> T) -> Vec<T> {
    facts.iter().map(value).collect()
}

fn to_millis(seconds: u32) -> i64 {
    i64::from(seconds) * 1000
}

/// Definition and repetition levels, where a column has them.
type Levels<'a> = (Option<&'a [i16]>, Option<&'a [i16]>);

fn write<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, File>,
    values: &[T::T],
    (definition, repetition): Levels<'_>,
) -> anyhow::Result<()> {
    let mut column = group.next_column()?.context("the schema has fewer columns than are written")?;
    column.typed::<T>().write_batch(values, definition, repetition)?;
    column.close()?;
    Ok(())
}

impl Sink for ParquetSink {
    fn add(&mut self, facts: Facts, row: &[f16]) -> anyhow::Result<()> {
        self.count += 1;
        self.facts.push(facts);
        self.values.extend(row.iter().map(|value| value.to_f32()));
        if size_of_val(self.values.as_slice()) >= GROUP_BYTES {
            self.flush().context("cannot write the file")?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>, mut manifest: Manifest) -> anyhow::Result<()> {
        self.flush().context("cannot write the file")?;
        let Self { partial, mut writer, count, .. } = *self;
        manifest.count = count;
        writer.append_key_value_metadata(KeyValue::new(MANIFEST.to_owned(), manifest.to_json()));
        let file = writer.into_inner().context("cannot write the file")?;
        file.sync_all().context("cannot sync the file")?;
        partial.publish()
    }
}

/// Reads such a file.
pub(super) struct ParquetSource {
    manifest: Manifest,
    file: SerializedFileReader<File>,
    /// The row group that is next.
    group: usize,
    columns: Option<Columns>,
}

/// Whether a file begins as a Parquet file does.
pub(super) fn is_parquet(beginning: &[u8]) -> bool {
    beginning.starts_with(b"PAR1")
}

impl ParquetSource {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        unless_it_panics(|| Self::new(file))
    }

    fn new(file: File) -> anyhow::Result<Self> {
        let file = SerializedFileReader::new(file).context("it is not a whole Parquet file")?;
        let metadata = file.metadata().file_metadata();
        let about = metadata.key_value_metadata().into_iter().flatten().find(|pair| pair.key == MANIFEST);
        let about = about.and_then(|pair| pair.value.as_ref());
        let about = about.context("it has no metadata named vecmemo: it was not exported by vecmemo")?;
        let manifest = Manifest::parse(about.as_bytes())?;
        ensure!(*metadata.schema() == schema(), "its columns are not those that vecmemo writes");
        ensure!(
            u64::try_from(metadata.num_rows()).ok() == Some(manifest.count),
            "it has {} rows, its manifest says {}",
            metadata.num_rows(),
            manifest.count
        );
        Ok(Self { manifest, file, group: 0, columns: None })
    }
}

impl Source for ParquetSource {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn next(&mut self) -> anyhow::Result<Batch> {
        unless_it_panics(|| self.read())
    }
}

/// The library takes some damage for a bug of its own. What it had in hand then is not looked at again.
fn unless_it_panics<T>(read: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| bail!("it is damaged: its reader gave up"))
}

impl ParquetSource {
    fn read(&mut self) -> anyhow::Result<Batch> {
        loop {
            let columns = match &mut self.columns {
                Some(columns) => columns,
                None if self.group == self.file.num_row_groups() => return Ok(Batch::default()),
                none => {
                    let group = self.file.get_row_group(self.group)?;
                    self.group += 1;
                    none.insert(Columns::new(&*group)?)
                }
            };
            let batch = columns.next(self.manifest.rows_at_once(), self.manifest.dims)?;
            if !batch.facts.is_empty() {
                return Ok(batch);
            }
            self.columns = None;
        }
    }
}

/// One row group's columns, read in step.
struct Columns {
    key: ColumnReaderImpl<FixedLenByteArrayType>,
    embedding: ColumnReaderImpl<FloatType>,
    norm: ColumnReaderImpl<FloatType>,
    tokens: ColumnReaderImpl<Int32Type>,
    flags: [ColumnReaderImpl<BoolType>; 5],
    created: ColumnReaderImpl<Int64Type>,
    expires: ColumnReaderImpl<Int64Type>,
    namespace: ColumnReaderImpl<ByteArrayType>,
    tags: ColumnReaderImpl<ByteArrayType>,
    payload: ColumnReaderImpl<ByteArrayType>,
    incomplete: ColumnReaderImpl<BoolType>,
    checksum: ColumnReaderImpl<ByteArrayType>,
}

/// Values of one column, with their levels where it has any.
struct Values<T> {
    values: Vec<T>,
    definition: Vec<i16>,
    repetition: Vec<i16>,
    records: usize,
}

fn read<T: DataType>(column: &mut ColumnReaderImpl<T>, count: usize) -> anyhow::Result<Values<T::T>> {
    let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
    let mut records = 0;
    // A call ends with a page.
    while records < count {
        let (read, _, _) =
            column.read_records(count - records, Some(&mut definition), Some(&mut repetition), &mut values)?;
        if read == 0 {
            break;
        }
        records += read;
    }
    Ok(Values { values, definition, repetition, records })
}

/// One value a record.
fn read_plain<T: DataType>(column: &mut ColumnReaderImpl<T>, count: usize) -> anyhow::Result<Vec<T::T>> {
    let Values { values, .. } = read(column, count)?;
    ensure!(values.len() == count, "a column is shorter than another");
    Ok(values)
}

/// One value a record, or none.
fn read_optional<T: DataType>(column: &mut ColumnReaderImpl<T>, count: usize) -> anyhow::Result<Vec<Option<T::T>>> {
    let Values { values, definition, records, .. } = read(column, count)?;
    let mut values = values.into_iter();
    let values: Vec<_> = definition.iter().map(|&level| if level > 0 { values.next() } else { None }).collect();
    ensure!(records == count && values.len() == count, "a column is shorter than another");
    Ok(values)
}

fn to_seconds(millis: i64) -> anyhow::Result<u32> {
    u32::try_from(millis / 1000).with_context(|| format!("{millis} ms is no time from 1970 to 2106"))
}

fn to_text(bytes: &ByteArray) -> anyhow::Result<String> {
    Ok(bytes.as_utf8()?.to_owned())
}

impl Columns {
    fn new(group: &dyn RowGroupReader) -> anyhow::Result<Self> {
        let reader = |index| group.get_column_reader(index);
        let flag = |index| anyhow::Ok(get_typed_column_reader(reader(index)?));
        Ok(Self {
            key: get_typed_column_reader(reader(0)?),
            embedding: get_typed_column_reader(reader(1)?),
            norm: get_typed_column_reader(reader(2)?),
            tokens: get_typed_column_reader(reader(3)?),
            flags: [flag(4)?, flag(5)?, flag(6)?, flag(7)?, flag(8)?],
            created: get_typed_column_reader(reader(9)?),
            expires: get_typed_column_reader(reader(10)?),
            namespace: get_typed_column_reader(reader(11)?),
            tags: get_typed_column_reader(reader(12)?),
            payload: get_typed_column_reader(reader(13)?),
            incomplete: get_typed_column_reader(reader(14)?),
            checksum: get_typed_column_reader(reader(15)?),
        })
    }

    fn next(&mut self, count: usize, dims: usize) -> anyhow::Result<Batch> {
        let keys = read(&mut self.key, count)?.values;
        let count = keys.len();
        if count == 0 {
            return Ok(Batch::default());
        }
        let embedding = read(&mut self.embedding, count)?;
        let starts = embedding.repetition.iter().enumerate().filter(|&(_, &level)| level == 0).map(|(at, _)| at);
        ensure!(
            embedding.values.len() == count * dims && starts.eq((0..count).map(|row| row * dims)),
            "an embedding has another length than {dims}"
        );
        let rows = embedding.values.iter().map(|&value| f16::from_f32(value)).collect();
        let norms = read_plain(&mut self.norm, count)?;
        let tokens = read_plain(&mut self.tokens, count)?;
        let [truncated, copied, pinned, refresh_ahead, stale] = &mut self.flags;
        let truncated = read_plain(truncated, count)?;
        let copied = read_plain(copied, count)?;
        let pinned = read_plain(pinned, count)?;
        let refresh_ahead = read_plain(refresh_ahead, count)?;
        let stale = read_plain(stale, count)?;
        let created = read_plain(&mut self.created, count)?;
        let expires = read_optional(&mut self.expires, count)?;
        let namespaces = read_plain(&mut self.namespace, count)?;
        let mut tags = lists(&read(&mut self.tags, count)?, count)?;
        let payloads = read_optional(&mut self.payload, count)?;
        let incomplete = read_plain(&mut self.incomplete, count)?;
        let checksums = read_plain(&mut self.checksum, count)?;
        let facts = (0..count).map(|at| {
            Ok(Facts {
                key: Key::from_bytes(keys[at].data().try_into().context("a key is not 32 bytes long")?),
                norm: norms[at],
                tokens: tokens[at].cast_unsigned(),
                truncated: truncated[at],
                copied: copied[at],
                pinned: pinned[at],
                refresh_ahead: refresh_ahead[at],
                stale: stale[at],
                created: to_seconds(created[at])?,
                expires: expires[at].map(to_seconds).transpose()?,
                namespace: to_text(&namespaces[at])?,
                tags: std::mem::take(&mut tags[at]),
                payload: payloads[at].as_ref().map(to_text).transpose()?,
                incomplete: incomplete[at],
                checksum: to_text(&checksums[at])?,
            })
        });
        Ok(Batch { facts: facts.collect::<anyhow::Result<_>>()?, rows })
    }
}

fn lists(column: &Values<ByteArray>, count: usize) -> anyhow::Result<Vec<Vec<String>>> {
    let mut values = column.values.iter();
    let mut lists: Vec<Vec<String>> = Vec::with_capacity(count);
    for (&definition, &repetition) in column.definition.iter().zip(&column.repetition) {
        if repetition == 0 {
            lists.push(Vec::new());
        }
        if definition > 0 {
            let list = lists.last_mut().context("a list goes on that has not begun")?;
            list.push(to_text(values.next().context("a list is shorter than its levels say")?)?);
        }
    }
    ensure!(lists.len() == count, "a column is shorter than another");
    Ok(lists)
}

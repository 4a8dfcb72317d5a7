//! Texts from files, with where each stood.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

/// The longest line read; a longer one is a bad line.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// A text and where it came from.
#[derive(Debug)]
pub(in crate::cli) struct Line {
    pub(in crate::cli) text: String,
    pub(in crate::cli) place: Place,
    /// How much of the file it took.
    pub(in crate::cli) bytes: u64,
}

/// A line of a file, counted from one.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Place {
    file: Arc<str>,
    number: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.number)
    }
}

/// Why a line is no text.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum LineError {
    #[error("{place}: not valid UTF-8")]
    NotUtf8 { place: Place },
    #[error("{place}: longer than {LINE_BYTES_MAX} bytes")]
    TooLong { place: Place },
    #[error("{place}: not valid JSON: {source}")]
    NotJson { place: Place, source: serde_json::Error },
    #[error("{place}: no string in the field {field:?}")]
    NoField { place: Place, field: String },
    #[error("cannot read {file}: {source}")]
    Read { file: String, source: std::io::Error },
}

impl LineError {
    /// Whether the file itself could not be read, so that its texts are missing for sure.
    pub(in crate::cli) fn is_fatal(&self) -> bool {
        matches!(self, Self::Read { .. })
    }
}

/// What a line is.
#[derive(Clone, Debug)]
pub(in crate::cli) enum Format {
    /// The text itself. Empty lines are passed over.
    Plain,
    /// A JSON object with the text in a field.
    Jsonl { field: String },
}

impl Format {
    pub(in crate::cli) fn jsonl(field: &str) -> Self {
        Self::Jsonl { field: field.to_owned() }
    }

    fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("jsonl" | "ndjson") => Self::jsonl("text"),
            _ => Self::Plain,
        }
    }
}

/// Reads file after file, line after line.
pub(in crate::cli) struct Reader {
    waiting: std::vec::IntoIter<PathBuf>,
    format: Option<Format>,
    open: Option<Open>,
}

struct Open {
    lines: Box<dyn BufRead + Send>,
    file: Arc<str>,
    format: Format,
    number: u64,
}

impl Reader {
    /// The format is told by each file's ending unless given.
    pub(in crate::cli) fn new(files: &[PathBuf], format: Option<Format>) -> Self {
        let files = if files.is_empty() { vec![PathBuf::from("-")] } else { files.to_vec() };
        Self { waiting: files.into_iter(), format, open: None }
    }

    /// The size of all files together; `None` if one of them has none, as standard input.
    pub(in crate::cli) fn total_bytes(files: &[PathBuf]) -> Option<u64> {
        let size =
            |path: &PathBuf| std::fs::metadata(path).ok().filter(|found| found.is_file()).map(|found| found.len());
        if files.is_empty() { None } else { files.iter().map(size).sum() }
    }

    fn open_next(&mut self) -> Option<Result<(), LineError>> {
        let path = self.waiting.next()?;
        let (lines, file): (Box<dyn BufRead + Send>, _) = if path == Path::new("-") {
            (Box::new(BufReader::new(std::io::stdin())), "standard input".to_owned())
        } else {
            let file = path.display().to_string();
            match File::open(&path) {
                Ok(open) => (Box::new(BufReader::with_capacity(1 << 20, open)), file),
                Err(source) => return Some(Err(LineError::Read { file, source })),
            }
        };
        let format = self.format.clone().unwrap_or_else(|| Format::of(&path));
        self.open = Some(Open { lines, file: file.into(), format, number: 0 });
        Some(Ok(()))
    }
}

impl Iterator for Reader {
    type Item = Result<Line, LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match &mut self.open {
                None => {
                    if let Err(error) = self.open_next()? {
                        return Some(Err(error));
                    }
                }
                Some(open) => match open.next() {
                    Some(line) => return Some(line),
                    None => self.open = None,
                },
            }
        }
    }
}

impl Open {
    fn next(&mut self) -> Option<Result<Line, LineError>> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let read = match (&mut self.lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(read) => read as u64,
                Err(source) => return Some(Err(LineError::Read { file: self.file.to_string(), source })),
            };
            self.number += 1;
            let place = Place { file: Arc::clone(&self.file), number: self.number };
            if read == LINE_BYTES_MAX && bytes.last() != Some(&b'\n') {
                return Some(match self.lines.skip_until(b'\n') {
                    Ok(_) => Err(LineError::TooLong { place }),
                    Err(source) => Err(LineError::Read { file: self.file.to_string(), source }),
                });
            }
            while matches!(bytes.last(), Some(b'\n' | b'\r')) {
                bytes.pop();
            }
            if bytes.is_empty() {
                continue;
            }
            return Some(self.parse(&bytes, place, read));
        }
    }

    fn parse(&self, bytes: &[u8], place: Place, read: u64) -> Result<Line, LineError> {
        let Ok(line) = std::str::from_utf8(bytes) else { return Err(LineError::NotUtf8 { place }) };
        let text = match &self.format {
            Format::Plain => line.to_owned(),
            Format::Jsonl { field } => match serde_json::from_str::<Value>(line) {
                Err(source) => return Err(LineError::NotJson { place, source }),
                Ok(mut object) => match object.get_mut(field).map(Value::take) {
                    Some(Value::String(text)) => text,
                    _ => return Err(LineError::NoField { place, field: field.clone() }),
                },
            },
        };
        Ok(Line { text, place, bytes: read })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8], format: Format) -> Vec<Result<String, String>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let lines = Reader::new(&[file.path().to_owned()], Some(format));
        let name = format!("{}:", file.path().display());
        lines
            .map(|line| line.map(|line| line.text).map_err(|error| error.to_string().replace(&name, "line ")))
            .collect()
    }

    #[test]
    fn plain_lines_are_texts_and_empty_ones_are_passed_over() {
        let lines = read(b"one\r\n\n two \nthree", Format::Plain);
        assert_eq!(lines, ["one", " two ", "three"].map(|text| Ok(text.to_owned())));
    }

    #[test]
    fn bad_lines_are_named_by_number_and_the_rest_is_read() {
        let lines = read(b"{\"t\":\"a\"}\n{\n{\"t\":1}\n\xff\n{\"t\":\"b\"}", Format::jsonl("t"));
        assert_eq!(lines[0], Ok("a".to_owned()));
        assert!(lines[1].as_ref().unwrap_err().starts_with("line 2: not valid JSON"));
        assert_eq!(lines[2].as_ref().unwrap_err(), "line 3: no string in the field \"t\"");
        assert_eq!(lines[3].as_ref().unwrap_err(), "line 4: not valid UTF-8");
        assert_eq!(lines[4], Ok("b".to_owned()));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_fatal() {
        let mut lines = Reader::new(&["/nonexistent/file".into()], None);
        assert!(lines.next().unwrap().unwrap_err().is_fatal());
    }
}

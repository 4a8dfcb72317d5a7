//! The side store written anew, with only what belongs to entries that are there.
//!
//! redb gives the pages of what was removed to what is written next, and keeps their bytes until then, also when it compacts
//! the file. So what is to be gone for certain is left out of a copy, which takes the file's place ([`super::shred`]).

use redb::{Database, MultimapTableDefinition, MultimapTableHandle, ReadableDatabase, ReadableTable};
use redb::{ReadableMultimapTable, TableDefinition, TableHandle};

use super::side::Bytes32;
use crate::domain::Key;

/// What was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Token keys.
    pub token_keys: u64,
    /// Lists of tags, and payloads.
    pub attachments: u64,
}

/// Says whether what a model, by the short name, has under a key stays.
pub(super) type Stays<'a> = &'a dyn Fn(&str, &Key) -> bool;

/// Copies all tables of a side store into an empty one.
pub(super) fn copy(from: &Database, to: &Database, stays: Stays<'_>) -> Result<LeftOut, redb::Error> {
    let (read, write) = (from.begin_read()?, to.begin_write()?);
    let mut left_out = LeftOut::default();
    for handle in read.list_tables()? {
        let (kind, model) = parts(handle.name())?;
        let is_kept = |key: &[u8; 32]| stays(model, &Key::from_bytes(*key));
        match kind {
            "namespaces" => {
                let definition = TableDefinition::<&str, u32>::new(handle.name());
                let mut table = write.open_table(definition)?;
                for line in read.open_table(definition)?.iter()? {
                    let (name, number) = line?;
                    table.insert(name.value(), number.value())?;
                }
            }
            "tokens" => {
                let definition = TableDefinition::<Bytes32, &[u8; 40]>::new(handle.name());
                let mut table = write.open_table(definition)?;
                for line in read.open_table(definition)?.iter()? {
                    let (token_key, target) = line?;
                    let key = target.value().first_chunk().is_some_and(is_kept);
                    match key {
                        true => _ = table.insert(token_key.value(), target.value())?,
                        false => left_out.token_keys += 1,
                    }
                }
            }
            "tags" | "payloads" => {
                let definition = TableDefinition::<Bytes32, &str>::new(handle.name());
                let mut table = write.open_table(definition)?;
                for line in read.open_table(definition)?.iter()? {
                    let (key, text) = line?;
                    match is_kept(key.value()) {
                        true => _ = table.insert(key.value(), text.value())?,
                        false => left_out.attachments += 1,
                    }
                }
            }
            "condemned" => {
                let definition = TableDefinition::<u64, &str>::new(handle.name());
                let mut table = write.open_table(definition)?;
                for line in read.open_table(definition)?.iter()? {
                    let (number, sentence) = line?;
                    table.insert(number.value(), sentence.value())?;
                }
            }
            _ => return Err(redb::Error::TableDoesNotExist(handle.name().to_owned())),
        }
    }
    for handle in read.list_multimap_tables()? {
        let (kind, model) = parts(handle.name())?;
        if kind != "tagged" {
            return Err(redb::Error::TableDoesNotExist(handle.name().to_owned()));
        }
        let definition = MultimapTableDefinition::<&str, Bytes32>::new(handle.name());
        let mut table = write.open_multimap_table(definition)?;
        for line in read.open_multimap_table(definition)?.iter()? {
            let (tag, keys) = line?;
            for key in keys {
                let key = key?;
                if stays(model, &Key::from_bytes(*key.value())) {
                    table.insert(tag.value(), key.value())?;
                }
            }
        }
    }
    write.commit()?;
    Ok(left_out)
}

/// What a table holds, and whose it is.
fn parts(name: &str) -> Result<(&str, &str), redb::Error> {
    name.split_once(' ').ok_or_else(|| redb::Error::TableDoesNotExist(name.to_owned()))
}

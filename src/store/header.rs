//! The first 4096 bytes of a space's file: what it holds, and for which model. Written once, never changed.

use bytemuck::{Pod, Zeroable};
use xxhash_rust::xxh3::xxh3_64;

use super::layout::{HEADER_BYTES, Layout};
use crate::domain::ModelVersion;

/// The version this program writes, and the newest it reads.
pub(super) const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"vecmemo\0";
const CHECKSUM_OFFSET: usize = HEADER_BYTES as usize - size_of::<u64>();

/// As on disk, little-endian.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Header {
    magic: [u8; 8],
    format_version: u32,
    dims: u32,
    capacity: u64,
    slots_offset: u64,
    rows_offset: u64,
    model: [u8; 32],
    reserved: [u8; 4016],
    checksum: u64,
}

const _: () = assert!(size_of::<Header>() as u64 == HEADER_BYTES);
const _: () = assert!(std::mem::offset_of!(Header, checksum) == CHECKSUM_OFFSET);

/// Why a header is not one of ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// Not a header, or no longer: why, in a few words.
    Damaged(&'static str),
    /// Sound, and of a later format.
    Newer(u32),
}

impl Header {
    pub(super) fn new(layout: &Layout, model: &ModelVersion) -> Self {
        let mut header = Self {
            magic: MAGIC,
            format_version: FORMAT_VERSION,
            dims: u32::try_from(layout.dims).expect("a layout has at most 2^16 dims"),
            capacity: layout.capacity,
            slots_offset: layout.slots_offset,
            rows_offset: layout.rows_offset,
            model: *model.as_bytes(),
            reserved: [0; 4016],
            checksum: 0,
        };
        header.checksum = header.computed_checksum();
        header
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        bytemuck::bytes_of(self)
    }

    fn computed_checksum(&self) -> u64 {
        xxh3_64(&self.as_bytes()[..CHECKSUM_OFFSET])
    }

    /// Reads a header back. The magic, the version and the checksum keep their places in every format to come, so that
    /// a newer file is told from a damaged one.
    pub(super) fn read(bytes: &[u8; HEADER_BYTES as usize]) -> Result<(Layout, ModelVersion), HeaderFault> {
        let header: Self = bytemuck::pod_read_unaligned(bytes);
        if header.magic != MAGIC {
            return Err(HeaderFault::Damaged("it does not begin as a vecmemo file"));
        }
        if header.checksum != header.computed_checksum() {
            return Err(HeaderFault::Damaged("the header's checksum is wrong"));
        }
        if header.format_version > FORMAT_VERSION {
            return Err(HeaderFault::Newer(header.format_version));
        }
        let layout = Layout::new(header.dims as usize, header.capacity)
            .map_err(|_| HeaderFault::Damaged("the header's sizes are impossible"))?;
        if header.format_version == 0
            || (header.slots_offset, header.rows_offset) != (layout.slots_offset, layout.rows_offset)
        {
            return Err(HeaderFault::Damaged("the header's fields contradict each other"));
        }
        Ok((layout, ModelVersion::from_bytes(header.model)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Header {
        Header::new(&Layout::new(384, 1000).unwrap(), &ModelVersion::from_bytes([7; 32]))
    }

    fn read(header: &Header) -> Result<(Layout, ModelVersion), HeaderFault> {
        Header::read(header.as_bytes().try_into().unwrap())
    }

    #[test]
    fn a_header_reads_back() {
        let (layout, model) = read(&sound()).unwrap();
        assert_eq!(layout, Layout::new(384, 1000).unwrap());
        assert_eq!(model, ModelVersion::from_bytes([7; 32]));
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let sound = sound();
        for index in 0..HEADER_BYTES as usize {
            let mut bytes: [u8; HEADER_BYTES as usize] = sound.as_bytes().try_into().unwrap();
            bytes[index] ^= 0x40;
            assert!(matches!(Header::read(&bytes), Err(HeaderFault::Damaged(_))), "byte {index}");
        }
    }

    #[test]
    fn hostile_fields_under_a_right_checksum_are_refused() {
        let changes: [fn(&mut Header); 6] = [
            |header| header.capacity = u64::MAX,
            |header| header.capacity = 0,
            |header| header.dims = 0,
            |header| header.slots_offset += 64,
            |header| header.rows_offset = u64::MAX,
            |header| header.format_version = 0,
        ];
        for change in changes {
            let mut header = sound();
            change(&mut header);
            header.checksum = header.computed_checksum();
            assert!(matches!(read(&header), Err(HeaderFault::Damaged(_))));
        }
        let mut newer = sound();
        newer.format_version = FORMAT_VERSION + 1;
        newer.checksum = newer.computed_checksum();
        assert_eq!(read(&newer), Err(HeaderFault::Newer(FORMAT_VERSION + 1)));
    }
}

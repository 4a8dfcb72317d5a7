//! What the machine itself can do: rows read at random from plain memory, and writes with one sync, by nobody's store.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "prefetch instructions take a pointer"))]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use half::f16;

use crate::data::{Random, Rows, decode};

/// Rows one behind the other, without a table: their numbers are the keys.
pub(crate) struct RawRows {
    rows: Vec<f16>,
    dims: usize,
}

impl RawRows {
    pub(crate) fn new(rows: &Rows, entries: u64) -> Self {
        let mut all = Vec::with_capacity(entries as usize * rows.dims);
        (0..entries).for_each(|index| all.extend_from_slice(rows.row(index)));
        Self { rows: all, dims: rows.dims }
    }

    fn row(&self, index: usize) -> &[f16] {
        &self.rows[index * self.dims..(index + 1) * self.dims]
    }

    /// Decodes as many random rows as `numbers` is long, each asked for well before it is read.
    pub(crate) fn read(&self, random: &mut Random, numbers: &mut [usize], out: &mut [f32]) {
        /// Rows under way at once: enough to hide a memory access behind the decoding of others.
        const AHEAD: usize = 4;
        let entries = (self.rows.len() / self.dims) as u64;
        numbers.iter_mut().for_each(|number| *number = random.below(entries) as usize);
        numbers.iter().take(AHEAD).for_each(|&number| prefetch(self.row(number)));
        for place in 0..numbers.len() {
            if let Some(&number) = numbers.get(place + AHEAD) {
                prefetch(self.row(number));
            }
            decode(self.row(numbers[place]), &mut out[place * self.dims..(place + 1) * self.dims]);
        }
    }
}

fn prefetch(row: &[f16]) {
    const LINE_VALUES: usize = 32;
    // A row may begin within a line, and then ends in one more.
    row.chunks(LINE_VALUES).chain(row.last().map(std::slice::from_ref)).for_each(|line| {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the line is borrowed memory; a prefetch reads nothing that the program could see.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        std::hint::black_box(line.as_ptr());
    });
}

/// A sparse file that is written from its start, as a store's is.
pub(crate) struct RawFile {
    file: File,
    bytes: Vec<u8>,
    offset: u64,
}

impl RawFile {
    /// Each write is of `bytes`, and there is room for `writes` of them.
    pub(crate) fn new(folder: &Path, bytes: usize, writes: u64) -> Self {
        let file = File::create_new(folder.join("raw")).expect("the folder is fresh");
        file.set_len(bytes as u64 * writes).expect("the disk has room");
        file.sync_all().expect("the disk syncs");
        Self { file, bytes: vec![0xA5; bytes], offset: 0 }
    }

    pub(crate) fn write_and_sync(&mut self) {
        self.file.write_all_at(&self.bytes, self.offset).expect("the disk has room");
        self.file.sync_data().expect("the disk syncs");
        self.offset += self.bytes.len() as u64;
    }
}

//! Rows on an NVIDIA GPU, searched by kernels of our own (`kernels/nearest.cu`), which the driver's machine compiles when it starts.
//!
//! ```text
//! a few queries    nearest_8 … nearest_64   every row read once for all of them, scores never leave the processor's registers
//!                  merge_lists              the blocks' best into each query's
//! many             cuBLAS, select_scores    scores of as many rows as the second cache holds, then those that beat a query's best
//! ```
//!
//! Everything goes through one stream in order, from one thread at a time.

use std::sync::Arc;

use candle_core::cuda::cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t,
};
use candle_core::cuda::cudarc::cublas::{self, CudaBlas};
use candle_core::cuda::cudarc::driver::sys::{CUdevice_attribute_enum, CUfunction_attribute_enum};
use candle_core::cuda::cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg,
    ValidAsZeroBits,
};
use candle_core::cuda::cudarc::nvrtc::{self, CompileOptions};
use half::f16;

use super::arithmetic::Arithmetic;
use super::{Accelerator, Batch, Fault, Scored, WORD_ROWS, slice_rows};

const SOURCE: &str = include_str!("kernels/nearest.cu");
/// The oldest GPU that has the kernels' instructions.
const CAPABILITY_MIN: (i32, i32) = (8, 0);
const ARCHITECTURE: &str = "compute_80";

// As in `kernels/nearest.cu`.
const WARPS: usize = 8;
const THREADS: usize = WARPS * 32;
const TILE: usize = THREADS;
const TILE_STRIDE: usize = TILE + 4;
/// Values of a row in one load.
const PIECE: usize = 8;
/// A row is a multiple of so many values.
const ROW_ALIGNED: usize = 4 * PIECE;

/// Queries up to which every row is multiplied where it is read; beyond, a product of matrices is quicker.
const FUSED_MAX: usize = 128;
/// Scores that there are at once in a product: they should stay in the second cache, which has 40 MiB and more.
const SCORES_BYTES_MAX: usize = 32 << 20;
/// Memory that is left to others, such as an engine on the same GPU.
const FREE_BYTES_MIN: usize = 512 << 20;
/// Keys of a list, beyond those that are kept, that it has to have room for.
const CAP_MORE: usize = 32;
/// The shortest list, and the longest.
const CAPS: (usize, usize) = (64, 2048);

/// A matrix on a GPU.
pub(super) struct Cuda {
    stream: Arc<CudaStream>,
    blas: CudaBlas,
    /// By queries at once, ascending.
    nearest: Vec<(usize, CudaFunction)>,
    merge: CudaFunction,
    select: CudaFunction,
    place: CudaFunction,
    /// Processors that the GPU is made of.
    processors: usize,
    /// Bytes of memory that a block can share.
    shared_max: usize,
    dims: usize,
    /// Values of a row in memory, zeros at the end.
    stride: usize,
    slice_rows: usize,
    slices: Vec<CudaSlice<f16>>,
    /// Where each slice begins.
    table: CudaSlice<u64>,
    allowed: CudaSlice<u32>,
    scratch: Scratch,
}

/// Memory of searches, kept from one to the next: what the driver is given back it may map anew each time.
#[derive(Default)]
struct Scratch {
    queries: Option<CudaSlice<f16>>,
    ceilings: Option<CudaSlice<f32>>,
    only: Option<CudaSlice<u32>>,
    lists: Option<CudaSlice<u64>>,
    best: Option<CudaSlice<u64>>,
    scores: Option<CudaSlice<f32>>,
}

/// Memory for at least so many values.
fn room<'a, T: DeviceRepr + ValidAsZeroBits>(
    stream: &Arc<CudaStream>,
    held: &'a mut Option<CudaSlice<T>>,
    values: usize,
) -> Result<&'a mut CudaSlice<T>, Fault> {
    if held.as_ref().is_none_or(|held| held.len() < values) {
        *held = None;
        return Ok(held.insert(stream.alloc_zeros(values).map_err(fault)?));
    }
    held.as_mut().ok_or_else(|| Fault("memory that was held is gone".to_owned()))
}

/// The same, with these values at its beginning.
fn filled<'a, T: DeviceRepr + ValidAsZeroBits>(
    stream: &Arc<CudaStream>,
    held: &'a mut Option<CudaSlice<T>>,
    values: &[T],
) -> Result<&'a CudaSlice<T>, Fault> {
    let room = room(stream, held, values.len())?;
    stream.memcpy_htod(values, room).map_err(fault)?;
    Ok(room)
}

fn fault(error: impl std::fmt::Display) -> Fault {
    Fault(error.to_string())
}

impl Cuda {
    /// On the first GPU.
    pub(super) fn new(dims: usize) -> Result<Self, Fault> {
        let context = CudaContext::new(0).map_err(fault)?;
        let capability = context.compute_capability().map_err(fault)?;
        if capability < CAPABILITY_MIN {
            let (major, minor) = capability;
            return Err(Fault(format!(
                "its compute capability is {major}.{minor}, and 8.0 is the least that is served"
            )));
        }
        #[expect(unsafe_code, reason = "memory is used by one stream alone, so nothing is to be ordered by events")]
        // SAFETY: every allocation and launch here is on `stream`, in the order in which it is asked for.
        unsafe {
            context.disable_event_tracking();
        }
        let stream = context.new_stream().map_err(fault)?;
        let blas = CudaBlas::new(Arc::clone(&stream)).map_err(|error| Fault(format!("cuBLAS: {error:?}")))?;
        let options = CompileOptions {
            arch: Some(ARCHITECTURE),
            options: vec!["--std=c++17".to_owned()],
            name: Some("nearest.cu".to_owned()),
            ..CompileOptions::default()
        };
        let compiled = nvrtc::compile_ptx_with_opts(SOURCE, options).map_err(fault)?;
        let module = context.load_module(compiled).map_err(fault)?;
        let attribute = |attribute| context.attribute(attribute).map(|value| value as usize).map_err(fault);
        let processors = attribute(CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared_max = attribute(CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let function = |name: &str| {
            let function = module.load_function(name).map_err(fault)?;
            let most = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, shared_max as i32).map_err(fault)?;
            Ok::<_, Fault>(function)
        };
        let nearest = [8, 16, 32, 64].map(|at_once| Ok((at_once, function(&format!("nearest_{at_once}"))?)));
        let stride = dims.next_multiple_of(ROW_ALIGNED);
        Ok(Self {
            nearest: nearest.into_iter().collect::<Result<_, Fault>>()?,
            merge: function("merge_lists")?,
            select: function("select_scores")?,
            place: function("place_rows")?,
            table: stream.alloc_zeros(1).map_err(fault)?,
            allowed: stream.alloc_zeros(1).map_err(fault)?,
            stream,
            blas,
            processors,
            shared_max,
            dims,
            stride,
            slice_rows: slice_rows(stride * size_of::<f16>()),
            slices: Vec::new(),
            scratch: Scratch::default(),
        })
    }

    fn pieces(&self) -> u32 {
        (self.stride / PIECE) as u32
    }

    fn shift(&self) -> u32 {
        self.slice_rows.ilog2()
    }

    /// Vectors as they lie in memory there.
    fn padded(&self, vectors: impl ExactSizeIterator<Item = f16>) -> Vec<f16> {
        let count = vectors.len() / self.dims;
        let mut padded = vec![f16::ZERO; count * self.stride];
        let places = padded.chunks_mut(self.stride).flat_map(|row| &mut row[..self.dims]);
        places.zip(vectors).for_each(|(place, value)| *place = value);
        padded
    }

    fn launch(grid: (usize, usize), shared: usize) -> LaunchConfig {
        LaunchConfig {
            grid_dim: (grid.0 as u32, grid.1 as u32, 1),
            block_dim: (THREADS as u32, 1, 1),
            shared_mem_bytes: shared as u32,
        }
    }

    /// What a block of `nearest` shares.
    fn shared_of(&self, at_once: usize, cap: usize) -> usize {
        at_once * (self.stride * size_of::<f16>() + TILE_STRIDE * 4 + cap * 8 + 12)
    }

    /// The kernel for so many queries: the smallest that takes all at once, else the largest that there is memory for.
    fn kernel_for(&self, count: usize, cap: usize) -> Option<&(usize, CudaFunction)> {
        let fitting = || self.nearest.iter().filter(|(at_once, _)| self.shared_of(*at_once, cap) <= self.shared_max);
        fitting().find(|(at_once, _)| *at_once >= count).or_else(|| fitting().next_back())
    }

    /// The best keys of each query, every row read once for up to 64 of them.
    fn fused(
        &self,
        (at_once, kernel): &(usize, CudaFunction),
        asked: &Asked<'_>,
        lists: &mut Option<CudaSlice<u64>>,
        best: &mut CudaSlice<u64>,
    ) -> Result<(), Fault> {
        let stream = &self.stream;
        let shared = self.shared_of(*at_once, asked.cap);
        let side_by_side =
            kernel.occupancy_max_active_blocks_per_multiprocessor(THREADS as u32, shared, None).map_err(fault)?;
        let tiles = self.capacity() / TILE;
        let blocks = (self.processors * side_by_side.max(1) as usize).min(tiles);
        let lists = room(stream, lists, asked.count * blocks * asked.keep)?;
        let (shift, pieces, tiles) = (self.shift(), self.pieces(), tiles as u32);
        let (count, keep, cap) = (asked.count as u32, asked.keep as u32, asked.cap as u32);
        let mut nearest = stream.launch_builder(kernel);
        nearest.arg(&self.table).arg(&shift).arg(&pieces).arg(asked.allowed).arg(&tiles).arg(asked.queries);
        nearest.arg(&count).arg(asked.ceilings).arg(&mut *lists).arg(&keep).arg(&cap);
        #[expect(unsafe_code, reason = "starts a kernel")]
        // SAFETY: the arguments are those of `nearest`, in type and order; the table has a slice for each of the tiles, and
        // `allowed` a bit for each of their rows; `lists` has room for `keep` keys of each query and block; what a block shares
        // is as much as it says it needs.
        unsafe { nearest.launch(Self::launch((blocks, asked.count.div_ceil(*at_once)), shared)) }.map_err(fault)?;
        let total = (blocks * asked.keep) as u32;
        let mut merge = stream.launch_builder(&self.merge);
        merge.arg(&*lists).arg(&total).arg(best).arg(&keep).arg(&cap);
        #[expect(unsafe_code, reason = "starts a kernel")]
        // SAFETY: the arguments are those of `merge_lists`; `lists` has `total` keys of each query, and `best` room for `keep`.
        unsafe { merge.launch(Self::launch((asked.count, 1), WARPS * asked.cap * 8)) }.map_err(fault)?;
        Ok(())
    }

    /// The same by products of matrices. `best` is zeros.
    fn product(
        &self,
        asked: &Asked<'_>,
        only: Option<&[u32]>,
        scores: &mut Option<CudaSlice<f32>>,
        best: &mut CudaSlice<u64>,
    ) -> Result<(), Fault> {
        let stream = &self.stream;
        let fitting = (SCORES_BYTES_MAX / size_of::<f32>() / asked.count).max(1);
        let rows = (1 << fitting.ilog2()).clamp(1024, self.slice_rows);
        let scores = room(stream, scores, asked.count * rows)?;
        let (keep, cap, rows_count) = (asked.keep as u32, asked.cap as u32, rows as u32);
        for first in (0..self.capacity()).step_by(rows) {
            if only.is_some_and(|words| words[first / WORD_ROWS..][..rows / WORD_ROWS].iter().all(|&word| word == 0)) {
                continue;
            }
            self.multiply(first, rows, asked, scores)?;
            let place = first as u32;
            let mut select = stream.launch_builder(&self.select);
            select.arg(&*scores).arg(&rows_count).arg(&place).arg(asked.allowed).arg(asked.ceilings);
            select.arg(&mut *best).arg(&keep).arg(&cap);
            #[expect(unsafe_code, reason = "starts a kernel")]
            // SAFETY: the arguments are those of `select_scores`; `scores` has `rows` for each query, `allowed` a bit for each
            // place that there is, `best` `keep` keys for each query; `first` and `rows` are multiples of 1024.
            unsafe { select.launch(Self::launch((asked.count, 1), WARPS * asked.cap * 8)) }.map_err(fault)?;
        }
        Ok(())
    }

    /// The scores of `rows` places from `first` on, all of one slice: queries × rows.
    fn multiply(&self, first: usize, rows: usize, asked: &Asked<'_>, scores: &mut CudaSlice<f32>) -> Result<(), Fault> {
        let slice = &self.slices[first / self.slice_rows];
        let from = first % self.slice_rows * self.stride;
        let matrix = slice.slice(from..from + rows * self.stride);
        let (matrix, _matrix) = matrix.device_ptr(&self.stream);
        let (queries, _queries) = asked.queries.device_ptr(&self.stream);
        let (scores, _scores) = scores.device_ptr_mut(&self.stream);
        let (one, zero) = (1.0f32, 0.0f32);
        let stride = self.stride as i32;
        #[expect(unsafe_code, reason = "calls cuBLAS")]
        // SAFETY: by columns, as cuBLAS reads, the rows are stride × rows, the queries stride × count, and the scores, for which
        // there is room, rows × count; all three live until the stream is through, and so do the two factors, which are read now.
        unsafe {
            cublas::result::gemm_ex(
                *self.blas.handle(),
                cublasOperation_t::CUBLAS_OP_T,
                cublasOperation_t::CUBLAS_OP_N,
                rows as i32,
                asked.count as i32,
                stride,
                (&raw const one).cast(),
                matrix as *const _,
                cudaDataType_t::CUDA_R_16F,
                stride,
                queries as *const _,
                cudaDataType_t::CUDA_R_16F,
                stride,
                (&raw const zero).cast(),
                scores as *mut _,
                cudaDataType_t::CUDA_R_32F,
                rows as i32,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| Fault(format!("cuBLAS: {error:?}")))
    }
}

/// A batch on the GPU.
struct Asked<'a> {
    queries: &'a CudaSlice<f16>,
    ceilings: &'a CudaSlice<f32>,
    allowed: &'a CudaSlice<u32>,
    count: usize,
    keep: usize,
    /// Keys that a list has room for.
    cap: usize,
}

/// Undoes `key_of`.
fn scored(key: u64) -> Option<Scored> {
    let bits = (key >> 32) as u32;
    let bits = if bits >> 31 == 1 { bits & 0x7fff_ffff } else { !bits };
    (key != 0).then(|| Scored { place: !(key as u32), score: f32::from_bits(bits) })
}

impl Accelerator for Cuda {
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Half
    }

    fn keep_max(&self) -> usize {
        // A block of `merge_lists` and of `select_scores` shares a list a warp.
        let cap = (self.shared_max / (WARPS * size_of::<u64>())).min(CAPS.1);
        (1 << cap.ilog2()) - CAP_MORE
    }

    fn capacity(&self) -> usize {
        self.slices.len() * self.slice_rows
    }

    fn grow(&mut self, places: usize) -> Result<(), Fault> {
        let slice_bytes = self.slice_rows * self.stride * size_of::<f16>();
        while self.capacity() < places {
            let (free, _) = self.stream.context().mem_get_info().map_err(fault)?;
            if free < slice_bytes + FREE_BYTES_MIN {
                let mib = free >> 20;
                return Err(Fault(format!(
                    "it has {mib} MiB of memory free, too little for more rows and what else it does"
                )));
            }
            self.slices.push(self.stream.alloc_zeros(self.slice_rows * self.stride).map_err(fault)?);
        }
        let mut allowed = self.stream.alloc_zeros(self.capacity() / WORD_ROWS).map_err(fault)?;
        self.stream.memcpy_dtod(&self.allowed, &mut allowed).map_err(fault)?;
        self.allowed = allowed;
        let table: Vec<u64> = self.slices.iter().map(|slice| slice.device_ptr(&self.stream).0).collect();
        self.table = self.stream.clone_htod(&table).map_err(fault)?;
        self.stream.synchronize().map_err(fault)
    }

    fn write(&mut self, places: &[u32], rows: &[f16]) -> Result<(), Fault> {
        let padded = (self.stride != self.dims).then(|| self.padded(rows.iter().copied()));
        let rows = self.stream.clone_htod(padded.as_deref().unwrap_or(rows)).map_err(fault)?;
        let on_device = self.stream.clone_htod(places).map_err(fault)?;
        let (shift, pieces, count) = (self.shift(), self.pieces(), places.len() as u32);
        let mut place = self.stream.launch_builder(&self.place);
        place.arg(&self.table).arg(&shift).arg(&pieces).arg(&rows).arg(&on_device).arg(&count);
        #[expect(unsafe_code, reason = "starts a kernel")]
        // SAFETY: the arguments are those of `place_rows`; there are `count` rows and places, and a slice for each of the places.
        unsafe { place.launch(Self::launch((places.len().div_ceil(WARPS), 1), 0)) }.map_err(fault)?;
        self.stream.synchronize().map_err(fault)
    }

    fn allow(&mut self, first_word: usize, words: &[u32]) -> Result<(), Fault> {
        let mut place = self.allowed.slice_mut(first_word..first_word + words.len());
        self.stream.memcpy_htod(words, &mut place).map_err(fault)
    }

    fn nearest(&mut self, batch: &Batch<'_>) -> Result<Vec<Vec<Scored>>, Fault> {
        let count = batch.ceilings.len();
        if count == 0 || self.capacity() == 0 {
            return Ok(vec![Vec::new(); count]);
        }
        let queries = self.padded(batch.vectors.iter().map(|&value| f16::from_f32(value)));
        let mut scratch = std::mem::take(&mut self.scratch);
        let stream = &self.stream;
        let allowed = match batch.only {
            Some(words) => filled(stream, &mut scratch.only, words)?,
            None => &self.allowed,
        };
        let keys = count * batch.keep;
        let asked = Asked {
            queries: filled(stream, &mut scratch.queries, &queries)?,
            ceilings: filled(stream, &mut scratch.ceilings, batch.ceilings)?,
            allowed,
            count,
            keep: batch.keep,
            cap: (batch.keep + CAP_MORE).next_power_of_two().max(CAPS.0),
        };
        let best = room(stream, &mut scratch.best, keys)?;
        match self.kernel_for(count, asked.cap) {
            Some(kernel) if count <= FUSED_MAX => self.fused(kernel, &asked, &mut scratch.lists, best)?,
            _ => {
                stream.memset_zeros(best).map_err(fault)?;
                self.product(&asked, batch.only, &mut scratch.scores, best)?;
            }
        }
        let keys = stream.clone_dtoh(&best.slice(..keys)).map_err(fault)?;
        stream.synchronize().map_err(fault)?;
        self.scratch = scratch;
        Ok(keys.chunks(batch.keep).map(|keys| keys.iter().filter_map(|&key| scored(key)).collect()).collect())
    }

    fn memory_bytes(&self) -> usize {
        self.capacity() * self.stride * size_of::<f16>() + self.capacity() / 8
    }
}

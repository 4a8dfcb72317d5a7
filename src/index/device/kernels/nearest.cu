// The rows of the highest scores, of a matrix in slices: f16 products, f32 sums.
//
// Needs no header: nvcc compiles it, NVRTC without an include path, and g++ for the processor (tests/cuda/emulate.cpp).
//
// A key is a score and a place in 64 bits, greater for the higher score and, of equal scores, for the lower place. 0 is no key.
// A list is the best keys that one warp has seen: `keep` of them once trimmed, room for `cap`, a power of two >= keep + 32.
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;

#define WARPS 8
#define THREADS (WARPS * 32)
#define TILE THREADS              // rows that a block multiplies between two looks at the scores: a word of the bitmap a warp
#define TILE_STRIDE (TILE + 4)    // so that a warp's stores of scores fall into 32 banks
#define ALL 0xffffffffu
#define NO_SCORE __uint_as_float(0x7fffffffu)

#ifndef EMULATED
extern __shared__ __align__(16) unsigned char shared_memory[];

// A row is read once: it is not kept in the innermost cache.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}

// sums (16 rows x 8 queries) += rows (16 x 16) * queries (16 x 8). With g = lane / 4 and t = lane % 4 a lane has
//   rows:    a0 (g, 2t..), a1 (g + 8, 2t..), a2 (g, 8 + 2t..), a3 (g + 8, 8 + 2t..), two values each
//   queries: b0 (2t.., g), b1 (8 + 2t.., g)
//   sums:    (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
__device__ __forceinline__ void multiply(float (&sums)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif

__device__ __forceinline__ u64 key_of(float score, u32 place) {
    if (score != score) return 0;
    u32 bits = __float_as_uint(score);
    bits = (bits & 0x80000000u) ? ~bits : (bits | 0x80000000u);
    return ((u64)bits << 32) | (u32)~place;
}

// The score of a key; minus infinity for none.
__device__ __forceinline__ float score_of(u64 key) {
    const u32 bits = (u32)(key >> 32);
    return __uint_as_float(key == 0 ? 0xff800000u : (bits & 0x80000000u) ? bits & 0x7fffffffu : ~bits);
}

struct List {
    u64* keys;
    u32 count;
    u64 floor;    // what a key has to exceed
};

// Sorts cap keys, the greatest first.
__device__ __forceinline__ void sort(u64* keys, u32 cap, u32 lane) {
    for (u32 size = 2; size <= cap; size <<= 1) {
        for (u32 step = size >> 1; step > 0; step >>= 1) {
            for (u32 i = lane; i < cap / 2; i += 32) {
                const u32 a = 2 * i - (i & (step - 1)), b = a + step;
                const u64 x = keys[a], y = keys[b];
                if ((x < y) == ((a & size) == 0)) {
                    keys[a] = y;
                    keys[b] = x;
                }
            }
            __syncwarp();
        }
    }
}

__device__ __noinline__ void trim(List& list, u32 keep, u32 cap, u32 lane) {
    for (u32 i = list.count + lane; i < cap; i += 32) list.keys[i] = 0;
    __syncwarp();
    sort(list.keys, cap, lane);
    if (list.count >= keep) {
        list.count = keep;
        const u64 least = list.keys[keep - 1];
        list.floor = least > list.floor ? least : list.floor;
    }
    __syncwarp();
}

// Takes a key of each lane.
__device__ __forceinline__ void push(List& list, u64 key, u32 keep, u32 cap, u32 lane) {
    u32 better = __ballot_sync(ALL, key > list.floor);
    if (better == 0) return;
    if (list.count + __popc(better) > cap) {
        trim(list, keep, cap, lane);
        better = __ballot_sync(ALL, key > list.floor);
    }
    if (key > list.floor) list.keys[list.count + __popc(better & ((1u << lane) - 1))] = key;
    list.count += __popc(better);
    __syncwarp();
}

// The best of all the block's lists go to `out`, the greatest first, 0 where there are fewer. Lists are trimmed, each `cap` keys
// after the one before; the list is the first warp's.
__device__ __forceinline__ void merge_block(List& list, u64* lists, u64* out, u32 keep, u32 cap, u32 warp, u32 lane) {
    __syncthreads();
    if (warp != 0) return;
    for (u32 other = 1; other < WARPS; other++) {
        for (u32 i = 0; i < keep; i += 32) {
            push(list, i + lane < keep ? lists[other * cap + i + lane] : 0, keep, cap, lane);
        }
    }
    trim(list, keep, cap, lane);
    for (u32 i = lane; i < keep; i += 32) out[i] = i < list.count ? list.keys[i] : 0;
}

// GROUPS x 8 queries at once, each row read once for all of them. Blocks go through the tiles side by side, and from the sums in
// registers to lists in shared memory: scores never leave the processor.
//
// A product of vectors is the same in any order of their values, so a lane takes 16 bytes of a row, one load, for two steps of
// 16 values; queries lie in shared memory in the same order.
//
//   grid      blocks x ceil(count / (GROUPS x 8))
//   shared    GROUPS x 8 x (pieces x 16 + TILE_STRIDE x 4 + cap x 8 + 12) bytes
//   slices    of 1 << shift rows; a row is `pieces` x 16 bytes, pieces % 4 == 0
//   allowed   a bit for each place, tiles x TILE of them
//   queries   count x pieces x 16 bytes of f16
//   out       count x blocks x keep keys
template <int GROUPS>
__device__ __forceinline__ void nearest(const u64* __restrict__ slices, u32 shift, u32 pieces, const u32* __restrict__ allowed,
                                        u32 tiles, const uint4* __restrict__ queries, u32 count,
                                        const float* __restrict__ ceilings, u64* __restrict__ out, u32 keep, u32 cap) {
    const u32 at_once = GROUPS * 8;
    uint4* const ordered = (uint4*)shared_memory;
    u64* const lists = (u64*)(ordered + at_once * pieces);
    u64* const floors = lists + at_once * cap;
    float* const scores = (float*)(floors + at_once);
    u32* const counts = (u32*)(scores + at_once * TILE_STRIDE);
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const u32 first = blockIdx.y * at_once;

    for (u32 i = threadIdx.x; i < at_once * pieces; i += THREADS) {
        const u32 group = i / 32 % GROUPS, step = i / 32 / GROUPS;
        const u32 query = first + group * 8 + i % 32 / 4, piece = step * 4 + i % 4;
        uint4 values = {0, 0, 0, 0};
        if (query < count) values = queries[(u64)query * pieces + piece];
        ordered[i] = values;
    }
    if (threadIdx.x < at_once) {
        floors[threadIdx.x] = 0;
        counts[threadIdx.x] = 0;
    }
    __syncthreads();

    for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const u32 base = tile * TILE + warp * 32;
        float sums[2][GROUPS][4];
        #pragma unroll
        for (int half = 0; half < 2; half++)
            #pragma unroll
            for (int group = 0; group < GROUPS; group++)
                #pragma unroll
                for (int i = 0; i < 4; i++) sums[half][group][i] = 0.0f;
        if (allowed[base / 32] != 0) {
            const u64 row = base & ((1u << shift) - 1);
            const uint4* from = (const uint4*)slices[base >> shift] + (row + g) * pieces + t;
            #pragma unroll 4
            for (u32 step = 0; step < pieces / 4; step++, from += 4) {
                const uint4 a = load_once(from), b = load_once(from + 8 * pieces);
                const uint4 c = load_once(from + 16 * pieces), d = load_once(from + 24 * pieces);
                #pragma unroll
                for (int group = 0; group < GROUPS; group++) {
                    const uint4 q = ordered[(step * GROUPS + group) * 32 + lane];
                    multiply(sums[0][group], a.x, b.x, a.y, b.y, q.x, q.y);
                    multiply(sums[1][group], c.x, d.x, c.y, d.y, q.x, q.y);
                    multiply(sums[0][group], a.z, b.z, a.w, b.w, q.z, q.w);
                    multiply(sums[1][group], c.z, d.z, c.w, d.w, q.z, q.w);
                }
            }
        }
        #pragma unroll
        for (int half = 0; half < 2; half++) {
            #pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                float* const to = scores + (group * 8 + 2 * t) * TILE_STRIDE + warp * 32 + half * 16 + g;
                to[0] = sums[half][group][0];
                to[TILE_STRIDE] = sums[half][group][1];
                to[8] = sums[half][group][2];
                to[TILE_STRIDE + 8] = sums[half][group][3];
            }
        }
        __syncthreads();
        u32 may = 0;    // a bit for each of the tile's words: whether this lane's row of it may be proposed
        #pragma unroll
        for (int word = 0; word < TILE / 32; word++) may |= (allowed[tile * (TILE / 32) + word] >> lane & 1) << word;
        for (u32 query = warp; query < at_once && first + query < count; query += WARPS) {
            const u64 floor = floors[query];
            const float ceiling = ceilings[first + query], least = score_of(floor);
            float some[TILE / 32];
            bool any = false;
            #pragma unroll
            for (int word = 0; word < TILE / 32; word++) {
                const float score = scores[query * TILE_STRIDE + word * 32 + lane];
                some[word] = (may >> word & 1) && score <= ceiling ? score : NO_SCORE;
                any |= some[word] >= least;
            }
            if (!__any_sync(ALL, any)) continue;
            List list = {lists + query * cap, counts[query], floor};
            #pragma unroll
            for (int word = 0; word < TILE / 32; word++) {
                push(list, key_of(some[word], tile * TILE + word * 32 + lane), keep, cap, lane);
            }
            if (lane == 0) {
                counts[query] = list.count;
                floors[query] = list.floor;
            }
        }
        __syncthreads();
    }

    for (u32 query = warp; query < at_once && first + query < count; query += WARPS) {
        List list = {lists + query * cap, counts[query], floors[query]};
        trim(list, keep, cap, lane);
        u64* const to = out + ((u64)(first + query) * gridDim.x + blockIdx.x) * keep;
        for (u32 i = lane; i < keep; i += 32) to[i] = i < list.count ? list.keys[i] : 0;
    }
}

#define NEAREST(QUERIES)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                                 \
    nearest_##QUERIES(const u64* __restrict__ slices, u32 shift, u32 pieces, const u32* __restrict__ allowed, u32 tiles,     \
                      const uint4* __restrict__ queries, u32 count, const float* __restrict__ ceilings,                      \
                      u64* __restrict__ out, u32 keep, u32 cap) {                                                            \
        nearest<QUERIES / 8>(slices, shift, pieces, allowed, tiles, queries, count, ceilings, out, keep, cap);               \
    }
NEAREST(8)
NEAREST(16)
NEAREST(32)
NEAREST(64)

// The best of each query's keys. grid: queries; shared: WARPS x cap x 8 bytes; in: queries x total keys; out: queries x keep.
extern "C" __global__ void __launch_bounds__(THREADS)
merge_lists(const u64* __restrict__ in, u32 total, u64* __restrict__ out, u32 keep, u32 cap) {
    u64* const lists = (u64*)shared_memory;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u64* const keys = in + (u64)blockIdx.x * total;
    List list = {lists + warp * cap, 0, 0};
    for (u32 i = warp * 32; i < total; i += THREADS) push(list, i + lane < total ? keys[i + lane] : 0, keep, cap, lane);
    trim(list, keep, cap, lane);
    merge_block(list, lists, out + (u64)blockIdx.x * keep, keep, cap, warp, lane);
}

// Adds to each query's best keys those of a product of matrices: scores of `rows` places from `place` on, both multiples of 1024.
// grid: queries; shared: WARPS x cap x 8 bytes; scores: queries x rows; best: queries x keep, the greatest first.
extern "C" __global__ void __launch_bounds__(THREADS)
select_scores(const float* __restrict__ scores, u32 rows, u32 place, const u32* __restrict__ allowed,
       const float* __restrict__ ceilings, u64* __restrict__ best, u32 keep, u32 cap) {
    u64* const lists = (u64*)shared_memory;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float* const of_query = scores + (u64)blockIdx.x * rows;
    u64* const out = best + (u64)blockIdx.x * keep;
    const float ceiling = ceilings[blockIdx.x];
    List list = {lists + warp * cap, 0, out[keep - 1]};
    for (u32 row = warp * 32; row < rows; row += 4 * THREADS) {
        float some[4];
        u32 words[4];
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            some[i] = of_query[row + i * THREADS + lane];
            words[i] = allowed[(place + row + i * THREADS) / 32];
        }
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const bool may = (words[i] >> lane & 1) && some[i] <= ceiling;
            push(list, may ? key_of(some[i], place + row + i * THREADS + lane) : 0, keep, cap, lane);
        }
    }
    if (__syncthreads_or(list.count != 0) == 0) return;
    trim(list, keep, cap, lane);
    if (warp == 0) {
        list.floor = 0;
        for (u32 i = 0; i < keep; i += 32) push(list, i + lane < keep ? out[i + lane] : 0, keep, cap, lane);
    }
    merge_block(list, lists, out, keep, cap, warp, lane);
}

// Puts rows into their places. grid: ceil(count / WARPS); a warp a row.
extern "C" __global__ void __launch_bounds__(THREADS)
place_rows(const u64* __restrict__ slices, u32 shift, u32 pieces, const uint4* __restrict__ rows,
           const u32* __restrict__ places, u32 count) {
    const u32 row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= count) return;
    const u32 place = places[row];
    uint4* const to = (uint4*)slices[place >> shift] + (u64)(place & ((1u << shift) - 1)) * pieces;
    for (u32 i = threadIdx.x % 32; i < pieces; i += 32) to[i] = rows[(u64)row * pieces + i];
}

// Runs the search's kernels on the processor, one block at a time, a CUDA thread a fiber, and compares what they find with
// comparing every row. Tensor cores are played at their worst: products and sum are aligned to the largest and cut off there.
//
//   g++ -std=c++17 -O1 -g -fsanitize=address,undefined -I src/index/device/kernels tests/cuda/emulate.cpp && ./a.out
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

struct Index3 { unsigned x = 0, y = 0, z = 0; };
static Index3 threadIdx, blockIdx, gridDim;
struct uint4 { unsigned x, y, z, w; };

#define EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __restrict__
#define __align__(n) alignas(n)

alignas(16) static unsigned char shared_memory[256 << 10];

// Threads of a block take turns; each gives way where it has to wait.
static const int THREADS_MAX = 256;
static ucontext_t scheduler, fibers[THREADS_MAX];
static bool ended[THREADS_MAX];
static int current;

static void give_way() {
    const int me = current;
    swapcontext(&fibers[me], &scheduler);
    threadIdx.x = me;
}

struct Barrier {
    int arrived = 0, rounds = 0;
    void wait(int of) {
        const int round = rounds;
        if (++arrived == of) {
            arrived = 0;
            rounds++;
        } else {
            while (round == rounds) give_way();
        }
    }
};
static Barrier block, warps[THREADS_MAX / 32];
static unsigned votes[THREADS_MAX];

static void __syncthreads() { block.wait(THREADS_MAX); }
static void __syncwarp() { warps[current / 32].wait(32); }

static unsigned __ballot_sync(unsigned, bool vote) {
    const int first = current / 32 * 32;
    votes[current] = vote;
    __syncwarp();
    unsigned all = 0;
    for (int lane = 0; lane < 32; lane++) all |= votes[first + lane] << lane;
    __syncwarp();
    return all;
}
static bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
static int __syncthreads_or(int vote) {
    votes[current] = vote;
    __syncthreads();
    int any = 0;
    for (unsigned one : votes) any |= one;
    __syncthreads();
    return any;
}
static int __popc(unsigned bits) { return __builtin_popcount(bits); }
static unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static uint4 load_once(const uint4* from) { return *from; }

static float half_of(unsigned pair, int which) {
    const unsigned short bits = pair >> (16 * which);
    _Float16 half;
    memcpy(&half, &bits, 2);
    return half;
}

// A sum of numbers that are cut off where the largest has its last bit, and the sum likewise.
static float sum_cut_off(const double* terms, int count) {
    double largest = 0, sum = 0;
    for (int i = 0; i < count; i++) largest = std::max(largest, std::fabs(terms[i]));
    if (largest == 0) return 0;
    const double step = std::ldexp(1.0, std::ilogb(largest) - 23);
    for (int i = 0; i < count; i++) sum += std::trunc(terms[i] / step) * step;
    if (sum == 0) return 0;
    const double last = std::ldexp(1.0, std::ilogb(sum) - 23);
    return std::trunc(sum / last) * last;
}

// As the instruction's documentation lays its operands out over the lanes.
static unsigned operands[THREADS_MAX][6];
static void multiply(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    const int first = current / 32 * 32, lane = current % 32, g = lane / 4, t = lane % 4;
    const unsigned mine[6] = {a0, a1, a2, a3, b0, b1};
    memcpy(operands[current], mine, sizeof mine);
    __syncwarp();
    for (int i = 0; i < 4; i++) {
        const int row = g + 8 * (i / 2), query = 2 * t + i % 2;
        double terms[17] = {sums[i]};
        for (int k = 0; k < 16; k++) {
            const unsigned* of_row = operands[first + row % 8 * 4 + k % 8 / 2];
            const unsigned* of_query = operands[first + query * 4 + k % 8 / 2];
            terms[k + 1] = (double)half_of(of_row[k / 8 * 2 + row / 8], k % 2) * (double)half_of(of_query[4 + k / 8], k % 2);
        }
        sums[i] = sum_cut_off(terms, 17);
    }
    __syncwarp();
}

#include "nearest.cu"

static void launch(unsigned x, unsigned y, std::function<void()> kernel) {
    static std::vector<std::vector<char>> stacks(THREADS_MAX, std::vector<char>(128 << 10));
    static std::function<void()>* running;
    running = &kernel;
    gridDim = {x, y, 1};
    for (unsigned by = 0; by < y; by++) {
        for (unsigned bx = 0; bx < x; bx++) {
            blockIdx = {bx, by, 0};
            memset(shared_memory, 0xAB, sizeof shared_memory);
            for (int thread = 0; thread < THREADS_MAX; thread++) {
                ended[thread] = false;
                getcontext(&fibers[thread]);
                fibers[thread].uc_stack.ss_sp = stacks[thread].data();
                fibers[thread].uc_stack.ss_size = stacks[thread].size();
                fibers[thread].uc_link = &scheduler;
                makecontext(&fibers[thread], (void (*)())(+[] { (*running)(); ended[current] = true; }), 0);
            }
            for (bool any = true; any;) {
                any = false;
                for (int thread = 0; thread < THREADS_MAX; thread++) {
                    if (ended[thread]) continue;
                    any = true;
                    current = thread;
                    threadIdx.x = thread;
                    swapcontext(&scheduler, &fibers[thread]);
                }
            }
        }
    }
}

struct Case { int rows, dims, count, keep, every, duplicates, cursor; };

struct Random {
    u64 state;
    float next() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return (float)(state >> 40) / (1 << 23) - 1;
    }
};

static std::vector<_Float16> unit_vectors(int count, int dims, int stride, Random& random) {
    std::vector<_Float16> all((size_t)count * stride, (_Float16)0.0f);
    for (int i = 0; i < count; i++) {
        std::vector<float> values(dims);
        double squares = 0;
        for (float& value : values) { value = random.next(); squares += (double)value * value; }
        for (int d = 0; d < dims; d++) all[(size_t)i * stride + d] = (_Float16)(values[d] / (float)std::sqrt(squares));
    }
    return all;
}

static unsigned cap_for(unsigned keep) {
    unsigned cap = 64;
    while (cap < keep + 32) cap *= 2;
    return cap;
}

static int failures = 0, answers = 0;

// Whether these are keys of the `keep` best: each once, allowed, its score within the bound, in order, and none better left out.
static void check(const char* what, const Case& c, int query, const u64* keys, const std::vector<double>& exact,
                  const std::vector<u32>& allowed, float ceiling, double bound) {
    answers++;
    std::vector<bool> seen(exact.size());
    double least = INFINITY;
    int found = 0;
    std::string wrong;
    for (int i = 0; i < c.keep; i++) {
        if (keys[i] == 0) continue;
        if (i > 0 && (keys[i - 1] == 0 || keys[i - 1] <= keys[i])) wrong = "out of order";
        const u32 place = ~(u32)keys[i];
        const float score = score_of(keys[i]);
        if (place >= exact.size() || !(allowed[place / 32] >> place % 32 & 1) || seen[place]) { wrong = "a place that may not be"; break; }
        if (std::fabs(score - exact[place]) > bound || score > ceiling) wrong = "a wrong score";
        seen[place] = true;
        least = std::min(least, (double)score);
        found++;
    }
    int possible = 0;
    for (size_t place = 0; place < exact.size(); place++) {
        if (!(allowed[place / 32] >> place % 32 & 1) || exact[place] > ceiling + bound) continue;
        const bool certain = exact[place] <= ceiling - bound;
        possible += certain;
        if (!seen[place] && certain && found == c.keep && exact[place] > least + bound) wrong = "a better row left out";
    }
    if (found < c.keep && found < possible) wrong = "too few";
    if (!wrong.empty()) {
        failures++;
        printf("%s rows=%d dims=%d count=%d keep=%d query=%d: %s\n", what, c.rows, c.dims, c.count, c.keep, query, wrong.c_str());
    }
}

static void run(const Case& c) {
    Random random{(u64)c.rows * 31 + c.dims};
    const u32 shift = 10, slice_rows = 1 << shift, stride = (c.dims + 31) / 32 * 32, pieces = stride / 8;
    const u32 slices_count = (c.rows + slice_rows - 1) / slice_rows, places_count = slices_count * slice_rows;
    std::vector<_Float16> rows = unit_vectors(c.rows, c.dims, stride, random), queries = unit_vectors(c.count, c.dims, stride, random);
    for (int i = 0; i < c.duplicates; i++) std::copy_n(&rows[0], stride, &rows[(size_t)(i * 37 % c.rows) * stride]);
    std::copy_n(&rows[0], stride, &queries[0]);

    std::vector<std::vector<_Float16>> slices(slices_count, std::vector<_Float16>((size_t)slice_rows * stride, (_Float16)0.0f));
    std::vector<u64> table;
    for (auto& slice : slices) table.push_back((u64)slice.data());
    std::vector<u32> places(c.rows), allowed(places_count / 32);
    // Places are taken from the last to the first; the rows of some are not allowed.
    for (int i = 0; i < c.rows; i++) places[i] = c.rows - 1 - i;
    for (int place = 0; place < c.rows; place++) if (c.every == 0 || place % c.every == 0) allowed[place / 32] |= 1u << place % 32;
    launch((c.rows + WARPS - 1) / WARPS, 1, [&] { place_rows(table.data(), shift, pieces, (const uint4*)rows.data(), places.data(), c.rows); });

    std::vector<std::vector<double>> exact(c.count, std::vector<double>(c.rows));
    std::vector<float> ceilings(c.count, INFINITY);
    for (int query = 0; query < c.count; query++) {
        for (int i = 0; i < c.rows; i++) {
            double sum = 0;
            for (int d = 0; d < c.dims; d++) sum += (double)(float)rows[(size_t)i * stride + d] * (double)(float)queries[(size_t)query * stride + d];
            exact[query][places[i]] = sum;
        }
        if (c.cursor) ceilings[query] = 0.02f;
    }
    const double bound = (4.0 * c.dims + 16) / (1 << 23) * 1.01;
    const u32 cap = cap_for(c.keep), blocks = 3, tiles = places_count / TILE;
    auto kernels = {std::make_pair(8u, &nearest_8), std::make_pair(16u, &nearest_16), std::make_pair(32u, &nearest_32), std::make_pair(64u, &nearest_64)};
    for (auto [at_once, nearest] : kernels) {
        const size_t shared = (size_t)at_once * (pieces * 16 + TILE_STRIDE * 4 + cap * 8 + 12);
        if (shared > sizeof shared_memory || (c.rows > 2000 && at_once > 8 && c.count <= (int)at_once / 2)) continue;
        std::vector<u64> lists((size_t)c.count * blocks * c.keep, 0x55), best((size_t)c.count * c.keep, 0x55);
        auto kernel = nearest;
        launch(blocks, (c.count + at_once - 1) / at_once, [&] {
            kernel(table.data(), shift, pieces, allowed.data(), tiles, (const uint4*)queries.data(), c.count, ceilings.data(), lists.data(), c.keep, cap);
        });
        launch(c.count, 1, [&] { merge_lists(lists.data(), blocks * c.keep, best.data(), c.keep, cap); });
        for (int query = 0; query < c.count; query++)
            check("nearest", c, query, &best[(size_t)query * c.keep], exact[query], allowed, ceilings[query], bound);
    }
    std::vector<u64> best((size_t)c.count * c.keep, 0);
    for (u32 slice = 0; slice < slices_count; slice++) {
        std::vector<float> scores((size_t)c.count * slice_rows);
        for (int query = 0; query < c.count; query++)
            for (u32 row = 0; row < slice_rows; row++) {
                const u32 place = slice * slice_rows + row;
                scores[(size_t)query * slice_rows + row] = place < (u32)c.rows ? (float)exact[query][place] : 0;
            }
        launch(c.count, 1, [&] { select_scores(scores.data(), slice_rows, slice * slice_rows, allowed.data(), ceilings.data(), best.data(), c.keep, cap); });
    }
    for (int query = 0; query < c.count; query++)
        check("select_scores", c, query, &best[(size_t)query * c.keep], exact[query], allowed, ceilings[query], bound);
}

int main() {
    const Case cases[] = {
        {1, 1, 1, 9, 0, 0, 0},       {5, 384, 2, 18, 0, 0, 0},     {256, 32, 9, 12, 3, 0, 0},    {1025, 384, 33, 18, 0, 60, 0},
        {3000, 384, 1, 18, 1, 0, 0}, {2100, 100, 65, 9, 2, 0, 1},  {1500, 768, 3, 108, 0, 0, 0}, {3000, 64, 1, 1008, 0, 500, 0},
        {2500, 16, 5, 1024, 40, 0, 1}, {1100, 1024, 2, 40, 0, 0, 0},
    };
    for (const Case& c : cases) run(c);
    printf("%d answers of the kernels, %d wrong\n", answers, failures);
    return failures != 0;
}

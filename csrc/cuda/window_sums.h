// The running sums of sliding-window normalisation: column sums over the window's rows, and prefix
// sums of these along a row.
#pragma once

#include <type_traits>

#include "cuda/launch.h"
#include "cuda/vector.h"

SIMMIM_BEGIN

namespace window_sums {

constexpr int kRows = 8;  // rows whose sums a block makes at a time
template <class T>
constexpr bool kAnew = std::is_same<T, double>::value;

// Half a warp adds up a row. A lane has an odd number of columns, which avoids bank conflicts.
constexpr int kHalf = kWarp / 2, kEach = 19, kMostColumns = kHalf * kEach;
constexpr int kPitch = kMostColumns + 1;

// Shared memory for rows of two sums a column.
template <int ROWS>
__device__ __forceinline__ double* shared_sums() {
    alignas(16) __shared__ double sums[ROWS * 2 * kPitch];
    return sums;
}

__device__ __forceinline__ bool fits(double limit, double x) { return x <= limit && x >= -limit; }

// A row of column sums: of x and x^2 over numbers that running sums can take, and how many other
// (`bad`) numbers the window's rows hold.
struct Row {
    double *sums, *squares;
    int32_t* bad;
};

// The sum of all lanes before this one; adds the sum of all to `total`.
template <class T>
__device__ __forceinline__ T before(T value, uint32_t lane, T* total) {
    T running = value;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
        const T other = __shfl_up_sync(kAllLanes, running, step);
        if (lane >= uint32_t(step)) running += other;
    }
    const T base = *total;
    *total += __shfl_sync(kAllLanes, running, kWarp - 1);
    return base + running - value;
}

// Replaces a row's column sums by exclusive prefix sums, with the total behind the last column.
__device__ __forceinline__ void prefix(const Row& row, int32_t width, uint32_t lane) {
    const int32_t each = (width + kWarp - 1) / kWarp;
    const int32_t first = min_of<int32_t>(width, int32_t(lane) * each);
    const int32_t last = min_of<int32_t>(width, first + each);
    double s = 0, q = 0, all_s = 0, all_q = 0;
    int32_t n = 0, all_n = 0;
    for (int32_t x = first; x < last; ++x) {
        s += row.sums[x];
        q += row.squares[x];
        n += row.bad[x];
    }
    s = before(s, lane, &all_s);
    q = before(q, lane, &all_q);
    n = before(n, lane, &all_n);
    for (int32_t x = first; x < last; ++x) {
        const double ds = row.sums[x], dq = row.squares[x];
        const int32_t dn = row.bad[x];
        row.sums[x] = s;
        row.squares[x] = q;
        row.bad[x] = n;
        s += ds;
        q += dq;
        n += dn;
    }
    if (lane == 0) {
        row.sums[width] = all_s;
        row.squares[width] = all_q;
        row.bad[width] = all_n;
    }
    __syncwarp();
}

// A column's sums over the rows of the current window.
struct Column {
    double sum, square;
    int32_t bad;

    __device__ __forceinline__ void add(double limit, double value, int sign) {
        const bool taken = fits(limit, value);
        const double kept = taken ? value : 0.0;
        sum += sign * kept;
        square += sign * (kept * kept);
        bad += taken ? 0 : sign;
    }
    __device__ __forceinline__ void take(double value) {
        sum += value;
        square += value * value;
    }
};

// Makes ROWS rows of sums at a time, one column a thread. With ROWS 1 sums are in scratch memory,
// for any width and window.
template <class T, int ROWS>
struct Sums {
    Column own{};

    __device__ __forceinline__ Sums(double*, int32_t) {}
    __device__ __forceinline__ Row row(int32_t r, int32_t) {
        __shared__ int32_t bad[ROWS][kPitch];
        double* const sums = shared_sums<ROWS>() + r * 2 * kPitch;
        return {sums, sums + kPitch, bad[r]};
    }
    template <class Body>
    __device__ __forceinline__ void each(int32_t columns, const Body& body) {
        if (int32_t(threadIdx.x) < columns) body(int32_t(threadIdx.x), own);
    }
};

template <class T>
struct Sums<T, 1> {
    double* base;
    Column* own;

    __device__ __forceinline__ Sums(double* scratch, int32_t columns) {
        base = scratch + int64_t(blockIdx.x) * 6 * (columns + 1);
        own = reinterpret_cast<Column*>(base + 3 * (columns + 1));
        each(columns, [](int32_t, Column& column) { column = {}; });
    }
    __device__ __forceinline__ Row row(int32_t, int32_t columns) {
        double* squares = base + columns + 1;
        return {base, squares, reinterpret_cast<int32_t*>(squares + columns + 1)};
    }
    template <class Body>
    __device__ __forceinline__ void each(int32_t columns, const Body& body) {
        for (int32_t x = int32_t(threadIdx.x); x < columns; x += int32_t(blockDim.x)) {
            body(x, own[x]);
        }
    }
};

}  // namespace window_sums

SIMMIM_END

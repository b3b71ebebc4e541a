// Sliding-window normalisation of rows without numbers that are too large for running sums, which
// is nearly every row; numbers need not be checked one by one. A thread owns one column: it keeps
// the column's sums and writes its pixels. In between, half a warp makes the sums along a row.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/window_sums.h"

SIMMIM_BEGIN

namespace window_sums {

// Sums of numbers and of their squares. Sums of bytes are uint32: prefix sums may wrap around, and
// their differences are right as long as a window's own sum fits (`kMostBytes`).
template <class T>
struct Pair {
    using Number =
        typename std::conditional<std::is_same<T, uint8_t>::value, uint32_t, double>::type;
    struct alignas(2 * sizeof(Number)) Type {
        Number sum, square;
    };
};
template <class T>
using Both = typename Pair<T>::Type;
constexpr int64_t kMostBytes = 0x7FFFFFFF / (255 * 255);

// The type of a number between its load and its use; a bfloat16 is loaded straight into a word.
template <class T>
using Held = typename std::conditional<std::is_same<T, BFloat16>::value, uint32_t, T>::type;

template <class T>
__device__ __forceinline__ Held<T> hold(const T* number) {
    if constexpr (std::is_same<T, BFloat16>::value) {
        return number->bits;
    } else {
        return *number;
    }
}

template <class T>
__device__ __forceinline__ double as_double(Held<T> number) {
    if constexpr (std::is_same<T, BFloat16>::value) {
        return double(lower_bfloat16(number));
    } else if constexpr (std::is_integral<T>::value) {
        return double(number);
    } else {
        return double(widen(number));
    }
}

// The narrowest output type for an image of T.
template <class T>
using Small =
    typename std::conditional<std::is_same<T, BFloat16>::value || std::is_same<T, Float16>::value,
                              T, float>::type;

__device__ __forceinline__ double signed_number(double sum) { return sum; }
__device__ __forceinline__ double signed_number(uint32_t sum) { return double(int32_t(sum)); }

// Adds one number to a column's sums.
template <class T>
__device__ __forceinline__ void enter(Both<T>* own, Held<T> number) {
    typename Pair<T>::Number value;
    if constexpr (std::is_same<T, uint8_t>::value) {
        value = number;
    } else {
        value = as_double<T>(number);
    }
    own->sum += value;
    own->square += value * value;
}

// Adds one number to a column's sums and subtracts one.
template <class T>
__device__ __forceinline__ void move_down(Both<T>* own, Held<T> enters, Held<T> leaves) {
    if constexpr (std::is_same<T, uint8_t>::value) {
        const uint32_t in = enters, out = leaves;
        own->sum += in - out;
        own->square += (in - out) * (in + out);
    } else {
        const double in = as_double<T>(enters), out = as_double<T>(leaves);
        own->sum += in - out;
        own->square = fma(in - out, in + out, own->square);
    }
}

// A band of rows of one channel, and the columns that its block needs and writes.
template <class T>
struct Band {
    const T* image;  // of the channel
    int64_t i_y, i_x;
    int32_t height, width, bottom, radius_y, radius_x;
    int32_t left, columns;  // columns whose sums are needed
    int32_t x0, x1;         // columns that are written
    double most;            // the largest sum of squares that running sums can take
    float eps;              // in squares of stored numbers
    char* out;              // of the channel
    int64_t o_y, o_x;       // bytes
    const uint8_t* units;   // of the sample's mask; null: every pixel is written
    int32_t unit_h, unit_w, units_across;
};

// Prefix sums along rows, in place: the sum up to and including column x is stored at x + 1, and 0
// at 0. Memory behind the last column is overwritten.
template <class T>
__device__ __forceinline__ void sum_along(Both<T> (*sums)[kPitch], int32_t rows, int32_t columns) {
    using Number = typename Pair<T>::Number;
    const int32_t lane = int32_t(threadIdx.x) % kHalf;
    for (int32_t two = int32_t(threadIdx.x) / kWarp * 2; two < rows;
         two += int32_t(blockDim.x) / kWarp * 2) {
        const int32_t r = two + int32_t(threadIdx.x) % kWarp / kHalf;
        const bool adds = r < rows && lane * kEach < columns;
        Both<T>* const row = sums[r < rows ? r : two] + 1 + lane * kEach;
        Number s = 0, q = 0;
        if (adds) {
#pragma unroll
            for (int x = 0; x < kEach; ++x) {
                const Both<T> here = row[x];
                s += here.sum;
                q += here.square;
            }
        }
#pragma unroll
        for (int step = 1; step < kHalf; step *= 2) {
            const Number more_s = __shfl_up_sync(kAllLanes, s, step);
            const Number more_q = __shfl_up_sync(kAllLanes, q, step);
            if (lane >= step) {
                s += more_s;
                q += more_q;
            }
        }
        // The sum of the lanes before, added up without this lane's own: subtracting that again
        // would be inexact.
        s = __shfl_up_sync(kAllLanes, s, 1);
        q = __shfl_up_sync(kAllLanes, q, 1);
        if (adds) {
            if (lane == 0) s = q = 0;
#pragma unroll
            for (int x = 0; x < kEach; ++x) {
                const Both<T> here = row[x];
                s += here.sum;
                q += here.square;
                row[x] = {s, q};
            }
        }
    }
}

// Writes rows from `start` on as Out; returns the first row with too large a number, or the bottom.
template <class T, class Out>
__device__ __forceinline__ int32_t write_plain(const Band<T>& band, int32_t start,
                                               Both<T> (*sums)[kPitch]) {
    constexpr bool kBytes = std::is_same<T, uint8_t>::value;
    const int32_t x = int32_t(threadIdx.x), at = band.x0 + x;
    const bool sums_up = x < band.columns, writes = at < band.x1;
    const T* const down = band.image + (band.left + x) * band.i_x;
    const int32_t l = max_of(0, at - band.radius_x) - band.left;
    const int32_t r = min_of(band.width, at + band.radius_x + 1) - band.left;
    // With s and q the negative sums of a window of n numbers and of their squares: d = n x + s,
    // v = n q + s^2, and the result is d / sqrt(-v n / (n - 1) + eps n^2).
    double n = 0;
    float ratio = 0, least = 0;
    const auto count_rows = [&](double rows) {
        n = rows * (r - l);
        const float size = float(n);
        ratio = size / fminf(1 - size, -1.0f);
        least = band.eps * size * size;
    };
    const auto count_window = [&](int32_t y) {
        count_rows(min_of(band.height, y + band.radius_y + 1) - max_of(0, y - band.radius_y));
    };
    const auto write = [&](int32_t k, char* to, Held<T> pixel) {
        const Both<T> before = sums[k][l], after = sums[k][r];
        const double s = signed_number(before.sum - after.sum);
        const double q = signed_number(before.square - after.square);
        const float d = float(fma(n, as_double<T>(pixel), s));
        const float v = fminf(float(fma(n, q, s * s)), 0.0f);
        const float result = d * rsqrtf(fmaf(v, ratio, least));
        *reinterpret_cast<Out*>(to) = Narrow<Out>::from(result);
    };
    count_rows(2.0 * band.radius_y + 1);
    Both<T> own{};
    if (sums_up) {
        const int32_t first = max_of(0, start - 1 - band.radius_y);
        const int32_t rows = min_of(band.height, start + band.radius_y) - first;
        const T* number = down + first * band.i_y;
#pragma unroll 8
        for (int32_t k = 0; k < rows; ++k, number += band.i_y) enter<T>(&own, hold(number));
        if constexpr (!kBytes) {
            if (!(own.square <= band.most)) own.square = NAN;
        }
    }
    if (x < kRows) sums[x][0] = {};
    for (int32_t i = x; i < kRows * kEach; i += int32_t(blockDim.x)) {
        const int32_t row = i / kEach, behind = band.columns + 1 + i - row * kEach;
        if (behind < kPitch) sums[row][behind] = {};
    }
    const T* in = down + (start + band.radius_y) * band.i_y;
    const T* out = down + (start - 1 - band.radius_y) * band.i_y;
    const T* centre = band.image + start * band.i_y + at * band.i_x;
    char* to = band.out + start * band.o_y + at * band.o_x;
    for (; start < band.bottom; start += kRows) {
        const int32_t rows = min_of(kRows, band.bottom - start);
        const int32_t next = start + band.radius_y, last = start - 1 - band.radius_y;
        const bool inside = rows == kRows && last >= 0 && next + kRows <= band.height;
        if (sums_up) {
            Held<T> enters[kRows], leaves[kRows];
            if (inside) {
#pragma unroll
                for (int k = 0; k < kRows; ++k, in += band.i_y, out += band.i_y) {
                    enters[k] = hold(in);
                    leaves[k] = hold(out);
                }
            } else {
#pragma unroll
                for (int k = 0; k < kRows; ++k, in += band.i_y, out += band.i_y) {
                    enters[k] = k < rows && next + k < band.height ? hold(in) : Held<T>{};
                    leaves[k] = k < rows && last + k >= 0 ? hold(out) : Held<T>{};
                }
            }
#pragma unroll
            for (int k = 0; k < kRows; ++k) {
                move_down<T>(&own, enters[k], leaves[k]);
                sums[k][x + 1] = own;
            }
            if constexpr (!kBytes) {
                // A number that entered is still in the window's sums, and a NaN propagates to the
                // row's last prefix sum, which every thread checks.
                if (!(own.square <= band.most)) sums[rows - 1][x + 1].square = NAN;
            }
        }
        __syncthreads();
        sum_along<T>(sums, rows, band.columns);
        __syncthreads();
        if constexpr (!kBytes) {
            const double all = sums[rows - 1][band.columns].square;
            if (all != all) break;
        }
        if (writes) {
            if (inside && !band.units) {
                Held<T> pixels[kRows];
#pragma unroll
                for (int k = 0; k < kRows; ++k, centre += band.i_y) pixels[k] = hold(centre);
#pragma unroll
                for (int k = 0; k < kRows; ++k, to += band.o_y) write(k, to, pixels[k]);
            } else if (!band.units) {
#pragma unroll 4
                for (int k = 0; k < rows; ++k, centre += band.i_y, to += band.o_y) {
                    count_window(start + k);
                    write(k, to, hold(centre));
                }
                count_rows(2.0 * band.radius_y + 1);
            } else {
                int32_t unit_end = start;
                bool wanted = true;
#pragma unroll 1
                for (int k = 0; k < rows; ++k, centre += band.i_y, to += band.o_y) {
                    const int32_t y = start + k;
                    if (y >= unit_end) {
                        const int32_t unit = y / band.unit_h;
                        unit_end = (unit + 1) * band.unit_h;
                        wanted = band.units[unit * band.units_across + at / band.unit_w];
                    }
                    if (!wanted) continue;
                    count_window(y);
                    write(k, to, hold(centre));
                }
                count_rows(2.0 * band.radius_y + 1);
            }
        }
        __syncthreads();
    }
    return min_of(start, band.bottom);
}

}  // namespace window_sums

SIMMIM_END

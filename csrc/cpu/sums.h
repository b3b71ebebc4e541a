// Prefix sums, compensated running sums and window sums along rows of numbers. The order of
// additions is the same on every instruction set.
#pragma once

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "cpu/rows.h"

SIMMIM_BEGIN

// Prefix sums of n numbers, n a multiple of 4; returns the last. Each four numbers are first summed
// among themselves, so that only one addition in four depends on the one before (measured: 1 ns a
// pixel less than a single chain; compilers don't vectorise it).
inline double prefix_of_fours(const double* row, int64_t n, double* sums) {
#ifdef __AVX2__
    const __m256d zero = _mm256_setzero_pd();
    __m256d total = zero;
    for (int64_t x = 0; x < n; x += 4) {
        const __m256d one = _mm256_loadu_pd(row + x);
        const __m256d two =
            _mm256_add_pd(one, _mm256_blend_pd(_mm256_permute4x64_pd(one, 0x90), zero, 1));
        const __m256d four = _mm256_add_pd(two, _mm256_permute2f128_pd(two, two, 0x08));
        _mm256_storeu_pd(sums + x, _mm256_add_pd(total, four));
        total = _mm256_add_pd(total, _mm256_permute4x64_pd(four, 0xFF));
    }
    return _mm256_cvtsd_f64(total);
#else
    double total = 0.0;
    for (int64_t x = 0; x < n; x += 4) {
        const double* v = row + x;
        const double two[] = {v[0] + 0.0, v[1] + v[0], v[2] + v[1], v[3] + v[2]};
        const double four[] = {two[0] + 0.0, two[1] + 0.0, two[2] + two[0], two[3] + two[1]};
        for (int i = 0; i < 4; ++i) sums[x + i] = total + four[i];
        total += four[3];
    }
    return total;
#endif
}

// Adds v to `sum`, and the rounding error of that addition to `rest` (Knuth's two-sum).
template <class Sum>
void add_in_parts(Sum v, Sum& sum, Sum& rest) {
    const Sum whole = sum + v, added = whole - sum;
    rest += (sum - (whole - added)) + (v - added);
    sum = whole;
}

// out[x] = the sum of numbers + rests over columns x - radius to x + radius of a row of `width`.
// The row is cut into blocks as long as a window, so that a window is a suffix sum of one block
// plus a prefix sum of the next (van Herk, 1992). Nothing is subtracted, so numbers outside a
// window can't affect its sum.
template <class Sum>
void sum_windows(const Sum* numbers, const Sum* rests, int64_t width, int64_t radius, Sum* out) {
    const int64_t side = 2 * radius + 1;
    const auto column = [&](int64_t x) {
        return x >= 0 && x < width ? numbers[x] + rests[x] : Sum(0);
    };
    for (int64_t from = 0; from < width; from += side) {
        Sum sum = 0;
        for (int64_t x = from + side - 1; x >= from; --x) {
            sum += column(x - radius);
            if (x < width) out[x] = sum;
        }
        sum = 0;
        for (int64_t x = from; x < min_of(width, from + side); ++x) {
            out[x] += sum;
            sum += column(x + radius + 1);
        }
    }
}

SIMMIM_END

// Weighted sums of bytes in 16-bit fixed point.
#pragma once

#include "cpu/resize_axis.h"

#define SIMMIM_INLINE __attribute__((always_inline)) inline

SIMMIM_BEGIN

// Taps up to which all that is rounded, weights and products of both axes, adds up to less than
// half a level: 0.016 of one a tap, with the cubic kernel, which leaves fewer bits, 0.046.
inline int64_t most_byte_taps(bool cubic) { return cubic ? 10 : 32; }

// An axis with weights in units of `unit`: 2^-15, or 2^-14 of the cubic kernel, whose weights may
// be larger than 1.
struct ByteAxis {
    int64_t out, taps, unit;
    const int32_t* first;
    int16_t* weights;
    double largest = 0;  // sum of the sizes of an output's weights

    static int64_t bytes(const Axis& axis, int64_t out) { return whole_lines(out * axis.taps * 2); }

    ByteAxis(const Axis& axis, const Resize& resize, char* memory)
        : out(resize.out),
          taps(axis.taps),
          unit(resize.cubic ? 1 << 14 : 1 << 15),
          first(axis.first),
          weights(reinterpret_cast<int16_t*>(memory)) {
        int32_t largest_sizes = 0;
        for (int64_t i = 0; i < resize.out; ++i) {
            const double* exact = axis.weights + i * taps;
            int16_t* row = weights + i * taps;
            int32_t rest = int32_t(unit), sizes = 0, most = -1;
            int64_t heaviest = 0;
            for (int64_t k = 0; k < taps; ++k) {
                const double weight = exact[k] * double(unit);
                const int32_t rounded = int32_t(weight + (weight < 0 ? -0.5 : 0.5));
                row[k] = int16_t(min_of(rounded, 32767));
                rest -= rounded;
                sizes += rounded < 0 ? -rounded : rounded;
                heaviest = rounded > most ? k : heaviest;
                most = max_of(most, rounded);
            }
            // Flat areas keep their level: the weights add up to 1.
            row[heaviest] = int16_t(min_of(most + rest, 32767));
            largest_sizes = max_of(largest_sizes, sizes);
        }
        largest = double(largest_sizes) / double(unit);
    }
};

// a b / 2^15, rounded: one instruction where there is AVX2.
inline int16_t scaled(int16_t a, int16_t b) {
    return int16_t(((int32_t(a) * int32_t(b) >> 14) + 1) >> 1);
}

// out[i] (+)= the weighted sum of p[i], p[i + stride] and so on, K of them.
template <int K, bool kAdd>
SIMMIM_INLINE void sum_taps(const int16_t* __restrict__ p, int64_t stride,
                            const int16_t* __restrict__ w, int16_t* __restrict__ out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        int16_t sum = kAdd ? out[i] : int16_t(0);
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) sum = int16_t(sum + scaled(p[i + k * stride], w[k]));
        out[i] = sum;
    }
}

// Calls run with a constant of the number of taps, so that its loops are unrolled; of more than 8
// with 8, the taps of one of several rounds.
template <int K>
struct Taps {
    static constexpr int count = K;
};
template <class Run>
SIMMIM_INLINE void with_taps(int64_t taps, const Run& run) {
    switch (taps) {
        case 1:
            return run(Taps<1>{});
        case 2:
            return run(Taps<2>{});
        case 3:
            return run(Taps<3>{});
        case 4:
            return run(Taps<4>{});
        case 5:
            return run(Taps<5>{});
        case 6:
            return run(Taps<6>{});
        case 7:
            return run(Taps<7>{});
        default:
            return run(Taps<8>{});
    }
}

// The sum of `taps` taps, of which K are added at a time.
template <int K>
SIMMIM_INLINE void sum_all(int64_t taps, const int16_t* p, int64_t stride, const int16_t* w,
                           int16_t* out, int64_t n) {
    sum_taps<K, false>(p, stride, w, out, n);
    if (K < 8) return;
    for (int64_t k = 8; k < taps; k += 8)
        with_taps(taps - k, [&](auto more) {
            sum_taps<decltype(more)::count, true>(p + k * stride, stride, w + k, out, n);
        });
}

SIMMIM_END

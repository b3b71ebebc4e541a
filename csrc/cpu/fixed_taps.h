// Filter weights, and weighted sums over a filter's taps: the parts shared by all number types, and
// the 16-bit fixed-point weights for bytes.
#pragma once

#include "cpu/resize_axis.h"

#define SIMMIM_INLINE __attribute__((always_inline)) inline

SIMMIM_BEGIN

// The largest number of taps for which all rounding errors (of weights and products, on both axes)
// add up to less than half a grey level: 0.016 of a level a tap; 0.046 for the cubic kernel, which
// leaves fewer bits.
inline int64_t most_byte_taps(bool cubic) { return cubic ? 10 : 32; }

// An axis with weights of type Weight; the constructor of a derived class fills them.
template <class Weight>
struct AxisOf {
    int64_t extent, out, taps;
    const int32_t* first;
    Weight* weights;

    static int64_t bytes(const Axis& axis, const Resize& resize) {
        return whole_lines(resize.out * axis.taps * int64_t(sizeof(Weight)));
    }

    AxisOf(const Axis& axis, const Resize& resize, char* memory)
        : extent(resize.extent),
          out(resize.out),
          taps(axis.taps),
          first(axis.first),
          weights(reinterpret_cast<Weight*>(memory)) {}

    double scale() const { return double(extent) / double(out); }
};

// An axis with weights in units of `unit`: 2^-15, or 2^-14 of the cubic kernel, whose weights may
// be larger than 1.
struct ByteAxis : AxisOf<int16_t> {
    int64_t unit;
    double largest = 0;  // the largest sum of |weight| of any output

    ByteAxis(const Axis& axis, const Resize& resize, char* memory)
        : AxisOf(axis, resize, memory), unit(resize.cubic ? 1 << 14 : 1 << 15) {
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

// a * b / 2^15, rounded. One instruction with AVX2; elsewhere computed from the two 16-bit halves
// of the product, so that vectors stay 16 bits wide.
inline int16_t scaled(int16_t a, int16_t b) {
#ifdef __AVX2__
    return int16_t(((int32_t(a) * int32_t(b) >> 14) + 1) >> 1);
#else
    const int16_t high = int16_t(int32_t(a) * int32_t(b) >> 16);
    const uint16_t low = uint16_t(a * b);
    return int16_t(2 * high + (((low >> 14) + 1) >> 1));
#endif
}

// Calls run(Taps<n>) with the number of taps as a compile-time constant, so that loops over taps
// are unrolled. More than 8 taps are summed in several rounds of at most 8.
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

// to[i] = sum over k < taps of w[k] * p[i + k * stride], for i < n; K taps are added in one round.
template <class Arithmetic, int K, int64_t n, class Number, class Weight>
SIMMIM_INLINE void sum_all(int64_t taps, const Number* p, int64_t stride, const Weight* w,
                           Number* to) {
    Arithmetic::template sum_taps<K, false, n>(p, stride, w, to);
    if (K < 8) return;
    for (int64_t k = 8; k < taps; k += 8)
        with_taps(taps - k, [&](auto more) {
            Arithmetic::template sum_taps<decltype(more)::count, true, n>(p + k * stride, stride,
                                                                          w + k, to);
        });
}

SIMMIM_END

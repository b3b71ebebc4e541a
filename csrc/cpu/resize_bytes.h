// Resizes bytes to bytes in 16-bit fixed point. Between the vertical and the horizontal pass a byte
// keeps 7 fractional bits (6 with the cubic kernel, which overshoots). Pillow keeps none, so this
// is nearer to the exact result.
#pragma once

#include "cpu/resize_rows.h"
#include "cpu/resize_tiles.h"
#include "cpu/transpose.h"

SIMMIM_BEGIN

// Arithmetic of bytes for resize_planes: sums are int16 with kBits fractional bits at the end,
// which `finish` rounds off.
template <int kBits>
struct Bytes {
    using Number = int16_t;
    using Column = uint8_t;
    using Weight = int16_t;
    static constexpr int64_t kRows = 32;

    uint8_t* out;

    static void lift(const Memory& image, int64_t offset, int64_t stride, int64_t n,
                     int16_t* line) {
        const uint8_t* p = reinterpret_cast<const uint8_t*>(image.base) + offset;
        if (stride != 1) {
            for (int64_t i = 0; i < n; ++i) line[i] = int16_t(p[i * stride] << 7);
        } else if (n == kTurned) {
            for (int64_t i = 0; i < kTurned; ++i) line[i] = int16_t(p[i] << 7);
        } else {
            for (int64_t i = 0; i < n; ++i) line[i] = int16_t(p[i] << 7);
        }
    }

    // to[i] = (kAdd ? to[i] : 0) + sum over k < K of w[k] * p[i + k * stride], for i < n.
    template <int K, bool kAdd, int64_t n>
    SIMMIM_INLINE static void sum_taps(const int16_t* __restrict__ p, int64_t stride,
                                       const int16_t* __restrict__ w, int16_t* __restrict__ to) {
        for (int64_t i = 0; i < n; ++i) {
            int16_t sum = kAdd ? to[i] : int16_t(0);
#pragma GCC unroll 8
            for (int k = 0; k < K; ++k) sum = int16_t(sum + scaled(p[i + k * stride], w[k]));
            to[i] = sum;
        }
    }

    static void finish(const int16_t* sums, uint8_t* to) {
        for (int64_t r = 0; r < kRows; ++r) {
            const int16_t level = int16_t(int16_t(sums[r] + (1 << (kBits - 1))) >> kBits);
            to[r] = uint8_t(min_of<int16_t>(max_of<int16_t>(level, 0), 255));
        }
    }

    static void turn(const int16_t (*lines)[kTurned], int64_t n, int64_t rows, int16_t* turned) {
        for (int64_t i = 0; i < n; i += 8)
            for (int64_t r = 0; r < rows; r += 16)
                transpose_16x8(&lines[r][i], kTurned, turned + i * kRows + r, kRows);
    }

    void prefetch(int64_t place) const { __builtin_prefetch(out + place, 1); }

    void store(const uint8_t* columns, int64_t n, int64_t rows, int64_t place, int64_t step) const {
        transpose_bytes(columns, n, rows, out + place, step);
    }
};

template <int kBits>
void resize_byte_planes(const Sample& sample, const Resize& down, const Resize& across,
                        const ByteAxis& ys, const ByteAxis& xs, bool flip, uint8_t* out) {
    const ByteImage image{reinterpret_cast<uint8_t*>(sample.image.base) + sample.origin,
                          sample.channels, sample.sc, sample.sy, sample.sx};
    if (!resize_by_rows<kBits>(image, down, across, ys, xs, flip, out + sample.out))
        resize_planes(Bytes<kBits>{out}, sample, ys, xs, flip);
}

// Writes the result and returns true, or returns false where 16 bits are too few for these axes.
inline bool resize_bytes(const Sample& sample, const Resize& down, const Resize& across,
                         const Axis& ys, const Axis& xs, bool flip, uint8_t* out) {
    if (max_of(ys.taps, xs.taps) > most_byte_taps(down.cubic)) return false;
    const Scratch tables(ByteAxis::bytes(ys, down) + ByteAxis::bytes(xs, across));
    const ByteAxis rows(ys, down, tables.as<char>());
    const ByteAxis columns(xs, across, tables.as<char>() + ByteAxis::bytes(ys, down));
    if (!down.cubic) {
        resize_byte_planes<7>(sample, down, across, rows, columns, flip, out);
        return true;
    }
    // The largest sums that either pass can yield must fit into int16.
    if (rows.largest > 1.9 || rows.largest * columns.largest > 3.9) return false;
    resize_byte_planes<5>(sample, down, across, rows, columns, flip, out);
    return true;
}

SIMMIM_END

// Numbers of any type resized in float32 or float64, the sum of the taps in their order.
#pragma once

#include "cpu/resize_tiles.h"
#include "cpu/transpose.h"

SIMMIM_BEGIN

// What a tap of weight 0 reads, so that it adds nothing where its pixel is not finite.
template <class C>
alignas(64) constexpr C kNothing[kTurned] = {};

// Weighted sums in C, of numbers that are all finite or not.
template <class C, bool kFinite>
struct Numbers {
    using Number = C;
    using Column = C;
    using Weight = C;
    static constexpr int64_t kRows = 16;

    Memory out;
    bool divided;  // bytes become numbers from 0 to 1

    static void lift(const Memory& image, int64_t offset, int64_t stride, int64_t n, C* line) {
        image.load(offset, stride, n, line);
    }

    // to[i] (+)= the weighted sum of p[i], p[i + stride] and so on, K of them.
    template <int K, bool kAdd, int64_t n>
    SIMMIM_INLINE static void sum_taps(const C* p, int64_t stride, const C* w, C* to) {
        constexpr int64_t kLanes = kVectorBytes / sizeof(C);
        using V = Vector<C, kLanes>;
        const C* from[K];
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) from[k] = kFinite || w[k] != 0 ? p + k * stride : kNothing<C>;
        for (int64_t i = 0; i < n; i += kLanes) {
            V sum{};
            if (kAdd) sum = read<V>(to + i);
#pragma GCC unroll 8
            for (int k = 0; k < K; ++k) {
                const V product = w[k] * read<V>(from[k] + i);
                sum = k == 0 && !kAdd ? product : sum + product;
            }
            std::memcpy(to + i, &sum, sizeof(V));
        }
    }

    static C finish(C sum) { return sum; }

    static void turn(const C (*lines)[kTurned], int64_t n, int64_t rows, C* turned) {
        constexpr int64_t kLanes = kVectorBytes / sizeof(C);
        for (int64_t i = 0; i < n; i += kLanes)
            for (int64_t r = 0; r < rows; r += kLanes)
                transpose_square(&lines[r][i], kTurned, turned + i * kRows + r, kRows);
    }

    void prefetch(int64_t place) const { __builtin_prefetch(out.at(place), 1); }

    // `n` columns to rows of the result, `step` apart.
    void store(const C* columns, int64_t n, int64_t rows, int64_t place, int64_t step) const {
        constexpr int64_t kLanes = kVectorBytes / sizeof(C);
        alignas(64) C made[kRows][kTurned];
        for (int64_t r = 0; r < rows; r += kLanes)
            for (int64_t i = 0; i < n; i += kLanes)
                transpose_square(columns + i * kRows + r, kRows, &made[r][i], kTurned);
        for (int64_t r = 0; r < rows; ++r) store_row(made[r], n, place + r * step);
    }

    template <class T>
    void store_whole(const C* row, int64_t n, int64_t at, int32_t least, int32_t most) const {
        // Added to a number of less than half its size and taken away again, it rounds a half to
        // the even number.
        constexpr C kWhole = C(sizeof(C) == 4 ? 12582912.0 : 6755399441055744.0);
        T* target = reinterpret_cast<T*>(out.at(at));
        for (int64_t i = 0; i < n; ++i)
            target[i] = T(min_of(max_of(int32_t((row[i] + kWhole) - kWhole), least), most));
    }

    void store_row(C* row, int64_t n, int64_t at) const {
        switch (out.element) {
            case kUInt8:
                return store_whole<uint8_t>(row, n, at, 0, 255);
            case kUInt16:
                return store_whole<uint16_t>(row, n, at, 0, 65535);
            case kInt16:
                return store_whole<int16_t>(row, n, at, -32768, 32767);
            default:
                if (divided)
                    for (int64_t i = 0; i < n; ++i) row[i] = row[i] / C(255);
                out.store(row, n, at, 1);
        }
    }
};

template <class C>
void resize_numbers(const Sample& sample, const Resize& down, const Resize& across, const Axis& ys,
                    const Axis& xs, bool flip, const Memory& out) {
    const Scratch tables(AxisOf<C>::bytes(ys, down) + AxisOf<C>::bytes(xs, across));
    const AxisOf<C> rows(ys, down, tables.as<char>());
    const AxisOf<C> columns(xs, across, tables.as<char>() + AxisOf<C>::bytes(ys, down));
    const int element = sample.image.element;
    const bool divided = element == kUInt8;
    if (is_integer(element))
        resize_planes(Numbers<C, true>{out, divided}, sample, rows, columns, flip);
    else
        resize_planes(Numbers<C, false>{out, divided}, sample, rows, columns, flip);
}

SIMMIM_END

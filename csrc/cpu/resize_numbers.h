// Resizes numbers of any type in float32 or float64; taps are summed in ascending order.
#pragma once

#include "cpu/resize_tiles.h"
#include "cpu/transpose.h"

SIMMIM_BEGIN

// A tap of weight 0 reads these zeros instead of its pixel, for 0 * NaN and 0 * infinity are NaN.
template <class C>
alignas(64) constexpr C kNothing[kTurned] = {};

// Arithmetic for resize_planes: sums in C, stored as T, rounded where T is an integer type.
// kFinite: the image's type has neither NaN nor infinity.
template <class C, class T, bool kFinite>
struct Numbers {
    using Number = C;
    using Column = T;
    using Weight = C;
    static constexpr int64_t kRows = 16;

    Memory out;
    bool divided;  // whether results are divided by 255, so that bytes become numbers in [0, 1]

    static void lift(const Memory& image, int64_t offset, int64_t stride, int64_t n, C* line) {
        image.load(offset, stride, n, line);
    }

    // to[i] = (kAdd ? to[i] : 0) + sum over k < K of w[k] * p[i + k * stride], for i < n.
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

    static void finish(const C* sums, T* to) {
        if constexpr (kSame<T, C>) {
            for (int64_t r = 0; r < kRows; ++r) to[r] = sums[r];
        } else {
            // Adding 1.5 * 2^(mantissa bits) and taking it away again rounds to the nearest whole
            // number, ties to even.
            constexpr C kWhole = C(sizeof(C) == 4 ? 12582912.0 : 6755399441055744.0);
            constexpr int32_t kLevels = 1 << 8 * sizeof(T);
            constexpr int32_t kLeast = T(-1) < T(1) ? -kLevels / 2 : 0;
            constexpr int64_t kLanes = kVectorBytes / sizeof(C);
            using Whole = Vector<int32_t, kLanes>;
            const Whole least = Whole{} + kLeast, most = least + (kLevels - 1);
#pragma GCC unroll 8
            for (int64_t r = 0; r < kRows; r += kLanes) {
                const auto sum = (read<Vector<C, kLanes>>(sums + r) + kWhole) - kWhole;
                Whole whole = __builtin_convertvector(sum, Whole);
                whole = whole < least ? least : whole;
                whole = whole < most ? whole : most;
                const auto narrow = __builtin_convertvector(whole, Vector<T, kLanes>);
                std::memcpy(to + r, &narrow, sizeof(narrow));
            }
        }
    }

    static void turn(const C (*lines)[kTurned], int64_t n, int64_t rows, C* turned) {
        constexpr int64_t kLanes = kVectorBytes / sizeof(C);
        for (int64_t i = 0; i < n; i += kLanes)
            for (int64_t r = 0; r < rows; r += kLanes)
                transpose_square(&lines[r][i], kTurned, turned + i * kRows + r, kRows);
    }

    void prefetch(int64_t place) const { __builtin_prefetch(out.at(place), 1); }

    // Transposes `n` columns into `rows` rows of the result that are `step` apart, from `place` on.
    void store(const T* columns, int64_t n, int64_t rows, int64_t place, int64_t step) const {
        if constexpr (kSame<T, C>) {
            constexpr int64_t kLanes = kVectorBytes / sizeof(C);
            alignas(64) C made[kRows][kTurned];
            for (int64_t r = 0; r < rows; r += kLanes)
                for (int64_t i = 0; i < n; i += kLanes)
                    transpose_square(columns + i * kRows + r, kRows, &made[r][i], kTurned);
            for (int64_t r = 0; r < rows; ++r) {
                if (divided)
                    for (int64_t i = 0; i < n; ++i) made[r][i] = made[r][i] / C(255);
                out.store(made[r], n, place + r * step, 1);
            }
        } else {
            T* target = reinterpret_cast<T*>(out.at(place));
            int64_t i = 0;
            if constexpr (sizeof(T) == 2)
                for (; n - i >= 16 && rows == kRows; i += 16)
                    for (int64_t r = 0; r < kRows; r += 8)
                        transpose_16x8(reinterpret_cast<const int16_t*>(columns) + i * kRows + r,
                                       kRows, reinterpret_cast<int16_t*>(target) + r * step + i,
                                       step);
            for (; i < n; ++i)
                for (int64_t r = 0; r < rows; ++r) target[r * step + i] = columns[i * kRows + r];
        }
    }
};

template <class C>
struct NumberAxis : AxisOf<C> {
    NumberAxis(const Axis& axis, const Resize& resize, char* memory)
        : AxisOf<C>(axis, resize, memory) {
        for (int64_t i = 0; i < resize.out * axis.taps; ++i) this->weights[i] = C(axis.weights[i]);
    }
};

template <class C>
void resize_numbers(const Sample& sample, const Resize& down, const Resize& across, const Axis& ys,
                    const Axis& xs, bool flip, const Memory& out) {
    const Scratch tables(AxisOf<C>::bytes(ys, down) + AxisOf<C>::bytes(xs, across));
    const NumberAxis<C> rows(ys, down, tables.as<char>());
    const NumberAxis<C> columns(xs, across, tables.as<char>() + AxisOf<C>::bytes(ys, down));
    const bool divided = sample.image.element == kUInt8;
    const auto resize = [&](const auto& arithmetic) {
        resize_planes(arithmetic, sample, rows, columns, flip);
    };
    if (!is_integer(sample.image.element)) return resize(Numbers<C, C, false>{out, divided});
    if (!is_integer(out.element)) return resize(Numbers<C, C, true>{out, divided});
    if constexpr (sizeof(C) == 4)
        resize(Numbers<C, uint8_t, true>{out, divided});
    else if (out.element == kUInt16)
        resize(Numbers<C, uint16_t, true>{out, divided});
    else
        resize(Numbers<C, int16_t, true>{out, divided});
}

SIMMIM_END

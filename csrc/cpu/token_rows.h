// Whole token rows, moved between tensors of any element type.
#pragma once

#include "cpu/rows.h"

SIMMIM_BEGIN

// out = a + b, rounded once, for rows of one element type.
template <class C, class T>
inline void write_sum(const char* a, const char* b, char* out, int64_t n) {
    const T* __restrict__ first = reinterpret_cast<const T*>(a);
    const T* __restrict__ second = reinterpret_cast<const T*>(b);
    T* __restrict__ to = reinterpret_cast<T*>(out);
    for (int64_t i = 0; i < n; ++i)
        to[i] = Narrow<T>::from(C(widen(first[i])) + C(widen(second[i])));
}

// target row = source row (+ pos row), converted; `stride` apart in the source. Rows of one type
// take one loop; others are converted through a buffer.
template <class C>
inline void write_row(const Memory& source, int64_t offset, int64_t stride, const Memory& pos,
                      int64_t pos_offset, const Memory& target, int64_t target_offset,
                      int64_t width) {
    const bool plain = stride == 1 && source.element == target.element;
    if (plain && !pos.base) {
        std::memcpy(target.at(target_offset), source.at(offset),
                    size_t(width * element_size(source.element)));
        return;
    }
    if (plain && pos.element == target.element) {
        const char *from = source.at(offset), *added = pos.at(pos_offset);
        char* to = target.at(target_offset);
        switch (target.element) {
            case kFloat32:
                return write_sum<C, float>(from, added, to, width);
            case kFloat64:
                return write_sum<double, double>(from, added, to, width);
            case kBFloat16:
                return write_sum<C, BFloat16>(from, added, to, width);
            default:
                return write_sum<C, Float16>(from, added, to, width);
        }
    }
    C row[kRow], added[kRow];
    for (int64_t d = 0; d < width; d += kRow) {
        const int64_t n = min_of(kRow, width - d);
        source.load(offset + d * stride, stride, n, row);
        if (pos.base) {
            pos.load(pos_offset + d, 1, n, added);
            for (int64_t i = 0; i < n; ++i) row[i] += added[i];
        }
        target.store(row, n, target_offset + d, 1);
    }
}

constexpr int64_t kGroup = 4;  // rows added in the compute type before they reach a double

// sum += `rows` rows, `row_stride` apart.
template <class C, class T>
inline void add_as(const T* from, int64_t row_stride, int64_t rows, int64_t n,
                   double* __restrict__ sum) {
    for (; rows >= kGroup; rows -= kGroup, from += kGroup * row_stride) {
        const T *a = from, *b = a + row_stride, *c = b + row_stride, *d = c + row_stride;
        for (int64_t i = 0; i < n; ++i) {
            sum[i] += double((C(widen(a[i])) + C(widen(b[i]))) + (C(widen(c[i])) + C(widen(d[i]))));
        }
    }
    if (rows >= 2) {
        const T *a = from, *b = a + row_stride;
        for (int64_t i = 0; i < n; ++i) sum[i] += double(C(widen(a[i])) + C(widen(b[i])));
        rows -= 2;
        from += 2 * row_stride;
    }
    for (int64_t i = 0; rows > 0 && i < n; ++i) sum[i] += double(widen(from[i]));
}

// sum += `rows` rows of the source, `row_stride` apart, with elements `stride` apart. Groups of
// rows meet in float32 (four, two, then one), which is exact to a rounding or two and saves most
// of the conversions; beyond a group all sums are float64.
template <class C>
inline void add_rows(const Memory& source, int64_t offset, int64_t row_stride, int64_t rows,
                     int64_t stride, int64_t width, double* sum) {
    const char* from = source.at(offset);
    if (stride == 1) {
        switch (source.element) {
            case kFloat32:
                return add_as<C>(reinterpret_cast<const float*>(from), row_stride, rows, width,
                                 sum);
            case kFloat64:
                return add_as<double>(reinterpret_cast<const double*>(from), row_stride, rows,
                                      width, sum);
            case kBFloat16:
                return add_as<C>(reinterpret_cast<const BFloat16*>(from), row_stride, rows, width,
                                 sum);
            default:
                return add_as<C>(reinterpret_cast<const Float16*>(from), row_stride, rows, width,
                                 sum);
        }
    }
    C row[kRow];
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t d = 0; d < width; d += kRow) {
            const int64_t n = min_of(kRow, width - d);
            source.load(offset + r * row_stride + d * stride, stride, n, row);
            for (int64_t i = 0; i < n; ++i) sum[d + i] += double(row[i]);
        }
    }
}

// sum += source row.
template <class C>
inline void add_row(const Memory& source, int64_t offset, int64_t stride, int64_t width,
                    double* sum) {
    add_rows<C>(source, offset, 0, 1, stride, width, sum);
}

SIMMIM_END

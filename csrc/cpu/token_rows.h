// Copies, additions and sums of whole token rows of any element type.
#pragma once

#include "cpu/rows.h"
#include "cpu/vectors.h"

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

// target row = source row (+ pos row), converted. `stride` is the step between a source row's
// elements. Rows of one type take one loop; others are converted through a buffer.
template <class C>
inline void write_row(const Memory& source, int64_t offset, int64_t stride, const Memory& pos,
                      int64_t pos_offset, const Memory& target, int64_t target_offset,
                      int64_t width, bool stream) {
    const bool plain = stride == 1 && source.element == target.element;
    if (plain && !pos.base) {
        const int64_t bytes = width * element_size(source.element);
        if (stream) return stream_copy(target.at(target_offset), source.at(offset), bytes);
        std::memcpy(target.at(target_offset), source.at(offset), size_t(bytes));
        return;
    }
    if (plain && pos.element == target.element && !stream) {
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
    alignas(64) char line[kRow * sizeof(C)];
    for (int64_t d = 0; d < width; d += kRow) {
        const int64_t n = min_of(kRow, width - d);
        source.load(offset + d * stride, stride, n, row);
        if (pos.base) {
            pos.load(pos_offset + d, 1, n, added);
            for (int64_t i = 0; i < n; ++i) row[i] += added[i];
        }
        if (stream) {
            Memory{line, target.element}.store(row, n, 0, 1);
            stream_copy(target.at(target_offset + d), line, n * element_size(target.element));
        } else {
            target.store(row, n, target_offset + d, 1);
        }
    }
}

constexpr int64_t kGroup = 4;  // rows summed in the compute type before they are added in double

// sum += `count` rows, at most kGroup, while the `next` rows to be added are prefetched.
template <class C, class T, int64_t count>
inline void add_group(const T* const* rows, const T* const* next, int64_t n, double* sum) {
    constexpr int64_t kWidth = kVectorBytes / int64_t(sizeof(C));
    typedef Vector<double, kWidth> Sum;
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) {
        auto part = load_vector<C, kWidth>(rows[0] + i);
        for (int64_t r = 1; r < count; ++r) part += load_vector<C, kWidth>(rows[r] + i);
        for (int64_t r = 0; r < count; ++r) __builtin_prefetch(next[r] + i, 0, 2);
        const Sum total = read<Sum>(sum + i) + __builtin_convertvector(part, Sum);
        std::memcpy(sum + i, &total, sizeof(total));
    }
    for (; i < n; ++i) {
        C part = widen(rows[0][i]);
        for (int64_t r = 1; r < count; ++r) part += C(widen(rows[r][i]));
        sum[i] += double(part);
    }
}

template <class C, class T>
inline void add_as(const T* base, const int64_t* offsets, int64_t count, int64_t n, double* sum) {
    const T *rows[kGroup], *next[kGroup];
    for (int64_t first = 0; first < count; first += kGroup) {
        for (int64_t r = 0; r < kGroup; ++r) {
            rows[r] = base + offsets[min_of(first + r, count - 1)];
            next[r] = base + offsets[min_of(first + kGroup + r, count - 1)];
        }
        switch (min_of(kGroup, count - first)) {
            case 1:
                add_group<C, T, 1>(rows, next, n, sum);
                break;
            case 2:
                add_group<C, T, 2>(rows, next, n, sum);
                break;
            case 3:
                add_group<C, T, 3>(rows, next, n, sum);
                break;
            default:
                add_group<C, T, 4>(rows, next, n, sum);
        }
    }
}

// sum += rows of the source at `offsets`, with elements `stride` apart. Up to kGroup rows are
// summed in float32, which saves most of the conversions for one or two roundings; all else is
// float64.
template <class C>
inline void add_rows(const Memory& source, const int64_t* offsets, int64_t count, int64_t stride,
                     int64_t width, double* sum) {
    const char* base = source.base;
    if (stride == 1) {
        switch (source.element) {
            case kFloat32:
                return add_as<C>(reinterpret_cast<const float*>(base), offsets, count, width, sum);
            case kFloat64:
                return add_as<double>(reinterpret_cast<const double*>(base), offsets, count, width,
                                      sum);
            case kBFloat16:
                return add_as<C>(reinterpret_cast<const BFloat16*>(base), offsets, count, width,
                                 sum);
            default:
                return add_as<C>(reinterpret_cast<const Float16*>(base), offsets, count, width,
                                 sum);
        }
    }
    C row[kRow];
    for (int64_t r = 0; r < count; ++r) {
        for (int64_t d = 0; d < width; d += kRow) {
            const int64_t n = min_of(kRow, width - d);
            source.load(offsets[r] + d * stride, stride, n, row);
            for (int64_t i = 0; i < n; ++i) sum[d + i] += double(row[i]);
        }
    }
}

// sum += source row.
template <class C>
inline void add_row(const Memory& source, int64_t offset, int64_t stride, int64_t width,
                    double* sum) {
    add_rows<C>(source, &offset, 1, stride, width, sum);
}

SIMMIM_END

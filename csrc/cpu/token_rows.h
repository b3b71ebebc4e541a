// Whole token rows, moved between tensors of any element type.
#pragma once

#include "cpu/rows.h"

SIMMIM_BEGIN

// target row = source row (+ pos row), converted; `stride` apart in the source.
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

template <class C>
inline void add_row(const Memory& source, int64_t offset, int64_t stride, int64_t width,
                    double* sum) {
    C row[kRow];
    for (int64_t d = 0; d < width; d += kRow) {
        const int64_t n = min_of(kRow, width - d);
        source.load(offset + d * stride, stride, n, row);
        for (int64_t i = 0; i < n; ++i) sum[d + i] += double(row[i]);
    }
}

SIMMIM_END

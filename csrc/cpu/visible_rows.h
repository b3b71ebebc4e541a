// Row numbers in a compact matrix of the visible tokens only, in ascending position, sample after
// sample. The visible tokens of one grid row occupy consecutive rows.
#pragma once

#include "common/grid.h"

SIMMIM_BEGIN

struct VisibleRows {
    MaskGrid mask;
    int64_t* starts;  // visible units before each row of units, and their total at the end

    static int64_t scratch_bytes(const Tensor& mask) {
        return (mask.size(0) * extent_from(mask, 1).rows() + 1) * int64_t(sizeof(int64_t));
    }

    // Fills `starts` and returns the number of visible tokens.
    int64_t count(int64_t batch) const {
        const int64_t rows = batch * mask.units.rows(), width = mask.units.width;
        int64_t units = 0;
        for (int64_t r = 0; r < rows; ++r) {
            starts[r] = units;
            for (int64_t x = 0; x < width; ++x) units += mask.mask[r * width + x] == 0;
        }
        starts[rows] = units;
        return units * mask.scale.cells();
    }

    // The row of the first visible token in token row y of sample b.
    int64_t first(int64_t b, int64_t y) const {
        const int64_t r = b * mask.units.rows() + y / mask.scale.height;
        const int64_t within = y % mask.scale.height;
        return (starts[r] * mask.scale.height + (starts[r + 1] - starts[r]) * within) *
               mask.scale.width;
    }

    const uint8_t* units(int64_t b, int64_t y) const { return mask.row(b, 0, y); }
};

SIMMIM_END

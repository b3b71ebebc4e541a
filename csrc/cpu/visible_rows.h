// Rows of a compact matrix that holds the visible tokens alone: ascending positions, sample after
// sample. A token row of the grid fills consecutive rows.
#pragma once

#include "common/types.h"

SIMMIM_BEGIN

struct VisibleRows {
    const uint8_t* mask;  // batch x grid_h x grid_w, nonzero = masked
    int64_t grid_h, grid_w;
    int64_t sy, sx;   // tokens in a mask unit
    int64_t* starts;  // visible units before each row of units; batch * grid_h + 1 numbers

    // Fills `starts`; the number of visible tokens.
    int64_t count(int64_t batch) const {
        int64_t units = 0;
        for (int64_t r = 0; r < batch * grid_h; ++r) {
            starts[r] = units;
            for (int64_t x = 0; x < grid_w; ++x) units += mask[r * grid_w + x] == 0;
        }
        starts[batch * grid_h] = units;
        return units * sy * sx;
    }

    // The row of the first visible token in token row y of sample b.
    int64_t first(int64_t b, int64_t y) const {
        const int64_t r = b * grid_h + y / sy;
        return (starts[r] * sy + (starts[r + 1] - starts[r]) * (y % sy)) * sx;
    }

    const uint8_t* units(int64_t b, int64_t y) const {
        return mask + (b * grid_h + y / sy) * grid_w;
    }
};

SIMMIM_END

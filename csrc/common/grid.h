// Index arithmetic between the mask grid, the token grid and the pixels; its Python twin is
// simmim_kernels/grid.py. Every size and offset is 64 bits wide.
#pragma once

#include "common/types.h"

SIMMIM_BEGIN

// Which cell of a coarse grid holds position (y, x) of a grid that is `sy` by `sx` times finer.
struct CoarseGrid {
    int64_t width;  // cells in a row of the coarse grid
    int64_t sy, sx;

    SIMMIM_HD int64_t cell(int64_t y, int64_t x) const { return (y / sy) * width + x / sx; }

    // The same in 32 bits, which a GPU divides several times faster, for grids below 2^31 cells.
    SIMMIM_HD int32_t cell32(int32_t y, int32_t x) const {
        return (y / int32_t(sy)) * int32_t(width) + x / int32_t(sx);
    }
};

SIMMIM_END

// Runs of neighbouring units that are all masked or all visible, which a kernel handles in one
// step.
#pragma once

#include "common/types.h"

SIMMIM_BEGIN

// Calls run(x0, x1, masked) for each maximal run of equal units in one row of the mask grid, in
// positions of a grid that is `scale` times finer.
template <class Run>
inline void for_each_run(const uint8_t* units, int64_t grid_w, int64_t scale, const Run& run) {
    for (int64_t first = 0, last; first < grid_w; first = last) {
        for (last = first + 1; last < grid_w && units[last] == units[first];) ++last;
        run(first * scale, last * scale, units[first] != 0);
    }
}

SIMMIM_END

// A mask of units, looked at as a mask of pixels.
#pragma once

#include "common/grid.h"

SIMMIM_BEGIN

// The mask of one sample over its pixels.
struct PixelMask {
    const uint8_t* units;
    MaskGrid grid;

    bool at(int64_t y, int64_t x) const { return units[grid.unit(0, y, x)]; }

    // The end, at most `end`, of the run of equally masked pixels that begins at (y, x).
    int64_t run_end(int64_t y, int64_t x, int64_t end) const {
        const uint8_t* row = units + grid.unit(0, y, 0);
        const int64_t last = (end - 1) / grid.scale.width;
        int64_t cell = x / grid.scale.width;
        const bool value = row[cell];
        const uint64_t eight = value ? 0x0101010101010101u : 0;
        for (++cell; cell <= last;) {
            uint64_t next;
            if (cell + 7 <= last && (std::memcpy(&next, row + cell, 8), next == eight)) {
                cell += 8;
            } else if (bool(row[cell]) == value) {
                ++cell;
            } else {
                return cell * grid.scale.width;
            }
        }
        return end;
    }

    // 1 if the whole square of pixels is masked, 0 if all of it is visible, -1 if it is mixed.
    int square(int64_t y, int64_t x, int64_t size) const {
        const bool value = at(y, x);
        if (grid.scale.height % size == 0 && grid.scale.width % size == 0) return value;
        for (int64_t row = y; row < y + size;
             row = (row / grid.scale.height + 1) * grid.scale.height) {
            if (at(row, x) != value || run_end(row, x, x + size) < x + size) return -1;
        }
        return value;
    }
};

SIMMIM_END

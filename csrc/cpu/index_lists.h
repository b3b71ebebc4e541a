// The two index lists of a mask.
#pragma once

#include "common/types.h"

SIMMIM_BEGIN

// The ascending positions of the masked and of the visible units of one sample. Written without a
// branch: a random mask would have it mispredicted at every other unit.
inline void write_index_lists(const uint8_t* mask, int64_t units, int32_t* masked,
                              int32_t* visible) {
    for (int64_t i = 0; i < units; ++i) {
        const int64_t take = mask[i];
        *(take ? masked : visible) = int32_t(i);
        masked += take;
        visible += 1 - take;
    }
}

SIMMIM_END

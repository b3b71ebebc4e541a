// Which tokens the head predicts: the masked ones, ascending, sample after sample.
#include "common/grid.h"
#include "cpu/address.h"

SIMMIM_BEGIN

int64_t masked_tokens(Address mask, int64_t grid_h, int64_t grid_w, Address list, int64_t count,
                      int64_t batch, int64_t h, int64_t w) {
    const uint8_t* units = mask.as<uint8_t>();
    int32_t* position = list.as<int32_t>();
    const CoarseGrid grid{grid_w, h / grid_h, w / grid_w};
    const int64_t cells = grid_h * grid_w;
    int64_t found = 0;
    for (int64_t i = 0; i < batch * cells; ++i) found += units[i] != 0;
    found *= grid.sy * grid.sx;
    if (found > count) return found;
    int64_t row = 0;
    for (int64_t b = 0; b < batch; ++b) {
        for (int64_t y = 0; y < h; ++y) {
            for (int64_t x = 0; x < w; ++x) {
                if (units[b * cells + grid.cell(y, x)])
                    position[row++] = int32_t((b * h + y) * w + x);
            }
        }
    }
    for (; row < count; ++row) position[row] = -1;
    return found;
}

SIMMIM_END

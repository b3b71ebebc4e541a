// Which tokens the head predicts: the masked ones, ascending, sample after sample.
#include "common/grid.h"

SIMMIM_BEGIN

int64_t masked_tokens(const Tensor& mask, int64_t h, int64_t w, const Tensor& positions) {
    const MaskGrid grid = mask_over(mask, {1, h, w});
    const int64_t batch = mask.size(0), count = positions.size(0);
    int32_t* position = positions.as<int32_t>();
    int64_t found = 0;
    for (int64_t i = 0; i < batch * grid.units.cells(); ++i) found += grid.mask[i] != 0;
    found *= grid.scale.cells();
    if (found > count) return found;
    int64_t row = 0;
    for (int64_t b = 0; b < batch; ++b) {
        const uint8_t* units = grid.sample(b);
        for (int64_t y = 0; y < h; ++y) {
            for (int64_t x = 0; x < w; ++x) {
                if (units[grid.unit(0, y, x)]) position[row++] = int32_t((b * h + y) * w + x);
            }
        }
    }
    for (; row < count; ++row) position[row] = -1;
    return found;
}

SIMMIM_END

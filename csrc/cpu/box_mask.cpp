// One rectangle of masked units per sample, at a random place or in the middle.
#include <cstring>

#include "common/grid.h"
#include "common/philox.h"
#include "cpu/index_lists.h"
#include "cpu/parallel.h"

SIMMIM_BEGIN

void box_mask(const Tensor& ids, int64_t box_h, int64_t box_w, bool center, uint64_t seed,
              uint32_t epoch, const Tensor& mask, const Tensor& masked, const Tensor& visible,
              int threads) {
    const int64_t batch = mask.size(0), count = box_h * box_w;
    const Extent grid = extent_from(mask, 1);
    const int64_t units = grid.cells();
    parallel_for(batch, 2 * batch * units, threads, [&](int64_t b) {
        int64_t top = (grid.height - box_h) / 2, left = (grid.width - box_w) / 2;
        if (!center) {
            const uint64_t id = uint64_t(ids.as<int64_t>()[b]);
            const PhiloxBlock random = philox(kBoxStream, epoch, uint32_t(id), uint32_t(id >> 32),
                                              uint32_t(seed), uint32_t(seed >> 32));
            top = uniform(random.word[0], grid.height - box_h + 1);
            left = uniform(random.word[1], grid.width - box_w + 1);
        }
        uint8_t* row = mask.as<uint8_t>() + b * units;
        std::memset(row, 0, size_t(units));
        for (int64_t y = top; y < top + box_h; ++y) {
            std::memset(row + y * grid.width + left, 1, size_t(box_w));
        }
        write_index_lists(row, units, count, masked.as<int32_t>() + b * count,
                          visible.as<int32_t>() + b * (units - count));
    });
}

SIMMIM_END

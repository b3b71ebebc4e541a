// BEiT's rectangles, added until exactly `count` units of a sample are masked.
#include <cstring>

#include "common/block.h"
#include "common/grid.h"
#include "cpu/index_lists.h"
#include "cpu/parallel.h"

SIMMIM_BEGIN

namespace {

// Masks the first `wanting` visible ones of `n` units and counts `wanting` down.
void take(uint8_t* units, int64_t n, int64_t& wanting) {
    for (int64_t i = 0; i < n; ++i) {
        const bool now = !units[i] && wanting > 0;
        units[i] |= uint8_t(now);
        wanting -= now;
    }
}

}  // namespace

void block_mask(const Tensor& ids, const Tensor& root_aspect, int64_t least, int64_t widest,
                uint64_t seed, uint32_t epoch, const Tensor& mask, const Tensor& masked,
                const Tensor& visible, int threads) {
    const int64_t batch = mask.size(0), count = masked.size(1);
    const Extent grid = extent_from(mask, 1);
    const int64_t units = grid.cells();
    parallel_for(batch, 8 * batch * units, threads, [&](int64_t b) {
        const uint64_t id = uint64_t(ids.as<int64_t>()[b]);
        uint8_t* row = mask.as<uint8_t>() + b * units;
        std::memset(row, 0, size_t(units));
        int64_t wanting = count;
        for (int attempt = 0; attempt < kBlockAttempts && wanting > 0; ++attempt) {
            const PhiloxBlock random =
                philox(kBlockStream + uint32_t(attempt), epoch, uint32_t(id), uint32_t(id >> 32),
                       uint32_t(seed), uint32_t(seed >> 32));
            const int64_t room = min_of(wanting, widest);
            const Block block = draw_block(random, least, room > least ? room : least, grid.height,
                                           grid.width, root_aspect.as<int64_t>());
            for (int64_t y = block.top; y < block.top + block.h; ++y) {
                take(row + y * grid.width + block.left, block.w, wanting);
            }
        }
        take(row, units, wanting);
        write_index_lists(row, units, count, masked.as<int32_t>() + b * count,
                          visible.as<int32_t>() + b * (units - count));
    });
}

SIMMIM_END

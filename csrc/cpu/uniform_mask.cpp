// As many masked units in every 2 x 2: those with the smallest of its four Philox words.
#include "common/grid.h"
#include "common/philox.h"
#include "cpu/index_lists.h"
#include "cpu/parallel.h"

SIMMIM_BEGIN

void uniform_mask(const Tensor& ids, int64_t hidden, uint64_t seed, uint32_t epoch,
                  const Tensor& mask, const Tensor& masked, const Tensor& visible, int threads) {
    const int64_t batch = mask.size(0), count = masked.size(1);
    const Extent grid = extent_from(mask, 1);
    const int64_t units = grid.cells(), width = grid.width;
    parallel_for(batch, 8 * batch * units, threads, [&](int64_t b) {
        const uint64_t id = uint64_t(ids.as<int64_t>()[b]);
        uint8_t* row = mask.as<uint8_t>() + b * units;
        uint32_t block = kUniformStream;
        for (int64_t y = 0; y < grid.height; y += 2) {
            for (int64_t x = 0; x < width; x += 2) {
                const PhiloxBlock random = philox(block++, epoch, uint32_t(id), uint32_t(id >> 32),
                                                  uint32_t(seed), uint32_t(seed >> 32));
                for (int i = 0; i < 4; ++i) {
                    int rank = 0;
                    for (int j = 0; j < 4; ++j)
                        rank += random.word[j] < random.word[i] ||
                                (random.word[j] == random.word[i] && j < i);
                    row[(y + i / 2) * width + x + i % 2] = uint8_t(rank < hidden);
                }
            }
        }
        write_index_lists(row, units, count, masked.as<int32_t>() + b * count,
                          visible.as<int32_t>() + b * (units - count));
    });
}

SIMMIM_END

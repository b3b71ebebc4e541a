// The rectangles of block-wise masks: whole numbers only, so that every backend draws the same.
#pragma once

#include "common/philox.h"

SIMMIM_BEGIN

constexpr int kBlockAttempts = 256;  // twin: BLOCK_ATTEMPTS in backends/_block.py

struct Block {
    int64_t top, left, h, w;
    bool fits;
};

// floor(sqrt(n)) for n < 2^48.
SIMMIM_HD int64_t whole_root(uint64_t n) {
    uint64_t root = 0;
    for (int bit = 23; bit >= 0; --bit) {
        const uint64_t candidate = root | (uint64_t(1) << bit);
        if (candidate * candidate <= n) root = candidate;
    }
    return int64_t(root);
}

// The rectangle that four random words choose, of `least` to `most` units before its sides are
// rounded. `root_aspect` holds 2^16 times the roots of 64 aspect ratios.
SIMMIM_HD Block draw_block(const PhiloxBlock& random, int64_t least, int64_t most, int64_t grid_h,
                           int64_t grid_w, const int64_t* root_aspect) {
    const int64_t area = least + uniform(random.word[0], most - least + 1);
    const int64_t side = whole_root(uint64_t(area) << 16);
    const int64_t aspect = random.word[1] >> 26;
    const int64_t h = (side * root_aspect[aspect] + (1 << 23)) >> 24;
    const int64_t w = (side * root_aspect[63 - aspect] + (1 << 23)) >> 24;
    const bool fits =
        h <= grid_h && w <= grid_w && h * w >= least && 10 * h >= 3 * w && 10 * w >= 3 * h;
    if (!fits) return {0, 0, 0, 0, false};
    return {uniform(random.word[2], grid_h - h + 1), uniform(random.word[3], grid_w - w + 1), h, w,
            true};
}

SIMMIM_END

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11).
#pragma once

#include "common/types.h"

SIMMIM_BEGIN

struct PhiloxBlock {
    uint32_t word[4];
};

// One block of four random words for a 128-bit counter and a 64-bit key.
SIMMIM_HD PhiloxBlock philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                             uint32_t k1) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t(0xD2511F53u) * c0;
        const uint64_t p1 = uint64_t(0xCD9E8D57u) * c2;
        const uint32_t n0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
        const uint32_t n2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
        c1 = uint32_t(p1);
        c3 = uint32_t(p0);
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// First counter word of a strategy's first block; random_mask counts from 0 and stays below 2^29,
// uniform_mask has as many of its own, each other strategy 2^24. Twins: backends/_seed.py.
constexpr uint32_t kBoxStream = 0x81000000u;
constexpr uint32_t kBlockStream = 0x82000000u;
constexpr uint32_t kCropStream = 0x83000000u;
constexpr uint32_t kUniformStream = 0xA0000000u;

// A whole number in [0, n) from a random word; n < 2^31. No number is likelier than another by more
// than 2^-32.
SIMMIM_HD int64_t uniform(uint32_t word, int64_t n) {
    return int64_t((uint64_t(word) * uint64_t(n)) >> 32);
}

SIMMIM_END

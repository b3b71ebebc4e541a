// The two index lists of a mask.
#pragma once

#include <cstring>

#include "common/types.h"

SIMMIM_BEGIN

// For each byte, the positions of its set bits, and how many there are.
struct BitPositions {
    uint8_t at[256][8];
    uint8_t count[256];

    constexpr BitPositions() : at(), count() {
        for (int byte = 0; byte < 256; ++byte) {
            for (int bit = 0; bit < 8; ++bit) {
                if (byte >> bit & 1) at[byte][count[byte]++] = uint8_t(bit);
            }
        }
    }
};
constexpr BitPositions kBitPositions;

// The positions of one kind of units, as they are found.
struct IndexList {
    int32_t* next;
    int32_t* end;

    // Adds `first` plus the positions of the set bits of `byte`. Eight numbers are written at once
    // while there is room for them; what is too many is overwritten by what follows.
    void add(int32_t first, int byte) {
        const int64_t count = kBitPositions.count[byte];
        uint8_t at[8];  // a copy, which the stores below can't change
        std::memcpy(at, kBitPositions.at[byte], 8);
        if (end - next >= 8) {
            for (int i = 0; i < 8; ++i) next[i] = first + at[i];
        } else {
            for (int64_t i = 0; i < count; ++i) next[i] = first + at[i];
        }
        next += count;
    }
};

// The ascending positions of the masked and of the visible units of one sample. Eight units at a
// time through a table: a branch for each unit of a random mask would be mispredicted at every
// other one, and made the lists cost more than all the random numbers.
inline void write_index_lists(const uint8_t* mask, int64_t units, int64_t count, int32_t* masked,
                              int32_t* visible) {
    IndexList hidden{masked, masked + count}, shown{visible, visible + units - count};
    int64_t i = 0;
    for (; i + 8 <= units; i += 8) {
        uint64_t bytes = 0;
        for (int j = 0; j < 8; ++j) bytes |= uint64_t(mask[i + j]) << (8 * j);
        const int bits = int(bytes * 0x0102040810204080u >> 56);  // one bit of each byte
        hidden.add(int32_t(i), bits);
        shown.add(int32_t(i), bits ^ 0xFF);
    }
    int bits = 0;
    for (int64_t j = i; j < units; ++j) bits |= mask[j] << (j - i);
    hidden.add(int32_t(i), bits);
    shown.add(int32_t(i), bits ^ ((1 << (units - i)) - 1));
}

SIMMIM_END

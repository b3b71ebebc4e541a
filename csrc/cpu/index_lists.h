// The two index lists of a mask.
#pragma once

#include <cstring>

#if defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#endif

#include "common/types.h"

SIMMIM_BEGIN

#if defined(__AVX512BW__) && defined(__AVX512VL__)

// Both lists of one sample, sixteen units at a time, by AVX-512's compress instruction, which
// compilers don't use for such a loop (measured: a mask of 14 x 14 units with its lists is a
// quarter faster than with the table below).
inline void write_index_lists(const uint8_t* mask, int64_t units, int64_t count, int32_t* masked,
                              int32_t* visible) {
    constexpr __mmask16 kAll = 0xFFFF;
    int32_t *const masked_end = masked + count, *const visible_end = visible + units - count;
    const auto add = [](int32_t*& next, const int32_t* end, __mmask16 kind, __m512i at) {
        const int found = __builtin_popcount(kind);
        const __mmask16 room = end - next >= 16 ? kAll : __mmask16((1u << found) - 1);
        _mm512_mask_storeu_epi32(next, room, _mm512_maskz_compress_epi32(kind, at));
        next += found;
    };
    __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t i = 0; i < units; i += 16) {
        const __mmask16 here = units - i >= 16 ? kAll : __mmask16((1u << (units - i)) - 1);
        const __m128i cells = _mm_maskz_loadu_epi8(here, mask + i);
        const __mmask16 bits = _mm_test_epi8_mask(cells, cells);
        add(masked, masked_end, bits, at);
        add(visible, visible_end, here & __mmask16(~bits), at);
        at = _mm512_maskz_add_epi32(kAll, at, _mm512_set1_epi32(16));
    }
}

#else

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

// A growing list of positions.
struct IndexList {
    int32_t* next;
    int32_t* end;

    // Appends `first` plus the positions of the set bits of `byte`. Where there is room, eight
    // numbers are written at once; the excess is overwritten by the next call.
    void add(int32_t first, int byte) {
        const int64_t count = kBitPositions.count[byte];
        uint8_t at[8];  // a copy, because the compiler assumes that the stores below may alias it
        std::memcpy(at, kBitPositions.at[byte], 8);
        if (end - next >= 8) {
            for (int i = 0; i < 8; ++i) next[i] = first + at[i];
        } else {
            for (int64_t i = 0; i < count; ++i) next[i] = first + at[i];
        }
        next += count;
    }
};

// The ascending positions of the masked and of the visible units of one sample, eight units at a
// time through a table. A branch for each unit of a random mask is mispredicted half the time, and
// made the lists cost more than all the random numbers.
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

#endif

SIMMIM_END

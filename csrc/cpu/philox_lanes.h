// Philox blocks of consecutive counters, computed in vectors.
#pragma once

#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "common/types.h"

SIMMIM_BEGIN

constexpr int kPhiloxWords = 64;  // written at a time

// Each 64-bit lane holds a 32-bit word in its low half; the high half is undefined.
#if defined(__AVX512F__)
typedef uint64_t WordLanes __attribute__((vector_size(64)));
#elif defined(__AVX2__)
typedef uint64_t WordLanes __attribute__((vector_size(32)));
#else
typedef uint64_t WordLanes __attribute__((vector_size(16)));
#endif
constexpr int kWordLanes = int(sizeof(WordLanes) / 8);

// The 64-bit products of the low words, by intrinsics: compilers don't see that one instruction is
// enough, and the plain loop was six to ten times slower.
inline WordLanes multiply_words(WordLanes a, WordLanes b) {
#if defined(__AVX512F__)
    // With a mask of all lanes: GCC 12 warns of its own header's unmasked form.
    return WordLanes(_mm512_maskz_mul_epu32(0xFF, __m512i(a), __m512i(b)));
#elif defined(__AVX2__)
    return WordLanes(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#elif defined(__SSE2__)
    return WordLanes(_mm_mul_epu32(__m128i(a), __m128i(b)));
#else
    return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// The words of kPhiloxWords / 4 blocks: counters (first, c1, c2, c3), (first + 1, c1, c2, c3), ...
inline void philox_words(uint32_t first, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                         uint32_t k1, uint32_t* words) {
    constexpr int kChains = 2;  // independent chains, which hide the latency of multiplications
    const WordLanes none{}, m0 = none + 0xD2511F53u, m1 = none + 0xCD9E8D57u;
    WordLanes lane{};
    for (int i = 0; i < kWordLanes; ++i) lane[i] = uint64_t(i);
    for (int block = 0; block < kPhiloxWords / 4; block += kChains * kWordLanes) {
        WordLanes a[kChains], b[kChains], c[kChains], d[kChains];
        WordLanes key0 = none + k0, key1 = none + k1;
        for (int i = 0; i < kChains; ++i) {
            a[i] = lane + (uint64_t(first) + uint64_t(block + i * kWordLanes));
            b[i] = none + c1;
            c[i] = none + c2;
            d[i] = none + c3;
        }
        for (int round = 0; round < 10; ++round) {
            for (int i = 0; i < kChains; ++i) {
                const WordLanes p0 = multiply_words(a[i], m0), p1 = multiply_words(c[i], m1);
                a[i] = (p1 >> 32) ^ b[i] ^ key0;
                c[i] = (p0 >> 32) ^ d[i] ^ key1;
                b[i] = p1;
                d[i] = p0;
            }
            key0 += 0x9E3779B9u;
            key1 += 0xBB67AE85u;
        }
        for (int i = 0; i < kChains; ++i) {
            const WordLanes front = (a[i] & 0xFFFFFFFFu) | (b[i] << 32);
            const WordLanes back = (c[i] & 0xFFFFFFFFu) | (d[i] << 32);
            uint64_t blocks[2 * kWordLanes];
            for (int j = 0; j < kWordLanes; ++j) {
                blocks[2 * j] = front[j];
                blocks[2 * j + 1] = back[j];
            }
            std::memcpy(words + 4 * (block + i * kWordLanes), blocks, sizeof blocks);
        }
    }
}

SIMMIM_END

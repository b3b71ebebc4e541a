// What resize_rows.h needs of AVX2, which cannot permute words across the halves of a vector: a
// load of 8 words serves 4 outputs, whose taps lie near each other.
#pragma once

#include <immintrin.h>

#include "cpu/fixed_taps.h"

SIMMIM_BEGIN

// Words in a vector; words of a load in the horizontal pass; and pixels of a row that are
// converted together.
constexpr int64_t kWords = 16, kReach = 8, kLifted = 32;

using Words = __m256i;
inline Words load_words(const int16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline void store_words(int16_t* p, Words words) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
}
inline Words all_words(int16_t number) { return _mm256_set1_epi16(number); }
inline Words add_words(Words a, Words b) { return _mm256_add_epi16(a, b); }
// a * b / 2^15, rounded.
inline Words scale_words(Words a, Words b) { return _mm256_mulhrs_epi16(a, b); }

// Two 16-byte halves as one vector.
inline __m256i load_halves(const void* low, const void* high) {
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(low))),
        _mm_loadu_si128(static_cast<const __m128i*>(high)), 1);
}

// Gather tables of the horizontal pass. A block is 16 outputs in the order in which they are
// stored, in four groups of 4; groups 0 and 1 belong to the first half of a vector, 2 and 3 to the
// second. A load of 8 words holds two neighbouring taps of each of a group's outputs. A block's
// table holds
// - the word of the row at which each group's first tap lies, four int32;
// - for vpshufb, where each output's words lie in such a load (groups 0 and 2, then 1 and 3);
// - the weights of the same words, two taps at a time.
class Gathers {
  public:
    static int64_t blocks_of(int64_t out) { return (out + kWords - 1) / kWords; }
    static int64_t bytes(const ByteAxis& xs) { return blocks_of(xs.out) * stride(xs.taps) * 2; }

    Gathers(const ByteAxis& xs, bool flip, char* memory)
        : out_(xs.out), stride_(stride(xs.taps)), tables_(reinterpret_cast<int16_t*>(memory)) {
        for (int64_t place = 0; place < blocks_of(out_) * kWords; place += 4) {
            int64_t outputs[4], begin = xs.extent;
            for (int64_t i = 0; i < 4; ++i) {
                const int64_t there = min_of(place + i, out_ - 1);
                outputs[i] = flip ? out_ - 1 - there : there;
                begin = min_of<int64_t>(begin, xs.first[outputs[i]]);
            }
            const int64_t lane = place % kWords, group = lane / 4;
            int16_t* table = tables_ + place / kWords * stride_;
            const int32_t word = int32_t(begin);
            std::memcpy(table + group * 2, &word, sizeof(word));
            // The place of the group's words in its vectors: those of groups 0 and 2 come first.
            const int64_t at = group % 2 * kWords + group / 2 * 8;
            uint8_t* bytes = reinterpret_cast<uint8_t*>(table + kBegins) + at * 2;
            int16_t* weights = table + kBegins + 2 * kWords + at;
            for (int64_t i = 0; i < 4; ++i) {
                const int64_t offset = xs.first[outputs[i]] - begin;
                possible_ = possible_ && offset + 2 <= kReach;
                for (int64_t b = 0; b < 4; ++b) bytes[i * 4 + b] = uint8_t(offset * 2 + b);
                for (int64_t k = 0; k < xs.taps + xs.taps % 2; ++k)
                    weights[k / 2 * 2 * kWords + i * 2 + k % 2] =
                        k < xs.taps ? xs.weights[outputs[i] * xs.taps + k] : int16_t(0);
            }
        }
    }

    // Whether a load reaches both taps of all outputs of every group.
    bool possible() const { return possible_; }

    // Computes a row of the result of kPixel channels, `plane` bytes apart, from their rows after
    // the vertical pass, `step` words apart. Up to kReach words behind the last one's end are read.
    template <int K, int kBits, int kPixel>
    SIMMIM_INLINE void make_rows(const int16_t* line, int64_t step, uint8_t* out,
                                 int64_t plane) const {
        constexpr int kPairs = (K + 1) / 2;
        const int64_t count = out_, stride = stride_;
        const int16_t* table = tables_;
        for (int64_t at = 0; at < count; at += kWords, table += stride) {
            int32_t begins[4];
            std::memcpy(begins, table, sizeof(begins));
            const int16_t* numbers = table + kBegins;
            const Words places[2] = {load_words(numbers), load_words(numbers + kWords)};
            Words weights[kPairs][2];
#pragma GCC unroll 8
            for (int i = 0; i < 2 * kPairs; ++i)
                weights[i / 2][i % 2] = load_words(numbers + (2 + i) * kWords);
#pragma GCC unroll 3
            for (int c = 0; c < kPixel; ++c) {
                const int16_t* row = line + c * step;
                Words sums[2];
#pragma GCC unroll 2
                for (int h = 0; h < 2; ++h) {
                    const int16_t *low = row + begins[h], *high = row + begins[2 + h];
#pragma GCC unroll 4
                    for (int k = 0; k < kPairs; ++k) {
                        const Words taps = load_halves(low + 2 * k, high + 2 * k);
                        const Words parts =
                            scale_words(_mm256_shuffle_epi8(taps, places[h]), weights[k][h]);
                        sums[h] = k == 0 ? parts : add_words(sums[h], parts);
                    }
                }
                const Words sum = add_words(_mm256_hadd_epi16(sums[0], sums[1]),
                                            _mm256_set1_epi16(1 << (kBits - 1)));
                const Words level = _mm256_srai_epi16(sum, kBits);
                const __m128i levels = _mm_packus_epi16(_mm256_castsi256_si128(level),
                                                        _mm256_extracti128_si256(level, 1));
                uint8_t* to = out + c * plane + at;
                if (at + kWords <= count) {
                    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), levels);
                } else {
                    alignas(16) uint8_t rest[kWords];
                    _mm_store_si128(reinterpret_cast<__m128i*>(rest), levels);
                    std::memcpy(to, rest, size_t(count - at));
                }
            }
        }
    }

  private:
    static constexpr int64_t kBegins = 8;  // words of the four beginnings of a block
    static int64_t stride(int64_t taps) { return kBegins + (2 + (taps + 1) / 2 * 2) * kWords; }

    int64_t out_, stride_;
    bool possible_ = true;
    int16_t* tables_;
};

// Converts `count` pixels of kPixel interleaved bytes to words in units of 1/128, and separates the
// channels: channel c begins at line + c * step.
template <int kPixel>
inline void lift_row(const uint8_t* p, int64_t count, int64_t ahead, int64_t step, int16_t* line) {
    // The bytes of channel c among 16 pixels come from different places of kPixel vectors: which
    // vector holds the byte at a place, and at which place pixel j is.
    alignas(32) static constexpr auto kPlaces = [] {
        struct {
            int8_t from[kPixel][kPixel][32], at[kPixel][32];
        } places{};
        for (int c = 0; c < kPixel; ++c)
            for (int j = 0; j < 32; ++j) {
                const int byte = kPixel * (j % 16) + c;
                places.at[c][j] = int8_t(byte % 16);
                places.from[c][byte / 16][j / 16 * 16 + byte % 16] = int8_t(-1);
            }
        return places;
    }();
    const auto constant = [](const int8_t* bytes) {
        return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
    };
    const int64_t bytes = count * kPixel;
    uint8_t rest[kLifted * kPixel] = {};
    for (int64_t x = 0; x < count; x += kLifted) {
        const uint8_t* from = p + x * kPixel;
        _mm_prefetch(reinterpret_cast<const char*>(from + ahead), _MM_HINT_T0);
        if (x + kLifted > count) {
            std::memcpy(rest, from, size_t(bytes - x * kPixel));
            from = rest;
        }
        __m256i numbers[kPixel];
#pragma GCC unroll 3
        for (int i = 0; i < kPixel; ++i)
            numbers[i] = load_halves(from + 16 * i, from + 16 * (kPixel + i));
#pragma GCC unroll 3
        for (int c = 0; c < kPixel; ++c) {
            __m256i channel = numbers[0];
            if constexpr (kPixel == 3) {
                for (int i = 1; i < kPixel; ++i)
                    channel = _mm256_blendv_epi8(channel, numbers[i], constant(kPlaces.from[c][i]));
                channel = _mm256_shuffle_epi8(channel, constant(kPlaces.at[c]));
            }
            const __m256i low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(channel));
            const __m256i high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(channel, 1));
            store_words(line + c * step + x, _mm256_slli_epi16(low, 7));
            store_words(line + c * step + x + kWords, _mm256_slli_epi16(high, 7));
        }
    }
}

SIMMIM_END

// What resize_rows.h needs of AVX2, which cannot permute words across the halves of a vector: each
// half loads 8 words of its own. In rows of one channel they serve 4 outputs, in rows of three
// interleaved channels one output.
#pragma once

#include <immintrin.h>

#include "cpu/fixed_taps.h"

SIMMIM_BEGIN

// Words in a vector; words of a load in the horizontal pass; and bytes of a row that are converted
// together.
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

// Where place `place` of a row of `out` numbers comes from; places behind its end repeat the last.
inline int64_t output_at(int64_t place, int64_t out, bool flip) {
    const int64_t there = min_of(place, out - 1);
    return flip ? out - 1 - there : there;
}

// Stores the first `count` of 16 bytes.
inline void store_bytes(uint8_t* to, __m128i bytes, int64_t count) {
    if (count >= kWords) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
    } else {
        alignas(16) uint8_t all[kWords];
        _mm_store_si128(reinterpret_cast<__m128i*>(all), bytes);
        std::memcpy(to, all, size_t(count));
    }
}

// Sums with kBits fractional bits, rounded to whole numbers.
template <int kBits>
inline Words round_words(Words sums) {
    return _mm256_srai_epi16(add_words(sums, _mm256_set1_epi16(1 << (kBits - 1))), kBits);
}

// Gather tables of the horizontal pass, for rows of one channel or of three interleaved ones. Each
// kind has the static function `bytes`, the size of the tables, and
// - possible: whether the loads reach the taps of all outputs;
// - make_rows<K, kBits>: computes a row of the result of each channel, `plane` bytes apart, from a
//   row after the vertical pass with K taps. Up to kReach words behind its end are read.
template <int kChannels>
class Gathers;

// A block is 16 outputs in the order in which they are stored, in four groups of 4; groups 0 and 1
// belong to the first half of a vector, 2 and 3 to the second. A load of 8 words holds two
// neighbouring taps of each of a group's outputs, up to a reduction of 2. A block's table holds
// - the word of the row at which each group's first tap lies, four int32;
// - for vpshufb, where each output's words lie in such a load (groups 0 and 2, then 1 and 3);
// - the weights of the same words, two taps at a time.
template <>
class Gathers<1> {
  public:
    static int64_t bytes(const ByteAxis& xs) { return blocks_of(xs.out) * stride(xs.taps) * 2; }

    Gathers(const ByteAxis& xs, bool flip, char* memory)
        : out_(xs.out), stride_(stride(xs.taps)), tables_(reinterpret_cast<int16_t*>(memory)) {
        for (int64_t place = 0; place < blocks_of(out_) * kWords; place += 4) {
            int64_t outputs[4], begin = xs.extent;
            for (int64_t i = 0; i < 4; ++i) {
                outputs[i] = output_at(place + i, out_, flip);
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

    bool possible() const { return possible_; }

    template <int K, int kBits>
    SIMMIM_INLINE void make_rows(const int16_t* line, int64_t, uint8_t* out, int64_t) const {
        constexpr int kPairs = (K + 1) / 2;
        const int64_t count = out_, stride = stride_;
        const int16_t* table = tables_;
        for (int64_t at = 0; at < count; at += kWords, table += stride) {
            int32_t begins[4];
            std::memcpy(begins, table, sizeof(begins));
            const int16_t* numbers = table + kBegins;
            Words sums[2];
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                const Words places = load_words(numbers + h * kWords);
                const int16_t *low = line + begins[h], *high = line + begins[2 + h];
#pragma GCC unroll 4
                for (int k = 0; k < kPairs; ++k) {
                    const Words taps = load_halves(low + 2 * k, high + 2 * k);
                    const Words parts = scale_words(_mm256_shuffle_epi8(taps, places),
                                                    load_words(numbers + (2 + 2 * k + h) * kWords));
                    sums[h] = k == 0 ? parts : add_words(sums[h], parts);
                }
            }
            const Words level = round_words<kBits>(_mm256_hadd_epi16(sums[0], sums[1]));
            store_bytes(
                out + at,
                _mm_packus_epi16(_mm256_castsi256_si128(level), _mm256_extracti128_si256(level, 1)),
                count - at);
        }
    }

  private:
    static constexpr int64_t kBegins = 8;  // words of the four beginnings of a block
    static int64_t blocks_of(int64_t out) { return (out + kWords - 1) / kWords; }
    static int64_t stride(int64_t taps) { return kBegins + (2 + (taps + 1) / 2 * 2) * kWords; }

    int64_t out_, stride_;
    bool possible_ = true;
    int16_t* tables_;
};

// A load of 8 words holds two neighbouring taps of one output: the channels of one pixel and those
// of the next. A block is 16 outputs in eight vectors of two: 0 and 4, 1 and 5, 2 and 6, 3 and 7,
// and the same from 8 on. A block's table holds
// - the word of the row at which each output's first tap lies, 16 int32 in the vectors' order;
// - the weights of each vector's words, two taps at a time: a a a b b b 0 0 in each half.
template <>
class Gathers<3> {
  public:
    static int64_t bytes(const ByteAxis& xs) { return blocks_of(xs.out) * stride(xs.taps) * 2; }

    Gathers(const ByteAxis& xs, bool flip, char* memory)
        : out_(xs.out), stride_(stride(xs.taps)), tables_(reinterpret_cast<int16_t*>(memory)) {
        std::memset(memory, 0, size_t(bytes(xs)));
        for (int64_t place = 0; place < blocks_of(out_) * kWords; ++place) {
            const int64_t x = output_at(place, out_, flip), lane = place % kWords;
            const int64_t half = (lane / 8 * 4 + lane % 4) * 2 + lane / 4 % 2;
            int16_t* table = tables_ + place / kWords * stride_;
            const int32_t word = 3 * xs.first[x];
            std::memcpy(table + half * 2, &word, sizeof(word));
            for (int64_t k = 0; k < xs.taps; ++k)
                for (int64_t c = 0; c < 3; ++c)
                    table[kBegins + k / 2 * 8 * kWords + half * 8 + k % 2 * 3 + c] =
                        xs.weights[x * xs.taps + k];
        }
    }

    bool possible() const { return true; }

    template <int K, int kBits>
    SIMMIM_INLINE void make_rows(const int16_t* line, int64_t, uint8_t* out, int64_t plane) const {
        constexpr int kPairs = (K + 1) / 2;
        const int64_t count = out_, stride = stride_;
        const int16_t* table = tables_;
        const Words by_channel = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        const Words by_output = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        for (int64_t at = 0; at < count; at += kWords, table += stride) {
            Words levels[2];  // of 8 outputs: in each half, four of each channel
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                Words sums[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) {
                    int32_t begins[2];
                    std::memcpy(begins, table + (h * 4 + i) * 4, sizeof(begins));
                    const int16_t *low = line + begins[0], *high = line + begins[1];
                    const int16_t* weights = table + kBegins + (h * 4 + i) * kWords;
                    Words sum = scale_words(load_halves(low, high), load_words(weights));
#pragma GCC unroll 4
                    for (int k = 1; k < kPairs; ++k)
                        sum = add_words(sum, scale_words(load_halves(low + 6 * k, high + 6 * k),
                                                         load_words(weights + k * 8 * kWords)));
                    sums[i] = add_words(sum, _mm256_srli_si256(sum, 6));
                }
                const Words even = round_words<kBits>(_mm256_unpacklo_epi64(sums[0], sums[1]));
                const Words odd = round_words<kBits>(_mm256_unpacklo_epi64(sums[2], sums[3]));
                levels[h] = _mm256_shuffle_epi8(_mm256_packus_epi16(even, odd), by_channel);
            }
            const Words two =
                _mm256_permutevar8x32_epi32(_mm256_unpacklo_epi32(levels[0], levels[1]), by_output);
            const Words third =
                _mm256_permutevar8x32_epi32(_mm256_unpackhi_epi32(levels[0], levels[1]), by_output);
            store_bytes(out + at, _mm256_castsi256_si128(two), count - at);
            store_bytes(out + plane + at, _mm256_extracti128_si256(two, 1), count - at);
            store_bytes(out + 2 * plane + at, _mm256_castsi256_si128(third), count - at);
        }
    }

  private:
    static constexpr int64_t kBegins = 32;  // words of the 16 beginnings of a block
    static int64_t blocks_of(int64_t out) { return (out + kWords - 1) / kWords; }
    static int64_t stride(int64_t taps) { return kBegins + (taps + 1) / 2 * 8 * kWords; }

    int64_t out_, stride_;
    int16_t* tables_;
};

// Words of a row of `pixels` pixels after conversion.
template <int kChannels>
inline int64_t words_of_row(int64_t pixels) {
    return (kChannels * pixels + kLifted - 1) / kLifted * kLifted;
}

// Converts a row of pixels to words in units of 1/128, channels side by side as they were.
template <int kChannels>
inline void lift_row(const uint8_t* p, int64_t pixels, int64_t ahead, int16_t* line) {
    const int64_t bytes = kChannels * pixels;
    uint8_t rest[kLifted] = {};
    for (int64_t i = 0; i < bytes; i += kLifted) {
        const uint8_t* from = p + i;
        _mm_prefetch(reinterpret_cast<const char*>(from + ahead), _MM_HINT_T0);
        if (i + kLifted > bytes) {
            std::memcpy(rest, from, size_t(bytes - i));
            from = rest;
        }
        for (int64_t at = 0; at < kLifted; at += kWords) {
            const __m128i numbers = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at));
            store_words(line + i + at, _mm256_slli_epi16(_mm256_cvtepu8_epi16(numbers), 7));
        }
    }
}

SIMMIM_END

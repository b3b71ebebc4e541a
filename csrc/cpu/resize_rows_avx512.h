// What resize_rows.h needs of AVX-512, which can permute 64 words in one instruction: 32
// outputs at a time gather their taps from a row, tap by tap.
#pragma once

#include <immintrin.h>

#include "cpu/fixed_taps.h"

SIMMIM_BEGIN

// Words in a vector; words of a row that one permutation can gather from; and how many outputs
// gather together where the reduction is so strong that 32 need more than kReach words.
constexpr int64_t kWords = 32, kReach = 64, kHalf = kWords / 2;

using Words = __m512i;
inline Words load_words(const int16_t* p) { return _mm512_loadu_si512(p); }
inline void store_words(int16_t* p, Words words) { _mm512_storeu_si512(p, words); }
inline Words all_words(int16_t number) { return _mm512_set1_epi16(number); }
inline Words add_words(Words a, Words b) { return _mm512_add_epi16(a, b); }
// a * b / 2^15, rounded.
inline Words scale_words(Words a, Words b) { return _mm512_mulhrs_epi16(a, b); }

// Gather tables of the horizontal pass. For each block of 32 outputs, in the order in which they
// are stored: the word at which its input begins (one number for each half of the block), the
// offset of each output's first tap from there, and the weights, tap by tap.
template <int kChannels>
class Gathers {
  public:
    static int64_t bytes(const ByteAxis& xs) {
        return blocks_of(xs.out) * (xs.taps + 2) * kWords * 2;
    }

    Gathers(const ByteAxis& xs, bool flip, char* memory)
        : out_(xs.out), taps_(xs.taps), tables_(reinterpret_cast<int16_t*>(memory)) {
        const auto output = [&](int64_t place) {
            return flip ? out_ - 1 - min_of(place, out_ - 1) : min_of(place, out_ - 1);
        };
        const auto begin_of = [&](int64_t place, int64_t count) {
            return xs.first[output(flip ? place + count - 1 : place)];
        };
        const auto reach = [&](int64_t count) {
            int64_t most = 0;
            for (int64_t place = 0; place < out_; place += count) {
                const int32_t last = xs.first[output(flip ? place : place + count - 1)];
                most = max_of<int64_t>(most, last + taps_ - begin_of(place, count));
            }
            return most;
        };
        together_ = reach(kWords) <= kReach;
        possible_ = together_ || reach(kHalf) <= kReach;
        const int64_t side = together_ ? kWords : kHalf;
        for (int64_t block = 0; block < blocks_of(out_); ++block) {
            int16_t* table = tables_ + block * stride();
            int32_t begins[2];
            for (int64_t lane = 0; lane < kWords; ++lane) {
                const int64_t place = block * kWords + lane, x = output(place);
                begins[lane / kHalf] = begin_of(place / side * side, side);
                table[kWords + lane] = int16_t(xs.first[x] - begins[lane / kHalf]);
                for (int64_t k = 0; k < taps_; ++k)
                    table[(2 + k) * kWords + lane] = xs.weights[x * taps_ + k];
            }
            std::memcpy(table, begins, sizeof(begins));
        }
    }

    // Whether every group of outputs fits into kReach words.
    bool possible() const { return possible_; }

    // Computes a row of the result of each channel, `plane` bytes apart, from their rows after the
    // vertical pass, `words` words in all. Up to kReach words behind the last one's end are read.
    template <int K, int kBits>
    SIMMIM_INLINE void make_rows(const int16_t* line, int64_t words, uint8_t* out,
                                 int64_t plane) const {
        for (int c = 0; c < kChannels; ++c) {
            const int16_t* row = line + c * (words / kChannels);
            if (together_)
                make_row<K, kBits, true>(row, out + c * plane);
            else
                make_row<K, kBits, false>(row, out + c * plane);
        }
    }

  private:
    static int64_t blocks_of(int64_t out) { return (out + kWords - 1) / kWords; }

    template <int K, int kBits, bool kTogether>
    SIMMIM_INLINE void make_row(const int16_t* line, uint8_t* out) const {
        const __m512i one = _mm512_set1_epi16(1);
        for (int64_t block = 0; block * kWords < out_; ++block) {
            const int16_t* table = tables_ + block * stride();
            int32_t begins[2];
            std::memcpy(begins, table, sizeof(begins));
            const __m512i a = load_words(line + begins[0]),
                          b = load_words(line + begins[0] + kWords);
            const __m512i c = load_words(line + begins[1]),
                          d = load_words(line + begins[1] + kWords);
            __m512i places = load_words(table + kWords), sum = _mm512_setzero_si512();
#pragma GCC unroll 8
            for (int k = 0; k < K; ++k) {
                __m512i taps = _mm512_permutex2var_epi16(a, places, b);
                if (!kTogether)
                    taps = _mm512_mask_blend_epi16(0xFFFF0000, taps,
                                                   _mm512_permutex2var_epi16(c, places, d));
                const __m512i weights = load_words(table + (2 + k) * kWords);
                sum = _mm512_add_epi16(sum, _mm512_mulhrs_epi16(taps, weights));
                places = _mm512_add_epi16(places, one);
            }
            sum = _mm512_add_epi16(sum, _mm512_set1_epi16(1 << (kBits - 1)));
            sum = _mm512_max_epi16(_mm512_srai_epi16(sum, kBits), _mm512_setzero_si512());
            const int64_t left = out_ - block * kWords;
            const __mmask32 stored = left < kWords ? (1u << left) - 1 : ~0u;
            _mm256_mask_storeu_epi8(out + block * kWords, stored, _mm512_cvtusepi16_epi8(sum));
        }
    }

    int64_t stride() const { return (taps_ + 2) * kWords; }

    int64_t out_, taps_;
    bool possible_, together_;
    int16_t* tables_;
};

// Words of a row of `pixels` pixels after conversion.
template <int kChannels>
inline int64_t words_of_row(int64_t pixels) {
    return (pixels + kWords - 1) / kWords * kWords * kChannels;
}

// Converts a row of pixels to words in units of 1/128, and separates the channels: each has the
// same part of the words.
template <int kChannels>
inline void lift_row(const uint8_t* p, int64_t pixels, int64_t ahead, int16_t* line) {
    // For each channel c, the positions kChannels * j + c of its bytes in a row.
    alignas(64) static constexpr auto kPlaces = [] {
        struct {
            int16_t at[kChannels][kWords];
        } places{};
        for (int c = 0; c < kChannels; ++c)
            for (int j = 0; j < kWords; ++j) places.at[c][j] = int16_t(kChannels * j + c);
        return places;
    }();
    const int64_t bytes = pixels * kChannels, step = words_of_row<1>(pixels);
    for (int64_t x = 0; x < pixels; x += kWords) {
        __m512i numbers[kChannels];
#pragma GCC unroll 4
        for (int i = 0; i < kChannels; ++i) {
            const int64_t at = x * kChannels + i * kWords, left = bytes - at;
            const __mmask32 there = left >= kWords ? ~0u : left > 0 ? (1u << left) - 1 : 0u;
            numbers[i] = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(there, p + at));
        }
        _mm_prefetch(reinterpret_cast<const char*>(p + x * kChannels + ahead), _MM_HINT_T0);
#pragma GCC unroll 4
        for (int c = 0; c < kChannels; ++c) {
            __m512i channel = numbers[0];
            if constexpr (kChannels == 3) {
                const __m512i places = load_words(kPlaces.at[c]);
                channel = _mm512_permutex2var_epi16(numbers[0], places, numbers[1]);
                channel = _mm512_mask_permutexvar_epi16(
                    channel, _mm512_test_epi16_mask(places, _mm512_set1_epi16(64)), places,
                    numbers[2]);
            }
            _mm512_storeu_si512(line + c * step + x, _mm512_slli_epi16(channel, 7));
        }
    }
}

SIMMIM_END

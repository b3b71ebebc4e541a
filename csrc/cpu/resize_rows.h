// Resizes bytes row by row with AVX-512, which can permute 64 words in one instruction. The
// vertical pass makes one row; in the horizontal pass 32 outputs at a time gather their taps from
// it, so that no transposition is needed. The results have the same bits as those of
// resize_bytes.h.
#pragma once

#include "cpu/fixed_taps.h"
#include "cpu/scratch.h"

#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

SIMMIM_BEGIN

struct ByteImage {
    const uint8_t* data;
    int64_t channels, sc, sy, sx;
};

#if defined(__AVX512BW__)

// Words in a vector; words of a row that one permutation can gather from; and how many outputs
// gather together where the reduction is so strong that 32 need more than kReach words.
constexpr int64_t kWords = 32, kReach = 64, kHalf = kWords / 2;
// How many rows of the box are prefetched ahead of their use.
constexpr int64_t kRowsAhead = 2;

inline __m512i load_words(const int16_t* p) { return _mm512_loadu_si512(p); }

// Gather tables of the horizontal pass. For each block of 32 outputs, in the order in which they
// are stored: the word at which its input begins (one number for each half of the block), the
// offset of each output's first tap from there, and the weights, tap by tap.
class Gathers {
  public:
    static int64_t blocks_of(int64_t out) { return (out + kWords - 1) / kWords; }
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

    // Whether every group of outputs fits into kReach words, and whether groups of 32 do.
    bool possible() const { return possible_; }
    bool together() const { return together_; }

    // Computes a row of the result from `line`, one channel's row after the vertical pass. Up to
    // kReach words behind the row's end are read.
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

  private:
    int64_t stride() const { return (taps_ + 2) * kWords; }

    int64_t out_, taps_;
    bool possible_, together_;
    int16_t* tables_;
};

// Converts `count` pixels of kPixel interleaved bytes to words in units of 1/128, and separates the
// channels: channel c begins at line + c * step.
template <int kPixel>
inline void lift_row(const uint8_t* p, int64_t count, int64_t ahead, int64_t step, int16_t* line) {
    // For each channel c, the positions kPixel * j + c of its bytes in a row.
    alignas(64) static constexpr auto kPlaces = [] {
        struct {
            int16_t at[kPixel][kWords];
        } places{};
        for (int c = 0; c < kPixel; ++c)
            for (int j = 0; j < kWords; ++j) places.at[c][j] = int16_t(kPixel * j + c);
        return places;
    }();
    const int64_t bytes = count * kPixel;
    for (int64_t x = 0; x < count; x += kWords) {
        __m512i numbers[kPixel];
#pragma GCC unroll 4
        for (int i = 0; i < kPixel; ++i) {
            const int64_t at = x * kPixel + i * kWords, left = bytes - at;
            const __mmask32 there = left >= kWords ? ~0u : left > 0 ? (1u << left) - 1 : 0u;
            numbers[i] = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(there, p + at));
        }
        _mm_prefetch(reinterpret_cast<const char*>(p + x * kPixel + ahead), _MM_HINT_T0);
#pragma GCC unroll 4
        for (int c = 0; c < kPixel; ++c) {
            __m512i channel = numbers[0];
            if constexpr (kPixel == 3) {
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

// Resizes one plane, or kPixel interleaved ones.
template <int kBits, int kPixel>
void resize_plane_by_rows(const uint8_t* data, int64_t sy, const Resize& down, const Resize& across,
                          const ByteAxis& ys, const ByteAxis& xs, const Gathers& gathers,
                          uint8_t* out) {
    const int64_t step = (across.extent + kWords - 1) / kWords * kWords, each = kPixel * step;
    // A ring of the `taps` rows of the box that a row of the result needs, and behind it the row
    // that the vertical pass makes of them.
    const Scratch scratch((ys.taps + 1) * each * 2 + kReach * 2);
    int16_t *lifted = scratch.as<int16_t>(), *line = lifted + ys.taps * each;
    std::memset(line + each, 0, kReach * 2);
    int64_t next = 0;
    for (int64_t y = 0; y < down.out; ++y) {
        const int64_t first = ys.first[y];
        for (next = max_of(next, first); next < first + ys.taps; ++next)
            lift_row<kPixel>(data + next * sy, across.extent,
                             next + kRowsAhead < down.extent ? kRowsAhead * sy : 0, step,
                             lifted + next % ys.taps * each);
        with_taps(ys.taps, [&](auto taps) {
            constexpr int K = decltype(taps)::count;
            const int16_t* rows[K];
            __m512i weights[K];
#pragma GCC unroll 8
            for (int k = 0; k < K; ++k) {
                rows[k] = lifted + (first + k) % K * each;
                weights[k] = _mm512_set1_epi16(ys.weights[y * K + k]);
            }
            for (int64_t i = 0; i < each; i += kWords) {
                __m512i sum = _mm512_mulhrs_epi16(load_words(rows[0] + i), weights[0]);
#pragma GCC unroll 8
                for (int k = 1; k < K; ++k)
                    sum = _mm512_add_epi16(
                        sum, _mm512_mulhrs_epi16(load_words(rows[k] + i), weights[k]));
                _mm512_storeu_si512(line + i, sum);
            }
        });
        with_taps(xs.taps, [&](auto taps) {
            constexpr int K = decltype(taps)::count;
            for (int c = 0; c < kPixel; ++c) {
                uint8_t* target = out + (c * down.out + y) * across.out;
                if (gathers.together())
                    gathers.make_row<K, kBits, true>(line + c * step, target);
                else
                    gathers.make_row<K, kBits, false>(line + c * step, target);
            }
        });
    }
}

// Writes the result and returns true, or returns false where these axes or this layout of the image
// can't be resized row by row.
template <int kBits>
bool resize_by_rows(const ByteImage& image, const Resize& down, const Resize& across,
                    const ByteAxis& ys, const ByteAxis& xs, bool flip, uint8_t* out) {
    const bool coloured = image.channels == 3 && image.sc == 1 && image.sx == 3;
    if ((!coloured && image.sx != 1) || max_of(ys.taps, xs.taps) > 8) return false;
    const Scratch tables(Gathers::bytes(xs));
    const Gathers gathers(xs, flip, tables.as<char>());
    if (!gathers.possible()) return false;
    if (coloured) {
        resize_plane_by_rows<kBits, 3>(image.data, image.sy, down, across, ys, xs, gathers, out);
        return true;
    }
    for (int64_t c = 0; c < image.channels; ++c)
        resize_plane_by_rows<kBits, 1>(image.data + c * image.sc, image.sy, down, across, ys, xs,
                                       gathers, out + c * down.out * across.out);
    return true;
}

#else

// Without AVX-512 gathering is slower than the transpositions of resize_bytes.h.
template <int kBits>
bool resize_by_rows(const ByteImage&, const Resize&, const Resize&, const ByteAxis&,
                    const ByteAxis&, bool, uint8_t*) {
    return false;
}

#endif

SIMMIM_END

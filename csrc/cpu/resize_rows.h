// Resizes bytes row by row with AVX2 and AVX-512. The vertical pass makes one row; in the
// horizontal pass each output gathers its taps from it, so that no transposition is needed. The
// results have the same bits as those of resize_bytes.h.
#pragma once

#include "cpu/fixed_taps.h"
#include "cpu/scratch.h"

#if defined(__AVX512BW__)
#include "cpu/resize_rows_avx512.h"
#elif defined(__AVX2__)
#include "cpu/resize_rows_avx2.h"
#endif

SIMMIM_BEGIN

struct ByteImage {
    const uint8_t* data;
    int64_t channels, sc, sy, sx;
};

#if defined(__AVX2__)

// How many rows of the box are prefetched ahead of their use.
constexpr int64_t kRowsAhead = 2;

// Vertical pass: sums K rows of n words, from row `first` on, each times its weight, into a line.
// Row r begins at lifted + r % K * n.
template <int K>
SIMMIM_INLINE void weigh_rows(const int16_t* lifted, int64_t first, int64_t n,
                              const int16_t* weights, int16_t* line) {
    const int16_t* rows[K];
    Words factors[K];
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
        rows[k] = lifted + (first + k) % K * n;
        factors[k] = all_words(weights[k]);
    }
    for (int64_t i = 0; i < n; i += kWords) {
        Words sum = scale_words(load_words(rows[0] + i), factors[0]);
#pragma GCC unroll 8
        for (int k = 1; k < K; ++k)
            sum = add_words(sum, scale_words(load_words(rows[k] + i), factors[k]));
        store_words(line + i, sum);
    }
}

// Resizes a plane, or three planes that are interleaved.
template <int kBits, int kChannels>
void resize_plane_by_rows(const uint8_t* data, int64_t sy, const Resize& down, const Resize& across,
                          const ByteAxis& ys, const ByteAxis& xs, const Gathers<kChannels>& gathers,
                          uint8_t* out) {
    const int64_t each = words_of_row<kChannels>(across.extent);
    // A ring of the `taps` rows of the box that a row of the result needs, and behind it the last
    // two rows that the vertical pass has made. The horizontal pass follows one row later: loads
    // that overlap several stores wait until these have reached the cache.
    const Scratch scratch((ys.taps + 2) * each * 2 + kReach * 2);
    int16_t *lifted = scratch.as<int16_t>(), *lines = lifted + ys.taps * each;
    std::memset(lines + 2 * each, 0, kReach * 2);
    int64_t next = 0;
    const auto make_line = [&](int64_t y) {
        const int64_t first = ys.first[y];
        for (next = max_of(next, first); next < first + ys.taps; ++next)
            lift_row<kChannels>(data + next * sy, across.extent,
                                next + kRowsAhead < down.extent ? kRowsAhead * sy : 0,
                                lifted + next % ys.taps * each);
        with_taps(ys.taps, [&](auto taps) {
            constexpr int K = decltype(taps)::count;
            weigh_rows<K>(lifted, first, each, ys.weights + y * K, lines + y % 2 * each);
        });
    };
    make_line(0);
    for (int64_t y = 0; y < down.out; ++y) {
        if (y + 1 < down.out) make_line(y + 1);
        with_taps(xs.taps, [&](auto taps) {
            constexpr int K = decltype(taps)::count;
            gathers.template make_rows<K, kBits>(lines + y % 2 * each, each, out + y * across.out,
                                                 down.out * across.out);
        });
    }
}

// Resizes an image of planes, or of three interleaved channels, and returns true; or returns false
// where the taps lie too far apart.
template <int kBits, int kChannels>
bool resize_planes_by_rows(const ByteImage& image, const Resize& down, const Resize& across,
                           const ByteAxis& ys, const ByteAxis& xs, bool flip, uint8_t* out) {
    const Scratch tables(Gathers<kChannels>::bytes(xs));
    const Gathers<kChannels> gathers(xs, flip, tables.as<char>());
    if (!gathers.possible()) return false;
    for (int64_t c = 0; c < image.channels; c += kChannels)
        resize_plane_by_rows<kBits, kChannels>(image.data + c * image.sc, image.sy, down, across,
                                               ys, xs, gathers, out + c * down.out * across.out);
    return true;
}

// Writes the result and returns true, or returns false where these axes or this layout of the image
// can't be resized row by row.
template <int kBits>
bool resize_by_rows(const ByteImage& image, const Resize& down, const Resize& across,
                    const ByteAxis& ys, const ByteAxis& xs, bool flip, uint8_t* out) {
    if (max_of(ys.taps, xs.taps) > 8) return false;
    if (image.channels == 3 && image.sc == 1 && image.sx == 3)
        return resize_planes_by_rows<kBits, 3>(image, down, across, ys, xs, flip, out);
    if (image.sx != 1) return false;
    return resize_planes_by_rows<kBits, 1>(image, down, across, ys, xs, flip, out);
}

#else

// Without the instructions to gather, transpositions are faster.
template <int kBits>
bool resize_by_rows(const ByteImage&, const Resize&, const Resize&, const ByteAxis&,
                    const ByteAxis&, bool, uint8_t*) {
    return false;
}

#endif

SIMMIM_END

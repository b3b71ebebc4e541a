// Transposes small blocks of numbers, in registers where the processor has shuffles for it.
#pragma once

#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu/vectors.h"

SIMMIM_BEGIN

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SIMMIM_SHUFFLES
#endif
#endif

#ifdef SIMMIM_SHUFFLES
template <int... i>
struct Places {};
template <int n, int... i>
struct PlacesUpTo : PlacesUpTo<n - 1, n - 1, i...> {};
template <int... i>
struct PlacesUpTo<0, i...> {
    using type = Places<i...>;
};

// Exchanges blocks of s numbers: those of `a` at places with bit `s` set and those of `b` at places
// without it, as one step of a transposition.
template <int n, int s, class V, int... i>
inline void swap_halves(V& a, V& b, Places<i...>) {
    const V low = __builtin_shufflevector(a, b, (i & s ? n + i - s : i)...);
    b = __builtin_shufflevector(a, b, (i & s ? n + i : i + s)...);
    a = low;
}

// Interleaves, in every m numbers, the first halves (`half` 0) or the second halves of `a` and `b`.
template <int n, int m, class V, int... i>
inline V interleave(V a, V b, int half, Places<i...>) {
    return half ? __builtin_shufflevector(a, b, (i / m * m + i % m / 2 + i % 2 * n + m / 2)...)
                : __builtin_shufflevector(a, b, (i / m * m + i % m / 2 + i % 2 * n)...);
}
#endif

// to[i * to_step + r] = from[r * from_step + i] for n rows r and n numbers i, where a vector holds
// n. Vector halves are exchanged down to blocks of 16 bytes, which are then interleaved.
template <class T>
inline void transpose_square(const T* from, int64_t from_step, T* to, int64_t to_step) {
    constexpr int n = int(kVectorBytes / int64_t(sizeof(T)));
#ifdef SIMMIM_SHUFFLES
    using V = Vector<T, n>;
    constexpr int m = int(16 / sizeof(T));
    constexpr typename PlacesUpTo<n>::type places{};
    V a[n], b[n];
#pragma GCC unroll 16
    for (int r = 0; r < n; ++r) a[r] = read<V>(from + r * from_step);
#pragma GCC unroll 16
    for (int r = 0; r < n / 2; ++r)
        if constexpr (n >= 2 * m) swap_halves<n, n / 2>(a[r], a[r + n / 2], places);
#pragma GCC unroll 16
    for (int r = 0; r < n; ++r)
        if constexpr (n >= 4 * m)
            if (!(r & n / 4)) swap_halves<n, n / 4>(a[r], a[r + n / 4], places);
#pragma GCC unroll 2
    for (int stage = 1; stage < m; stage *= 2) {
#pragma GCC unroll 16
        for (int r = 0; r < n; ++r) {
            const int one = r / m * m + r % m / 2;
            b[r] = interleave<n, m>(a[one], a[one + m / 2], r % 2, places);
        }
#pragma GCC unroll 16
        for (int r = 0; r < n; ++r) a[r] = b[r];
    }
#pragma GCC unroll 16
    for (int r = 0; r < n; ++r) std::memcpy(to + r * to_step, &a[r], sizeof(V));
#else
    for (int r = 0; r < n; ++r)
        for (int i = 0; i < n; ++i) to[i * to_step + r] = from[r * from_step + i];
#endif
}

// to[i * to_step + r] = from[r * from_step + i] for 16 rows r and 8 numbers i.
#if defined(__AVX2__)
inline void transpose_16x8(const int16_t* from, int64_t from_step, int16_t* to, int64_t to_step) {
    // The halves of a register are two blocks of 8 x 8.
    __m256i a[8], b[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
        const auto row = [&](int at) {
            return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at * from_step));
        };
        a[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(row(r)), row(r + 8), 1);
    }
#pragma GCC unroll 3
    for (int stage = 0; stage < 3; ++stage) {
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            b[2 * r] = _mm256_unpacklo_epi16(a[r], a[r + 4]);
            b[2 * r + 1] = _mm256_unpackhi_epi16(a[r], a[r + 4]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) a[r] = b[r];
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * to_step), a[i]);
}
#elif defined(__SSE2__)
inline void transpose_16x8(const int16_t* from, int64_t from_step, int16_t* to, int64_t to_step) {
    for (int half = 0; half < 16; half += 8) {
        __m128i a[8], b[8];
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r)
            a[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + (r + half) * from_step));
#pragma GCC unroll 3
        for (int stage = 0; stage < 3; ++stage) {
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r) {
                b[2 * r] = _mm_unpacklo_epi16(a[r], a[r + 4]);
                b[2 * r + 1] = _mm_unpackhi_epi16(a[r], a[r + 4]);
            }
#pragma GCC unroll 8
            for (int r = 0; r < 8; ++r) a[r] = b[r];
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * to_step + half), a[i]);
    }
}
#else
inline void transpose_16x8(const int16_t* from, int64_t from_step, int16_t* to, int64_t to_step) {
    for (int r = 0; r < 16; ++r)
        for (int i = 0; i < 8; ++i) to[i * to_step + r] = from[r * from_step + i];
}
#endif

#if defined(__AVX2__)
// 16 columns of 32 bytes to 32 rows of 16: the halves of a register are two blocks.
inline void transpose_32x16(const uint8_t* from, uint8_t* to, int64_t to_step) {
    __m256i a[16], b[16];
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k)
        a[k] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + k * 32));
#pragma GCC unroll 4
    for (int stage = 0; stage < 4; ++stage) {
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k) {
            b[2 * k] = _mm256_unpacklo_epi8(a[k], a[k + 8]);
            b[2 * k + 1] = _mm256_unpackhi_epi8(a[k], a[k + 8]);
        }
#pragma GCC unroll 16
        for (int k = 0; k < 16; ++k) a[k] = b[k];
    }
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + k * to_step),
                         _mm256_castsi256_si128(a[k]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + (k + 16) * to_step),
                         _mm256_extracti128_si256(a[k], 1));
    }
}
#elif defined(__SSE2__)
inline void transpose_32x16(const uint8_t* from, uint8_t* to, int64_t to_step) {
    for (int half = 0; half < 32; half += 16) {
        __m128i a[16], b[16];
#pragma GCC unroll 16
        for (int k = 0; k < 16; ++k)
            a[k] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k * 32 + half));
#pragma GCC unroll 4
        for (int stage = 0; stage < 4; ++stage) {
#pragma GCC unroll 8
            for (int k = 0; k < 8; ++k) {
                b[2 * k] = _mm_unpacklo_epi8(a[k], a[k + 8]);
                b[2 * k + 1] = _mm_unpackhi_epi8(a[k], a[k + 8]);
            }
#pragma GCC unroll 16
            for (int k = 0; k < 16; ++k) a[k] = b[k];
        }
#pragma GCC unroll 16
        for (int k = 0; k < 16; ++k)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + (k + half) * to_step), a[k]);
    }
}
#else
inline void transpose_32x16(const uint8_t* from, uint8_t* to, int64_t to_step) {
    for (int r = 0; r < 32; ++r)
        for (int k = 0; k < 16; ++k) to[r * to_step + k] = from[k * 32 + r];
}
#endif

// to[r * to_step + i] = from[i * 32 + r] for `rows` rows (at most 32) of `n` bytes. Whole blocks of
// 16 columns are read.
inline void transpose_bytes(const uint8_t* from, int64_t n, int64_t rows, uint8_t* to,
                            int64_t to_step) {
    for (int64_t i = 0; i < n; i += 16) {
        if (rows == 32 && n - i >= 16) {
            transpose_32x16(from + i * 32, to + i, to_step);
            continue;
        }
        alignas(16) uint8_t block[32 * 16];
        transpose_32x16(from + i * 32, block, 16);
        const int64_t width = min_of<int64_t>(16, n - i);
        for (int64_t r = 0; r < rows; ++r)
            std::memcpy(to + r * to_step + i, block + r * 16, size_t(width));
    }
}

SIMMIM_END

// Vectors of the instruction set's full width, for loops that mix 16-bit numbers and float32, where
// the compiler's vectoriser uses half vectors and passes them through memory.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/numbers.h"

SIMMIM_BEGIN

#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes = 16;
#endif

template <class T, int64_t n>
struct VectorOf {
    typedef T type __attribute__((vector_size(n * sizeof(T))));
};
template <class T, int64_t n>
using Vector = typename VectorOf<T, n>::type;

template <class To, class From>
inline To same_bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "a vector of the same size");
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

template <class To, class T>
inline To read(const T* source) {
    To to;
    std::memcpy(&to, source, sizeof(to));
    return to;
}

template <class T, class U>
constexpr bool kSame = false;
template <class T>
constexpr bool kSame<T, T> = true;

// Reads n 16-bit numbers into 32 bits each, and writes them back; their upper halves are zero. With
// AVX2, GCC makes four and three instructions of what are one and two.
template <int64_t n>
inline Vector<uint32_t, n> read_halves(const void* source) {
#if defined(__AVX2__)
    if constexpr (n == 8)
        return same_bits<Vector<uint32_t, n>>(
            _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(source))));
#endif
    return __builtin_convertvector((read<Vector<uint16_t, n>>(static_cast<const char*>(source))),
                                   Vector<uint32_t, n>);
}

template <int64_t n>
inline void write_halves(const Vector<uint32_t, n>& bits, void* target) {
#if defined(__AVX2__)
    if constexpr (n == 8) {
        const __m256i wide = same_bits<__m256i>(bits);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(wide, wide), 0x08);
        _mm_storeu_si128(static_cast<__m128i*>(target), _mm256_castsi256_si128(packed));
        return;
    }
#endif
    const auto halves = __builtin_convertvector(bits, Vector<uint16_t, n>);
    std::memcpy(target, &halves, sizeof(halves));
}

// Reads n numbers of float16 as float32, and writes them, by the processor's own conversion where
// it has one.
template <int64_t n>
inline Vector<float, n> read_float16(const void* source) {
#if defined(__F16C__)
    if constexpr (n == 8)
        return same_bits<Vector<float, n>>(
            _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(source))));
#endif
    return same_bits<Vector<float, n>>(widen_float16<Vector<float, n>>(read_halves<n>(source)));
}

template <int64_t n>
inline void write_float16(const Vector<float, n>& from, void* target) {
    typedef Vector<uint32_t, n> Bits;
    const Bits u = same_bits<Bits>(from);
    // The processor would keep what else a NaN holds than its sign.
    [[maybe_unused]] const Bits plain = from != from ? (u & 0x80000000u) | 0x7FC00000u : u;
#if defined(__F16C__)
    if constexpr (n == 8) {
        const __m128i halves = _mm256_cvtps_ph(same_bits<__m256>(plain), _MM_FROUND_TO_NEAREST_INT);
        return _mm_storeu_si128(static_cast<__m128i*>(target), halves);
    }
#endif
    write_halves<n>(narrow_to_float16<Vector<float, n>>(u), target);
}

// Loads n numbers of any float type as a vector of C.
template <class C, int64_t n, class T>
inline Vector<C, n> load_vector(const T* source) {
    typedef Vector<float, n> Float;
    if constexpr (kSame<T, BFloat16>) {
        const Vector<uint32_t, n> bits = read_halves<n>(source) << 16;
        return __builtin_convertvector(same_bits<Float>(bits), Vector<C, n>);
    } else if constexpr (kSame<T, Float16>) {
        const Float numbers = read_float16<n>(source);
        return __builtin_convertvector(numbers, Vector<C, n>);
    } else {
        return __builtin_convertvector((read<Vector<T, n>>(source)), Vector<C, n>);
    }
}

// Stores a vector of C as n numbers of any float type.
template <class C, int64_t n, class T>
inline void store_vector(const Vector<C, n>& from, T* target) {
    typedef Vector<float, n> Float;
    if constexpr (kSame<T, BFloat16>) {
        typedef Vector<uint32_t, n> Bits;
        const Float numbers = __builtin_convertvector(from, Float);
        const Bits rounded = round_to_bfloat16(same_bits<Bits>(numbers));
        const Bits bits = numbers != numbers ? Bits{} + 0x7FC0u : rounded;
        write_halves<n>(bits, target);
    } else if constexpr (kSame<T, Float16>) {
        const Float numbers = __builtin_convertvector(from, Float);
        write_float16<n>(numbers, target);
    } else {
        const auto to = __builtin_convertvector(from, Vector<T, n>);
        std::memcpy(target, &to, sizeof(to));
    }
}

// Zeroes n numbers; of short runs, which calls of memset would cost as much as the rest.
template <class T>
inline void zero_run(T* target, int64_t n) {
    char* to = reinterpret_cast<char*>(target);
    const int64_t bytes = n * int64_t(sizeof(T));
    const Vector<uint8_t, kVectorBytes> zeros{};
    int64_t i = 0;
    for (; i + kVectorBytes <= bytes; i += kVectorBytes) std::memcpy(to + i, &zeros, kVectorBytes);
    if (i < bytes) std::memset(to + i, 0, size_t(bytes - i));
}

SIMMIM_END

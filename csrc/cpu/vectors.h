// Vectors of the instruction set's full width, for loops that mix 16-bit numbers and float32, where
// the compiler's vectoriser uses half vectors and passes them through memory.
#pragma once

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

// Loads n numbers of any float type as a vector of C.
template <class C, int64_t n, class T>
inline Vector<C, n> load_vector(const T* source) {
    if constexpr (kSame<T, BFloat16> || kSame<T, Float16>) {
        typedef Vector<float, n> Float;
        typedef Vector<uint32_t, n> Bits;
        const Bits half = __builtin_convertvector((read<Vector<uint16_t, n>>(source)), Bits);
        const Bits bits = kSame<T, BFloat16> ? half << 16 : widen_float16<Float>(half);
        return __builtin_convertvector(same_bits<Float>(bits), Vector<C, n>);
    } else {
        return __builtin_convertvector((read<Vector<T, n>>(source)), Vector<C, n>);
    }
}

// Stores a vector of C as n numbers of any float type.
template <class C, int64_t n, class T>
inline void store_vector(const Vector<C, n>& from, T* target) {
    if constexpr (kSame<T, BFloat16> || kSame<T, Float16>) {
        typedef Vector<float, n> Float;
        const auto u = same_bits<Vector<uint32_t, n>>(__builtin_convertvector(from, Float));
        const auto bits = kSame<T, BFloat16> ? narrow_to_bfloat16(u) : narrow_to_float16<Float>(u);
        const auto halves = __builtin_convertvector(bits, Vector<uint16_t, n>);
        std::memcpy(target, &halves, sizeof(halves));
    } else {
        const auto to = __builtin_convertvector(from, Vector<T, n>);
        std::memcpy(target, &to, sizeof(to));
    }
}

SIMMIM_END

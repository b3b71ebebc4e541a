// What arithmetic opcodes compute, one lane at a time. Integers wrap around.
#pragma once

#include <algorithm>
#include <type_traits>

#include "values.h"

namespace ptx {

template <class T>
constexpr bool kFloating = std::is_same_v<T, f32> || std::is_same_v<T, f64>;

// Calculates in an unsigned type at least as wide as int, where overflow is defined.
template <class T>
using Wrapping = std::conditional_t<sizeof(T) == 8, u64, u32>;

// Arithmetic in f32 gives one NaN on a GPU (CUDA programming guide), and which it is in f64 means
// nothing to us: all are one, so that threads that add the same numbers in another order store the
// same.
template <class T>
T one_nan(T a) {
    return a != a ? T(NAN) : a;
}
template <class T>
T add(T a, T b) {
    if constexpr (kFloating<T>) return one_nan(a + b);
    return T(Wrapping<T>(a) + Wrapping<T>(b));
}
template <class T>
T sub(T a, T b) {
    if constexpr (kFloating<T>) return one_nan(a - b);
    return T(Wrapping<T>(a) - Wrapping<T>(b));
}
template <class T>
T mul(T a, T b) {
    if constexpr (kFloating<T>) return one_nan(a * b);
    return T(Wrapping<T>(a) * Wrapping<T>(b));
}
template <class T>
T multiply_add(T a, T b, T c) {
    if constexpr (kFloating<T>) return one_nan(std::fma(a, b, c));
    return add<T>(mul<T>(a, b), c);
}
template <class T, class Wide>
T mul_high(T a, T b) {
    return T((Wide(a) * Wide(b)) >> (8 * sizeof(T)));
}
template <class T, class Wide>
Wide mul_wide(T a, T b) {
    return Wide(a) * Wide(b);
}
template <class T, class Wide>
Wide mad_wide(T a, T b, Wide c) {
    return add<Wide>(Wide(a) * Wide(b), c);
}
template <class T>
T divide(T a, T b) {
    if constexpr (!kFloating<T>) {
        if (b == 0) return T(~T(0));
        if (std::is_signed_v<T> && b == T(-1)) return sub<T>(0, a);
    }
    return T(a / b);
}
template <class T>
T modulo(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == T(-1)) return 0;
    return T(a % b);
}
template <class T>
T negate(T a) {
    if constexpr (kFloating<T>) return -a;
    return sub<T>(0, a);
}
template <class T>
T absolute(T a) {
    if constexpr (kFloating<T>) return std::fabs(a);
    return a < 0 ? sub<T>(0, a) : a;
}
template <class T>
T minimum(T a, T b) {
    if constexpr (kFloating<T>) return std::fmin(a, b);
    return b < a ? b : a;
}
template <class T>
T maximum(T a, T b) {
    if constexpr (kFloating<T>) return std::fmax(a, b);
    return a < b ? b : a;
}
template <class T, T (*F)(T, T)>
T keeping_nan(T a, T b) {
    return a != a || b != b ? T(NAN) : F(a, b);
}
template <class T, T (*F)(T, T)>
T clamped_at_zero(T a, T b) {
    return std::max(T(0), F(a, b));
}
template <class T>
T bit_and(T a, T b) {
    return T(a & b);
}
template <class T>
T bit_or(T a, T b) {
    return T(a | b);
}
template <class T>
T bit_xor(T a, T b) {
    return T(a ^ b);
}
template <class T>
T bit_not(T a) {
    if constexpr (std::is_same_v<T, bool>)
        return !a;
    else
        return T(~a);
}
template <class T>
T shift_left(T a, u32 n) {
    return n >= 8 * sizeof(T) ? T(0) : T(a << n);
}
template <class T>
T shift_right(T a, u32 n) {
    return n >= 8 * sizeof(T) ? T(a < 0 ? -1 : 0) : T(a >> n);
}
template <class T>
T square_root(T a) {
    return std::sqrt(a);
}
template <class T>
T reciprocal_root(T a) {
    return T(1) / std::sqrt(a);
}
template <class T>
T reciprocal(T a) {
    return T(1) / a;
}
template <class T>
T power_of_two(T a) {
    return std::exp2(a);
}
template <class T>
T log_of_two(T a) {
    return std::log2(a);
}
template <class T>
T copy_sign(T a, T b) {
    return std::copysign(b, a);
}

// rsqrt.approx.ftz.f64 looks at the upper half of its argument and returns the upper half.
inline f64 rough_reciprocal_root(f64 a) {
    constexpr u64 kUpper = ~0xFFFFFFFFull;
    if (std::fabs(a) < 2.2250738585072014e-308) a = std::copysign(0.0, a);
    const f64 root = 1 / std::sqrt(get<f64>(put(a) & kUpper));
    return get<f64>(put(root) & kUpper);
}

template <class T>
u32 count_ones(T a) {
    return u32(__builtin_popcountll(u64(a)));
}
inline u32 leading_zeros32(u32 a) { return a ? u32(__builtin_clz(a)) : 32; }
inline u32 leading_zeros64(u64 a) { return a ? u32(__builtin_clzll(a)) : 64; }
inline u32 reverse_bits(u32 a) {
    u32 reversed = 0;
    for (int k = 0; k < 32; ++k) reversed |= (a >> k & 1) << (31 - k);
    return reversed;
}

// Each byte of the result is one of the eight of b:a, or its sign, as four bits of `selector` say.
inline u32 permute_bytes(u32 a, u32 b, u32 selector) {
    const u64 both = a | u64(b) << 32;
    u32 result = 0;
    for (int k = 0; k < 4; ++k) {
        const u32 choice = selector >> (4 * k) & 15;
        u32 byte = u32(both >> (8 * (choice & 7)) & 255);
        if (choice & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << (8 * k);
    }
    return result;
}
inline u32 add_byte_products(u32 a, u32 b, u32 sum) {  // dp4a
    for (int k = 0; k < 32; k += 8) sum += (a >> k & 255) * (b >> k & 255);
    return sum;
}
inline u32 add_halves(u32 a, u32 b) {  // add.s16x2, which wraps
    return ((a + b) & 0xFFFF) | ((a & 0xFFFF0000) + (b & 0xFFFF0000));
}
template <bool left>
u32 funnel_shift(u32 a, u32 b, u32 n) {  // shf.[lr].wrap
    const u64 both = a | u64(b) << 32;
    return left ? u32((both << (n & 31)) >> 32) : u32(both >> (n & 31));
}
template <class T>
T bit_field(T value, u32 position, u32 length) {
    const int most = 8 * sizeof(T) - 1, from = int(position & 255), count = int(length & 255);
    const u64 bits = put(value);
    const bool extends = std::is_signed_v<T> && count > 0;
    const u64 sign = extends ? bits >> std::min(from + count - 1, most) & 1 : 0;
    u64 result = 0;
    for (int k = 0; k <= most; ++k) {
        const bool inside = k < count && from + k <= most;
        result |= (inside ? bits >> (from + k) & 1 : sign) << k;
    }
    return get<T>(result);
}
inline u32 logic3(u32 a, u32 b, u32 c, u32 table) {
    u32 result = 0;
    for (u32 row = 0; row < 8; ++row) {
        if (!(table >> row & 1)) continue;
        result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
    }
    return result;
}

template <f32 (*F)(f32, f32)>
pair of_pairs(pair a, pair b) {
    return {F(a.x, b.x), F(a.y, b.y)};
}
inline pair multiply_add_pairs(pair a, pair b, pair c) {
    return {std::fma(a.x, b.x, c.x), std::fma(a.y, b.y, c.y)};
}

}  // namespace ptx

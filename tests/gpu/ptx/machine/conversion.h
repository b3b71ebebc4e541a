// cvt and the comparisons. The numbers of types and comparisons are those of encode.py.
#pragma once

#include "values.h"

namespace ptx {

enum Type { kS8, kS16, kS32, kS64, kU8, kU16, kU32, kU64, kF16, kBF16, kF32, kF64 };
enum Rounding { kAsItIs, kNearest, kToZero, kDown, kUp };

inline f64 real_of(int type, u64 v) {
    switch (type) {
        case kF16:
            return f64(get<f16>(v));
        case kBF16:
            return f64(f32(get<bf16>(v)));
        case kF32:
            return f64(get<f32>(v));
        default:
            return get<f64>(v);
    }
}

inline s64 integer_of(int type, u64 v) {
    switch (type) {
        case kS8:
            return get<s8>(v);
        case kS16:
            return get<s16>(v);
        case kS32:
            return get<s32>(v);
        case kU8:
            return get<u8>(v);
        case kU16:
            return get<u16>(v);
        case kU32:
            return get<u32>(v);
        default:
            return s64(v);
    }
}

inline u64 rounded_to(int type, f64 x) {
    switch (type) {
        case kF16:
            return put(f16(x));
        case kBF16:
            return put(bf16(x));
        case kF32:
            return put(f32(x));
        default:
            return put(x);
    }
}

inline u64 truncated_to(int type, u64 v) {
    const int bits = 8 << (type & 3);
    return bits == 64 ? v : v & ((1ull << bits) - 1);
}

// Out of range: the nearest number of the type; NaN: 0, in 64 bits the lowest.
inline u64 saturated_to(int type, f64 x) {
    if (x != x) return type == kS64 || type == kU64 ? 1ull << 63 : 0;
    const int bits = 8 << (type & 3);
    const bool is_signed = type < kU8;
    const f64 above = std::ldexp(1.0, is_signed ? bits - 1 : bits), below = is_signed ? -above : 0;
    if (x >= above) return truncated_to(type, is_signed ? (1ull << (bits - 1)) - 1 : ~0ull);
    if (x <= below) return is_signed ? 1ull << (bits - 1) : 0;
    return truncated_to(type, is_signed ? u64(s64(x)) : u64(x));
}

inline u64 convert(int to, int from, int rounding, u64 v) {
    if (from < kF16) {
        if (to < kF16) return truncated_to(to, u64(integer_of(from, v)));
        if (to == kF32) return put(from == kU64 ? f32(v) : f32(integer_of(from, v)));
        return rounded_to(to, from == kU64 ? f64(v) : f64(integer_of(from, v)));
    }
    f64 x = real_of(from, v);
    switch (rounding) {
        case kNearest:
            x = std::nearbyint(x);
            break;
        case kToZero:
            x = std::trunc(x);
            break;
        case kDown:
            x = std::floor(x);
            break;
        case kUp:
            x = std::ceil(x);
            break;
    }
    return to >= kF16 ? rounded_to(to, x) : saturated_to(to, x);
}

enum Comparison {
    kEqual,
    kNotEqual,
    kLess,
    kLessEqual,
    kGreater,
    kGreaterEqual,
    kEqualOrNan,
    kNotEqualOrNan,
    kLessOrNan,
    kLessEqualOrNan,
    kGreaterOrNan,
    kGreaterEqualOrNan,
    kNumbers
};

template <class T>
bool compare(int how, T a, T b) {
    switch (how) {
        case kEqual:
            return a == b;
        case kNotEqual:
            return a < b || a > b;
        case kLess:
            return a < b;
        case kLessEqual:
            return a <= b;
        case kGreater:
            return a > b;
        case kGreaterEqual:
            return a >= b;
        case kEqualOrNan:
            return !(a < b || a > b);
        case kNotEqualOrNan:
            return a != b;
        case kLessOrNan:
            return !(a >= b);
        case kLessEqualOrNan:
            return !(a > b);
        case kGreaterOrNan:
            return !(a <= b);
        case kGreaterEqualOrNan:
            return !(a < b);
        case kNumbers:
            return a == a && b == b;
        default:
            return a != a || b != b;
    }
}

}  // namespace ptx

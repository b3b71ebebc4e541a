// Rows of numbers of any element type, read into and written from a compute type (float or double).
#pragma once

#include <cstring>

#include "common/types.h"

SIMMIM_BEGIN

constexpr int64_t kRow = 512;  // elements converted at a time: two float rows stay within the L1

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

// The 16-bit types are integer arithmetic without branches, which the compiler vectorises for
// every instruction set.
struct BFloat16 {
    uint16_t bits;
    static float widen(BFloat16 v) { return bits_to_float(uint32_t(v.bits) << 16); }
    static BFloat16 narrow(float f) {  // round to nearest even, NaN stays NaN
        const uint32_t u = float_to_bits(f);
        const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
        return {uint16_t((u & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded)};
    }
};

struct Float16 {
    uint16_t bits;
    static float widen(Float16 v) {
        const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16;
        const uint32_t body = uint32_t(v.bits & 0x7FFFu);
        // Exponent re-biased by a multiplication, which also normalises subnormals.
        const float scaled = bits_to_float(body << 13) * bits_to_float(0x77800000u);  // * 2^112
        const uint32_t magnitude =
            body >= 0x7C00u ? (0x7F800000u | (body << 13)) : float_to_bits(scaled);
        return bits_to_float(sign | magnitude);
    }
    static Float16 narrow(float f) {  // round to nearest even
        const uint32_t u = float_to_bits(f);
        const uint32_t sign = (u >> 16) & 0x8000u;
        const uint32_t a = u & 0x7FFFFFFFu;
        // Normal results: re-bias and round. Subnormal ones: let a float addition do the rounding.
        const uint32_t normal = (a - 0x38000000u + 0xFFFu + ((a >> 13) & 1u)) >> 13;
        const uint32_t tiny = float_to_bits(bits_to_float(a) + 0.5f) - 0x3F000000u;
        uint32_t h = a < 0x38800000u ? tiny : normal;
        h = a >= 0x477FF000u ? 0x7C00u : h;
        h = a > 0x7F800000u ? 0x7E00u : h;
        return {uint16_t(sign | h)};
    }
};

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(uint8_t v) { return float(v); }
inline float widen(BFloat16 v) { return BFloat16::widen(v); }
inline float widen(Float16 v) { return Float16::widen(v); }

template <class T>
struct Narrow {
    static T from(float v) { return T::narrow(v); }
    static T from(double v) { return T::narrow(float(v)); }
};
template <>
struct Narrow<float> {
    static float from(float v) { return v; }
    static float from(double v) { return float(v); }
};
template <>
struct Narrow<double> {
    static double from(double v) { return v; }
};

template <class C, class T>
inline void load_as(const T* source, int64_t stride, int64_t n, C* row) {
    if (stride == 1) {
        for (int64_t i = 0; i < n; ++i) row[i] = C(widen(source[i]));
    } else {
        for (int64_t i = 0; i < n; ++i) row[i] = C(widen(source[i * stride]));
    }
}

template <class C, class T>
inline void store_as(const C* row, int64_t n, int64_t stride, T* target) {
    if (stride == 1) {
        for (int64_t i = 0; i < n; ++i) target[i] = Narrow<T>::from(row[i]);
    } else {
        for (int64_t i = 0; i < n; ++i) target[i * stride] = Narrow<T>::from(row[i]);
    }
}

// A tensor's memory: address and element type. Offsets and strides count elements.
struct Memory {
    char* base;
    int element;

    char* at(int64_t offset) const { return base + offset * element_size(element); }

    template <class C>
    void load(int64_t offset, int64_t stride, int64_t n, C* row) const {
        const char* p = at(offset);
        switch (element) {
            case kFloat32:
                return load_as(reinterpret_cast<const float*>(p), stride, n, row);
            case kFloat64:
                return load_as(reinterpret_cast<const double*>(p), stride, n, row);
            case kBFloat16:
                return load_as(reinterpret_cast<const BFloat16*>(p), stride, n, row);
            case kFloat16:
                return load_as(reinterpret_cast<const Float16*>(p), stride, n, row);
            default:
                return load_as(reinterpret_cast<const uint8_t*>(p), stride, n, row);
        }
    }

    template <class C>
    void store(const C* row, int64_t n, int64_t offset, int64_t stride) const {
        char* p = at(offset);
        switch (element) {
            case kFloat32:
                return store_as(row, n, stride, reinterpret_cast<float*>(p));
            case kFloat64:
                return store_as(row, n, stride, reinterpret_cast<double*>(p));
            case kBFloat16:
                return store_as(row, n, stride, reinterpret_cast<BFloat16*>(p));
            default:
                return store_as(row, n, stride, reinterpret_cast<Float16*>(p));
        }
    }

    void zero(int64_t offset, int64_t stride, int64_t n) const {
        const int64_t size = element_size(element);
        if (stride == 1) {
            std::memset(at(offset), 0, size_t(n * size));
        } else {
            for (int64_t i = 0; i < n; ++i) std::memset(at(offset + i * stride), 0, size_t(size));
        }
    }
};

SIMMIM_END

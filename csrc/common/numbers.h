// Element types read into and written from a compute type (float or double).
#pragma once

#include <cstring>

#include "common/types.h"

SIMMIM_BEGIN

SIMMIM_HD float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
SIMMIM_HD uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

// On a CPU the 16-bit types are integer arithmetic without branches, which the compiler vectorises
// for every instruction set; a GPU has an instruction for each conversion.
struct BFloat16 {
    uint16_t bits;
    static SIMMIM_HD float widen(BFloat16 v) { return bits_to_float(uint32_t(v.bits) << 16); }
    static SIMMIM_HD BFloat16 narrow(float f) {  // round to nearest even, NaN stays NaN
#ifdef __CUDA_ARCH__
        uint16_t bits;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(f));
        return {bits};
#else
        const uint32_t u = float_to_bits(f);
        const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
        return {uint16_t((u & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded)};
#endif
    }
};

struct Float16 {
    uint16_t bits;
    static SIMMIM_HD float widen(Float16 v) {
#ifdef __CUDA_ARCH__
        float f;
        asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
        return f;
#else
        const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16;
        const uint32_t body = uint32_t(v.bits & 0x7FFFu);
        // Exponent re-biased by a multiplication, which also normalises subnormals.
        const float scaled = bits_to_float(body << 13) * bits_to_float(0x77800000u);  // * 2^112
        const uint32_t magnitude =
            body >= 0x7C00u ? (0x7F800000u | (body << 13)) : float_to_bits(scaled);
        return bits_to_float(sign | magnitude);
#endif
    }
    static SIMMIM_HD Float16 narrow(float f) {  // round to nearest even
#ifdef __CUDA_ARCH__
        uint16_t bits;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(f));
        return {bits};
#else
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
#endif
    }
};

SIMMIM_HD float widen(float v) { return v; }
SIMMIM_HD double widen(double v) { return v; }
SIMMIM_HD float widen(uint8_t v) { return float(v); }
SIMMIM_HD float widen(BFloat16 v) { return BFloat16::widen(v); }
SIMMIM_HD float widen(Float16 v) { return Float16::widen(v); }

template <class T>
struct Narrow {
    static SIMMIM_HD T from(float v) { return T::narrow(v); }
    static SIMMIM_HD T from(double v) { return T::narrow(float(v)); }
};
template <>
struct Narrow<float> {
    static SIMMIM_HD float from(float v) { return v; }
    static SIMMIM_HD float from(double v) { return float(v); }
};
template <>
struct Narrow<double> {
    static SIMMIM_HD double from(double v) { return v; }
};

SIMMIM_END

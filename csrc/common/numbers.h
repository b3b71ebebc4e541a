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

// On a CPU the 16-bit types are integer arithmetic without branches, on numbers and on vectors of
// them alike (U: the bits of float32, F: float32); a GPU has an instruction for each conversion.
template <class U>
SIMMIM_HD U round_to_bfloat16(U u) {  // to nearest even; not for NaN
    return (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
}

template <class U>
SIMMIM_HD U narrow_to_bfloat16(U u) {  // NaN stays NaN
    return (u & 0x7FFFFFFFu) > 0x7F800000u ? U{} + 0x7FC0u : round_to_bfloat16(u);
}

template <class F, class U>
SIMMIM_HD U widen_float16(U half) {
    const U body = half & 0x7FFFu, shifted = body << 13;
    // Exponent re-biased by a multiplication, which also normalises subnormals.
    F scaled;
    std::memcpy(&scaled, &shifted, sizeof(scaled));
    scaled = scaled * 5.192296858534828e33f;  // 2^112
    U bits;
    std::memcpy(&bits, &scaled, sizeof(bits));
    bits = body >= 0x7C00u ? 0x7F800000u | shifted : bits;
    bits = body > 0x7C00u ? 0x00400000u | bits : bits;  // a quiet NaN, as processors make it
    return ((half & 0x8000u) << 16) | bits;
}

template <class F, class U>
SIMMIM_HD U narrow_to_float16(U u) {  // round to nearest even
    const U a = u & 0x7FFFFFFFu;
    // Normal results: re-bias and round. Subnormal ones: let a float addition do the rounding.
    const U normal = (a - 0x38000000u + 0xFFFu + ((a >> 13) & 1u)) >> 13;
    F small;
    std::memcpy(&small, &a, sizeof(small));
    small = small + 0.5f;
    U tiny;
    std::memcpy(&tiny, &small, sizeof(tiny));
    U h = a < 0x38800000u ? tiny - 0x3F000000u : normal;
    h = a >= 0x477FF000u ? U{} + 0x7C00u : h;
    h = a > 0x7F800000u ? U{} + 0x7E00u : h;
    return ((u >> 16) & 0x8000u) | h;
}

struct BFloat16 {
    uint16_t bits;
    static SIMMIM_HD float widen(BFloat16 v) { return bits_to_float(uint32_t(v.bits) << 16); }
    static SIMMIM_HD BFloat16 narrow(float f) {
#ifdef __CUDA_ARCH__
        uint16_t bits;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(f));
        return {bits};
#else
        return {uint16_t(narrow_to_bfloat16(float_to_bits(f)))};
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
        return bits_to_float(widen_float16<float>(uint32_t(v.bits)));
#endif
    }
    static SIMMIM_HD Float16 narrow(float f) {
#ifdef __CUDA_ARCH__
        uint16_t bits;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(f));
        return {bits};
#else
        return {uint16_t(narrow_to_float16<float>(float_to_bits(f)))};
#endif
    }
};

SIMMIM_HD float widen(float v) { return v; }
SIMMIM_HD double widen(double v) { return v; }
SIMMIM_HD float widen(uint8_t v) { return float(v); }
SIMMIM_HD float widen(uint16_t v) { return float(v); }
SIMMIM_HD float widen(int16_t v) { return float(v); }
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

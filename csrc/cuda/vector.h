// Vectors of elements that a thread loads and stores 16 bytes at a time and converts to the compute
// type.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "common/numbers.h"

SIMMIM_BEGIN

// V contiguous elements, aligned to their size up to 16 bytes, so that a load is one instruction.
// Numbers of 8 and 16 bits stay packed in words.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
    using Small = typename std::conditional<(sizeof(T) * V < 4), uint16_t, uint32_t>::type;
    using Word = typename std::conditional<(sizeof(T) < 4), Small, T>::type;
    Word words[sizeof(T) * V / sizeof(Word)];
};

template <class T, int V>
__device__ __forceinline__ Pack<T, V> load_pack(const T* source) {
    return *reinterpret_cast<const Pack<T, V>*>(source);
}

// The address plus a number of bytes.
template <class T>
__device__ __forceinline__ T* moved(T* base, int64_t bytes) {
    using Byte = typename std::conditional<std::is_const<T>::value, const char, char>::type;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(base) + bytes);
}

// The bfloat16 in the lower or the upper half of a word as float, in one instruction.
__device__ __forceinline__ float lower_bfloat16(uint32_t word) {
#ifdef __CUDA_ARCH__
    float value;
    asm("shl.b32 %0, %1, 16;" : "=f"(value) : "r"(word));
    return value;
#else
    return bits_to_float(word << 16);
#endif
}
__device__ __forceinline__ float upper_bfloat16(uint32_t word) {
#ifdef __CUDA_ARCH__
    float value;
    asm("and.b32 %0, %1, 0xFFFF0000;" : "=f"(value) : "r"(word));
    return value;
#else
    return bits_to_float(word & 0xFFFF0000u);
#endif
}

// Byte `k` of a word as float: it becomes the low mantissa bits of 2^23, which is then subtracted;
// faster than an integer conversion.
template <int k>
__device__ __forceinline__ float byte_of(uint32_t word) {
#ifdef __CUDA_ARCH__
    float value;
    asm("prmt.b32 %0, %1, 0x4B000000, %2;" : "=f"(value) : "r"(word), "n"(0x7650 + k));
    return value - 8388608.0f;
#else
    return float(word >> (8 * k) & 0xFFu);
#endif
}

template <class T, int V, class C>
__device__ __forceinline__ void widen_pack(const Pack<T, V>& pack, C* values) {
    if constexpr (std::is_same<T, BFloat16>::value) {
#pragma unroll
        for (int i = 0; i < V; i += 2) {
            values[i] = C(lower_bfloat16(pack.words[i / 2]));
            values[i + 1] = C(upper_bfloat16(pack.words[i / 2]));
        }
    } else if constexpr (std::is_same<T, Float16>::value) {
#pragma unroll
        for (int i = 0; i < V; i += 2) {
            values[i] = C(widen(Float16{uint16_t(pack.words[i / 2])}));
            values[i + 1] = C(widen(Float16{uint16_t(pack.words[i / 2] >> 16)}));
        }
    } else if constexpr (std::is_same<T, uint8_t>::value && V == 2) {
        values[0] = C(byte_of<0>(pack.words[0]));
        values[1] = C(byte_of<1>(pack.words[0]));
    } else if constexpr (std::is_same<T, uint8_t>::value) {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            values[i] = C(byte_of<0>(pack.words[i / 4]));
            values[i + 1] = C(byte_of<1>(pack.words[i / 4]));
            values[i + 2] = C(byte_of<2>(pack.words[i / 4]));
            values[i + 3] = C(byte_of<3>(pack.words[i / 4]));
        }
    } else {
#pragma unroll
        for (int i = 0; i < V; ++i) values[i] = C(widen(pack.words[i]));
    }
}

// Two numbers rounded to 16 bits each and packed into a word.
template <class T>
__device__ __forceinline__ uint32_t narrow_two(float low, float high) {
    uint32_t word;
#ifdef __CUDA_ARCH__
    if constexpr (std::is_same<T, BFloat16>::value) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    }
#else
    const T pair[] = {T::narrow(low), T::narrow(high)};
    std::memcpy(&word, pair, sizeof(word));
#endif
    return word;
}

// One store of 16 bytes, in PTX because nvcc splits the assignment of a struct, even of uint4.
__device__ __forceinline__ void store_word(void* target, const uint4& word) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(word.x), "r"(word.y),
                 "r"(word.z), "r"(word.w)
                 : "memory");
#else
    std::memcpy(target, &word, sizeof(word));
#endif
}

__device__ __forceinline__ void store_floats(float* target, const float* numbers) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target), "f"(numbers[0]),
                 "f"(numbers[1]), "f"(numbers[2]), "f"(numbers[3])
                 : "memory");
#else
    std::memcpy(target, numbers, 16);
#endif
}

__device__ __forceinline__ void store_half_word(void* target, uint32_t low, uint32_t high) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(target), "r"(low), "r"(high) : "memory");
#else
    const uint32_t words[] = {low, high};
    std::memcpy(target, words, sizeof(words));
#endif
}

template <class T, int V>
__device__ __forceinline__ void store_pack(T* target, const Pack<T, V>& pack) {
    constexpr int kBytes = int(sizeof(T)) * V;
    static_assert(kBytes == 4 || kBytes == 8 || kBytes % 16 == 0, "whole words");
    if constexpr (kBytes <= 8) {
        uint32_t words[kBytes / 4];
        std::memcpy(words, &pack, sizeof(words));
        if constexpr (kBytes == 4) {
            *reinterpret_cast<uint32_t*>(target) = words[0];
        } else {
            store_half_word(target, words[0], words[1]);
        }
    } else if constexpr (std::is_same<T, float>::value) {
#pragma unroll
        for (int i = 0; i < V; i += 4) store_floats(target + i, pack.words + i);
    } else {
        uint4 words[kBytes / 16];
        std::memcpy(words, &pack, sizeof(words));
#pragma unroll
        for (int i = 0; i < kBytes / 16; ++i) {
            store_word(target + i * (V * 16 / kBytes), words[i]);
        }
    }
}

template <class T, int V, class C>
__device__ __forceinline__ Pack<T, V> narrow_pack(const C* values) {
    Pack<T, V> pack;
#pragma unroll
    for (int i = 0; i < V; ++i) {
        if constexpr (sizeof(T) > 2) {
            pack.words[i] = Narrow<T>::from(values[i]);
        } else if (i % 2 == 0) {
            pack.words[i / 2] = narrow_two<T>(float(values[i]), float(values[i + 1]));
        }
    }
    return pack;
}

template <class T, int V, class C>
__device__ __forceinline__ void store_pack(T* target, const C* values) {
    store_pack<T, V>(target, narrow_pack<T, V>(values));
}

// A tensor of any element type, read and written one element at a time. The type is the same for
// all threads, so branching on it costs a few instructions and no divergence.
struct Array {
    void* base;
    int element;

    __device__ __forceinline__ double load(int64_t offset) const {
        switch (element) {
            case kFloat32:
                return static_cast<const float*>(base)[offset];
            case kFloat64:
                return static_cast<const double*>(base)[offset];
            case kBFloat16:
                return widen(static_cast<const BFloat16*>(base)[offset]);
            case kFloat16:
                return widen(static_cast<const Float16*>(base)[offset]);
            case kUInt16:
                return static_cast<const uint16_t*>(base)[offset];
            case kInt16:
                return static_cast<const int16_t*>(base)[offset];
            default:
                return static_cast<const uint8_t*>(base)[offset];
        }
    }

    __device__ __forceinline__ void store(int64_t offset, double value) const {
        switch (element) {
            case kFloat32:
                static_cast<float*>(base)[offset] = float(value);
                break;
            case kFloat64:
                static_cast<double*>(base)[offset] = value;
                break;
            case kBFloat16:
                static_cast<BFloat16*>(base)[offset] = BFloat16::narrow(float(value));
                break;
            default:
                static_cast<Float16*>(base)[offset] = Float16::narrow(float(value));
        }
    }
};

inline Array array_of(const Tensor& tensor) { return {tensor.data, tensor.element}; }

// Contiguous elements of a tensor of T or of float.
template <class T, int V>
__device__ __forceinline__ void load_either(const Array& array, int64_t offset, float* values) {
    if (array.element == kFloat32) {
        widen_pack<float, V>(load_pack<float, V>(static_cast<const float*>(array.base) + offset),
                             values);
    } else {
        widen_pack<T, V>(load_pack<T, V>(static_cast<const T*>(array.base) + offset), values);
    }
}

// Whether every address base + k * step elements allows 16-byte loads.
inline bool packs(const void* base, int element, int64_t step) {
    return reinterpret_cast<uintptr_t>(base) % 16 == 0 && step * element_size(element) % 16 == 0;
}

SIMMIM_END

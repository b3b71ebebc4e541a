// Elements that a thread moves at a time, 16 bytes a load, as numbers of the compute type.
#pragma once

#include <cuda_runtime.h>

#include "common/numbers.h"

SIMMIM_BEGIN

// V neighbours in memory; at most 16 bytes are aligned, so that each load is one instruction.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
    T v[V];
};

template <class T, int V>
__device__ __forceinline__ Pack<T, V> load_pack(const T* source) {
    return *reinterpret_cast<const Pack<T, V>*>(source);
}

template <class T, int V, class C>
__device__ __forceinline__ void widen_pack(const Pack<T, V>& pack, C* values) {
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = C(widen(pack.v[i]));
}

// One store of 16 bytes. Said in PTX: nvcc splits the assignment of a struct, even of uint4.
__device__ __forceinline__ void store_word(void* target, const uint4& word) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(word.x), "r"(word.y),
                 "r"(word.z), "r"(word.w)
                 : "memory");
#else
    std::memcpy(target, &word, sizeof(word));
#endif
}

template <class T, int V, class C>
__device__ __forceinline__ void store_pack(T* target, const C* values) {
    constexpr int kWords = int(sizeof(T)) * V / 16;
    static_assert(kWords * 16 == int(sizeof(T)) * V, "whole words");
    T pack[V];
#pragma unroll
    for (int i = 0; i < V; ++i) pack[i] = Narrow<T>::from(values[i]);
    uint4 words[kWords];
    std::memcpy(words, pack, sizeof(words));
#pragma unroll
    for (int i = 0; i < kWords; ++i) store_word(target + i * (V / kWords), words[i]);
}

// A tensor of any element type, read and written one element at a time. The type is the same for
// all threads, so choosing by it costs a few instructions and no divergence.
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

// Neighbours of a tensor whose elements are either T or float.
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

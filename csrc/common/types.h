// What every kernel shares: the namespace of its instruction set, its element types, its addresses.
#pragma once

#include <cstdint>

#include "tensor.h"

// The same sources are compiled once for each instruction set. Everything that they define,
// headers included, lives in a namespace of that set, so that the linker can never hand the
// AVX-512 copy of a helper to the baseline code.
#ifndef SIMMIM_ISA
#error "SIMMIM_ISA names the instruction set that this translation unit is compiled for"
#endif
#define SIMMIM_BEGIN   \
    namespace simmim { \
    namespace SIMMIM_ISA {
#define SIMMIM_END \
    }              \
    }

#ifdef __CUDACC__
#define SIMMIM_HD __host__ __device__ __forceinline__
#else
#define SIMMIM_HD inline
#endif

SIMMIM_BEGIN

SIMMIM_HD int64_t element_size(int element) {
    switch (element) {
        case kFloat64:
        case kInt64:
            return 8;
        case kFloat32:
        case kInt32:
            return 4;
        case kUInt8:
        case kBool:
            return 1;
        default:
            return 2;
    }
}

SIMMIM_HD bool is_integer(int element) {
    return element == kUInt8 || element == kUInt16 || element == kInt16;
}

template <class T>
SIMMIM_HD T min_of(T a, T b) {
    return a < b ? a : b;
}
template <class T>
SIMMIM_HD T max_of(T a, T b) {
    return a < b ? b : a;
}

// A slice of scratch, so long that the next one starts on a cache line of its own.
SIMMIM_HD int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

SIMMIM_END

// How every launcher starts its kernel. Launchers take tensors, a few numbers and a stream, never
// allocate, never wait, and return the launch's cudaError_t.
//
// Code that is private to a source file stands in `inline namespace SOURCE_file`, not in an unnamed
// namespace: nvcc would name its kernels by the file's absolute path, and builds would differ.
#pragma once

#include <cuda_runtime.h>

#include "common/types.h"

SIMMIM_BEGIN

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// A stream's handle as PyTorch passes it to Python.
using Stream = uintptr_t;

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, dim3 threads, Stream stream,
           Arguments... arguments) {
    if (blocks == 0) return cudaSuccess;
    if (blocks > 0x7FFFFFFF) return cudaErrorInvalidConfiguration;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(blocks));
    config.blockDim = threads;
    config.stream = reinterpret_cast<cudaStream_t>(stream);
    return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The smallest power of two that is at least n, at most `most` (a power of two).
inline int power_of_two(int64_t n, int most) {
    int p = 1;
    while (p < n && p < most) p *= 2;
    return p;
}

SIMMIM_END

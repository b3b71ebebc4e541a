#include "cuda/kernels.h"

SIMMIM_BEGIN

inline namespace probe_file {
__global__ void nothing() {}
}  // namespace probe_file

int probe() {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, nothing);
}

SIMMIM_END

#include "cuda/kernels.h"

SIMMIM_BEGIN

namespace {
__global__ void nothing() {}
}  // namespace

int probe() {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, nothing);
}

SIMMIM_END

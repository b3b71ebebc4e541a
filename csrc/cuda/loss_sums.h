// What the masked losses count and add up: each result's factor, and its value.
#pragma once

#include "common/loss_spec.h"
#include "cuda/launch.h"
#include "cuda/vector.h"

SIMMIM_BEGIN

// Which unit each row of a listed prediction is: `per_sample` rows a sample, or, where that is 0,
// positions (sample * units + unit) in any order, -1 for padding. Without `index` rows are samples.
struct LossList {
    const int32_t* index;
    int64_t rows, per_sample, batch, units;
    bool given;

    // The sample of a row and its unit; -1 where the list names none.
    __device__ __forceinline__ int64_t sample(int64_t row, int64_t* unit) const {
        const int64_t named = index[row];
        const int64_t sample = per_sample ? row / per_sample : named / units;
        *unit = per_sample ? named : named - sample * units;
        return named >= 0 && *unit < units && sample < batch ? sample : -1;
    }
};

// How a sum becomes a result. `out` is written where it is there; `mean` and `std` may be absent.
struct LossScale {
    double* scale;
    Array out, mean, std;
    double* affine;            // null where numbers of the target are taken as they are
    double unit;               // what they are divided by first: 255 for bytes
    int64_t pixels, channels;  // pixels of a unit
    double eps, factor;
    Reduction reduction;
};

inline LossList list_of(const Tensor& index, int64_t batch, int64_t units) {
    return {index.as<int32_t>(),
            index ? index.numel() : 0,
            index.dims == 2 ? index.size(1) : 0,
            batch,
            units,
            bool(index)};
}

constexpr int64_t kCounted = 1 << 15;  // mask units that a block counts

// The sum of all threads' values, in a fixed order, in every first thread of a block.
template <class T>
__device__ __forceinline__ T block_sum(T value) {
    __shared__ T sums[32];
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
        value += __shfl_xor_sync(kAllLanes, value, step);
    }
    if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = value;
    __syncthreads();
    T total = 0;
    for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) total += sums[warp];
    return total;
}

__device__ __forceinline__ void leave_sum(double value, double* partial) {
    const double total = block_sum(value);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// scale[r] = factor / ((masked pixels of result r + eps) * channels), or 0 where nothing is masked;
// and in `affine` what a difference of each channel is multiplied by, then what is subtracted
// before. `counts` is scratch: a number for each kCounted units.
int loss_scales(const LossScale& scaling, const LossList& list, const uint8_t* mask, int64_t batch,
                int64_t units, int64_t* counts, Stream stream);

// loss[r] = scale[r] * unit * the sum of the partial sums that belong to result r; `tiles` of
// them belong to each row.
int loss_results(const LossScale& scaling, const LossList& list, const double* partial, int64_t n,
                 int64_t tiles, double unit, int64_t batch, Array loss, Stream stream);

SIMMIM_END

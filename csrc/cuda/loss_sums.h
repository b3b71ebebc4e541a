// Counts and sums of the masked losses: the factor and the value of each result.
#pragma once

#include "common/loss_spec.h"
#include "cuda/launch.h"
#include "cuda/vector.h"

SIMMIM_BEGIN

// Divides in 32 bits where both fit, several times faster on a GPU.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
    if (((a | b) >> 31) == 0) return uint32_t(a) / uint32_t(b);
    return a / b;
}

// An index list: which unit each row of the prediction is. Entries are units, `per_sample` rows a
// sample, or, where `per_sample` is 0, sample * units + unit in any order; -1 is padding. Without
// `index` each row is a sample.
struct LossList {
    const int32_t* index;
    int64_t rows, per_sample, batch, units;
    bool given;

    // The sample and the unit of a row; the sample is -1 for padding.
    __device__ __forceinline__ int64_t sample(int64_t row, int64_t* unit) const {
        const int64_t named = index[row];
        const int64_t sample =
            per_sample ? quotient(row, per_sample) : quotient(max_of<int64_t>(named, 0), units);
        *unit = per_sample ? named : named - sample * units;
        return named >= 0 && *unit < units && sample < batch ? sample : -1;
    }
};

inline LossList list_of(const Tensor& index, int64_t batch, int64_t units) {
    return {index.as<int32_t>(),
            index ? index.numel() : 0,
            index.dims == 2 ? index.size(1) : 0,
            batch,
            units,
            bool(index)};
}

// The sum of all threads' values in a fixed order, in every thread of a block.
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

// How many mask units, or rows of a list, a block counts.
constexpr int64_t kCounted = 1 << 14;

// Each thread's share of the number of bytes that are not 0, of `n`.
__device__ __forceinline__ int64_t count_bytes(const uint8_t* bytes, int64_t n) {
    int64_t words = reinterpret_cast<uintptr_t>(bytes) % 16 == 0 ? n / 16 : 0;
    int32_t count = 0;
    for (int64_t i = threadIdx.x; i < words; i += blockDim.x) {
        const Pack<uint32_t, 4> word =
            load_pack<uint32_t, 4>(reinterpret_cast<const uint32_t*>(bytes) + i * 4);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            // Sets the top bit of each byte that is not 0.
            const uint32_t low = (word.words[k] & 0x7F7F7F7Fu) + 0x7F7F7F7Fu;
            count += __popc((low | word.words[k]) & 0x80808080u);
        }
    }
    for (int64_t i = words * 16 + threadIdx.x; i < n; i += blockDim.x) count += bytes[i] != 0;
    return count;
}

// The factor that turns a sum into a result: factor / ((masked pixels + eps) * channels), or 0
// where nothing is masked. Every block of a pass computes it for itself.
struct LossScale {
    double* scale;          // factor of each result, for the kernel that adds up
    Array out;              // the same for the caller, where present
    const uint8_t* mask;    // of all samples
    const int64_t* counts;  // masked units of each result, or parts of a single count; may be null
    int64_t parts;
    int64_t known;  // masked units of each result where known, else -1
    int64_t units, batch;
    int64_t pixels, channels;  // pixels of a unit
    double eps, factor;
    Reduction reduction;

    __device__ __forceinline__ double of(int64_t sample) const {
        const bool each = reduction == kEach;
        int64_t total = known;
        if (reduction == kSum) {
            total = 1;
        } else if (counts && each) {
            total = counts[sample];
        } else if (known < 0) {
            int64_t count = 0;
            if (counts) {
                for (int64_t i = threadIdx.x; i < parts; i += blockDim.x) count += counts[i];
            } else if (each) {
                count = count_bytes(mask + sample * units, units);
            } else {
                count = count_bytes(mask, batch * units);
            }
            total = block_sum(count);
        }
        if (reduction == kSum) return factor;
        // 0 where nothing is masked, for 1 / eps may overflow float32.
        const double masked = total ? double(total * pixels) + eps : 0.0;
        return masked == 0.0 ? 0.0 : factor / (masked * double(channels));
    }

    // The first block of a result stores its factor for the launches that follow, and what the
    // caller multiplies float16 slopes by.
    __device__ __forceinline__ void leave(int64_t result, double found) const {
        scale[result] = found;
        found /= kHalfSlope;
        if (out.element == kFloat64) {
            if (out.base) static_cast<double*>(out.base)[result] = found;
        } else if (out.base) {
            static_cast<float*>(out.base)[result] = float(found);
        }
    }
};

// Counts masked units in a launch of its own, where counting would take each block of the pass too
// long (`parts_counted` is not 0).
int64_t parts_counted(const LossList& list, Reduction reduction, int64_t batch, int64_t units);
int count_masked(const LossList& list, Reduction reduction, const uint8_t* mask, int64_t batch,
                 int64_t units, int64_t* counts, Stream stream);

// loss[r] = scale[r] * unit * the sum of the partial sums of result r; each row has `tiles` of
// them.
int loss_results(const LossScale& scaling, const LossList& list, const double* partial, int64_t n,
                 int64_t tiles, double unit, int64_t batch, Array loss, Stream stream);

SIMMIM_END

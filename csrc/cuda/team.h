// Sums and running sums over the threads of a block of WARPS warps.
#pragma once

#include "cuda/launch.h"

SIMMIM_BEGIN

template <int WARPS>
struct Team {
    uint32_t (&shared)[WARPS];  // in shared memory

    __device__ __forceinline__ uint32_t lane() const { return threadIdx.x % kWarp; }
    __device__ __forceinline__ uint32_t warp() const { return threadIdx.x / kWarp; }

    // The sum of every thread's value, in every thread.
    __device__ __forceinline__ uint32_t sum(uint32_t value) const {
        uint32_t total = __reduce_add_sync(kAllLanes, value);
        if (WARPS == 1) return total;
        __syncthreads();
        if (lane() == 0) shared[warp()] = total;
        __syncthreads();
        total = 0;
        for (int i = 0; i < WARPS; ++i) total += shared[i];
        return total;
    }

    // The sum of the values of all threads before this one; `total` gets the sum of all.
    __device__ __forceinline__ uint32_t before(uint32_t value, uint32_t* total) const {
        uint32_t running = value;
#pragma unroll
        for (int step = 1; step < kWarp; step *= 2) {
            const uint32_t other = __shfl_up_sync(kAllLanes, running, step);
            if (lane() >= uint32_t(step)) running += other;
        }
        uint32_t base = 0;
        *total = __shfl_sync(kAllLanes, running, kWarp - 1);
        if (WARPS > 1) {
            __syncthreads();
            if (lane() == 0) shared[warp()] = *total;
            __syncthreads();
            *total = 0;
            for (int i = 0; i < WARPS; ++i) {
                if (uint32_t(i) == warp()) base = *total;
                *total += shared[i];
            }
        }
        return base + running - value;
    }
};

SIMMIM_END

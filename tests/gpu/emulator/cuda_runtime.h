// Runs CUDA kernels on the host, one block after another, so that their results can be tested on a
// machine without a GPU. Threads of a block are fibers that switch at barriers and warp operations;
// a barrier that some thread never reaches ends the program with a message.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3() = default;
    dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct uint4 {
    unsigned x, y, z, w;
};

struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
struct cudaFuncAttributes {};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};

// Two GPUs. As with CUDA 12 and later, to choose one creates its context; the driver's functions
// create none. A context is the GPU's number, counted from one.
#define CUDART_VERSION 13000
extern "C" {
inline __attribute__((visibility("default"))) int emulated_contexts[2];  // how many each GPU has
inline __attribute__((visibility("default"))) uintptr_t emulated_current;
}
inline cudaError_t cudaSetDevice(int device) {
    emulated_contexts[device] = 1;
    emulated_current = uintptr_t(device) + 1;
    return cudaSuccess;
}
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess };
constexpr int cudaEnableDefault = 0;
inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                                    int, cudaDriverEntryPointQueryResult*) {
    int (*get)(uintptr_t*) = [](uintptr_t* current) { return *current = emulated_current, 0; };
    int (*set)(uintptr_t) = [](uintptr_t current) { return emulated_current = current, 0; };
    *function = std::strcmp(name, "cuCtxGetCurrent") ? reinterpret_cast<void*>(set)
                                                     : reinterpret_cast<void*>(get);
    return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulated error"; }
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
    if (!emulated_current) cudaSetDevice(0);
    return cudaSuccess;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float rsqrtf(float x) { return float(1.0 / std::sqrt(double(x))); }

inline dim3 threadIdx;

namespace emulator {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10;

struct Barrier {
    int arrived = 0;
    int64_t generation = 0;
};

struct Fiber {
    ucontext_t context;
    dim3 thread;
    int rank = 0;
    bool done = false;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<std::unique_ptr<char[]>> stacks;
    std::vector<std::map<unsigned, Barrier>> warps;  // of each, by the lanes that meet
    std::vector<uint64_t> slots;  // one for each thread, for exchanges within a warp
    Barrier barrier;
    Fiber* now = nullptr;
    ucontext_t scheduler;
    std::function<void()> body;
    dim3 index, size, grid;
    int live = 0;
    int64_t progress = 0;
};

inline Block block;

inline void yield() { swapcontext(&block.now->context, &block.scheduler); }

// `expected` may fall while others wait, when threads end.
template <class Expected>
void wait(Barrier& barrier, const Expected& expected) {
    const int64_t generation = barrier.generation;
    ++barrier.arrived;
    while (barrier.generation == generation) {
        if (barrier.arrived >= expected()) {
            barrier.arrived = 0;
            ++barrier.generation;
            ++block.progress;
            return;
        }
        yield();
    }
}

inline void wait_for_block() {
    wait(block.barrier, [] { return block.live; });
}

// Lanes that have ended still count: the operations here name those that wait.
inline void wait_for_lanes(unsigned mask) {
    const int total = int(block.fibers.size()), lane = block.now->rank % kWarp;
    const int warp = block.now->rank / kWarp, exist = total - warp * kWarp;
    if (exist < kWarp) mask &= (1u << exist) - 1;
    if (!(mask >> lane & 1)) {
        std::fprintf(stderr, "emulator: a lane waits for others and does not name itself\n");
        std::abort();
    }
    const int lanes = __builtin_popcount(mask);
    wait(block.warps[size_t(warp)][mask], [lanes] { return lanes; });
}

inline void enter() {
    block.body();
    block.now->done = true;
    --block.live;
    ++block.progress;
    yield();
}

inline void run_block(const dim3& index) {
    const int total = int(block.size.x * block.size.y * block.size.z);
    block.index = index;
    block.fibers.assign(size_t(total), Fiber{});
    block.warps.assign(size_t((total + kWarp - 1) / kWarp), {});
    block.slots.assign(size_t(total), 0);
    block.barrier = Barrier{};
    block.live = total;
    while (block.stacks.size() < size_t(total)) block.stacks.emplace_back(new char[kStack]);
    for (int i = 0; i < total; ++i) {
        Fiber& fiber = block.fibers[size_t(i)];
        fiber.rank = i;
        fiber.thread = dim3(unsigned(i) % block.size.x, unsigned(i) / block.size.x % block.size.y,
                            unsigned(i) / (block.size.x * block.size.y));
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = block.stacks[size_t(i)].get();
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
    }
    while (block.live > 0) {
        const int64_t before = block.progress;
        // The last thread runs first: whoever relies on the order of threads is found out.
        for (int i = total - 1; i >= 0; --i) {
            block.now = &block.fibers[size_t(i)];
            if (block.now->done) continue;
            threadIdx = block.now->thread;
            swapcontext(&block.scheduler, &block.now->context);
        }
        if (block.progress == before) {
            std::fprintf(stderr, "emulator: a barrier was not reached by all threads\n");
            std::abort();
        }
    }
}

template <class T>
T exchange(unsigned mask, T value, int from) {
    static_assert(sizeof(T) <= 8, "an exchanged value fits into a slot");
    const int first = block.now->rank / kWarp * kWarp;
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    block.slots[size_t(block.now->rank)] = bits;
    wait_for_lanes(mask);
    if (from >= 0 && from < kWarp && size_t(first + from) < block.slots.size()) {
        __builtin_memcpy(&value, &block.slots[size_t(first + from)], sizeof(T));
    }
    wait_for_lanes(mask);
    return value;
}

inline int lane() { return block.now->rank % kWarp; }

}  // namespace emulator

inline const dim3& blockIdx = emulator::block.index;
inline const dim3& blockDim = emulator::block.size;
inline const dim3& gridDim = emulator::block.grid;

inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp(unsigned mask = ~0u) { emulator::wait_for_lanes(mask); }
template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
    return emulator::exchange(mask, value, from);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
    return emulator::exchange(mask, value, emulator::lane() - int(delta));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
    return emulator::exchange(mask, value, emulator::lane() + int(delta));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
    return emulator::exchange(mask, value, emulator::lane() ^ bits);
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
    unsigned sum = 0;
    for (int lane = 0; lane < emulator::kWarp; ++lane) sum += emulator::exchange(mask, value, lane);
    return sum;
}

// Who runs the launches instead, if anybody: the machine of tests/gpu/ptx sets it. It gets the
// kernel's function, grid and block (three sizes each), the bytes of dynamic shared memory, and of
// every parameter where it is and its size.
using LaunchHook = void (*)(void* kernel, const unsigned* grid, const unsigned* block,
                            int64_t dynamic_shared_bytes, int count, const void* const* parameters,
                            const int64_t* sizes);
extern "C" __attribute__((visibility("default"))) inline LaunchHook launch_hook = nullptr;

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
    using emulator::block;
    const dim3 &grid = config->gridDim, &size = config->blockDim;
    if (launch_hook) {
        const void* parameters[] = {&arguments...};
        const int64_t sizes[] = {int64_t(sizeof(arguments))...};
        const unsigned grid_size[] = {grid.x, grid.y, grid.z},
                       block_size[] = {size.x, size.y, size.z};
        launch_hook(reinterpret_cast<void*>(kernel), grid_size, block_size,
                    int64_t(config->dynamicSmemBytes), int(sizeof...(arguments)), parameters,
                    sizes);
        return cudaSuccess;
    }
    block.size = size;
    block.grid = grid;
    block.body = [&] { kernel(arguments...); };
    for (unsigned z = 0; z < block.grid.z; ++z)
        for (unsigned y = 0; y < block.grid.y; ++y)
            for (unsigned x = 0; x < block.grid.x; ++x) emulator::run_block(dim3(x, y, z));
    return cudaSuccess;
}

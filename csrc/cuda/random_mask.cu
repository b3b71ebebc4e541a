// Exactly `count` of `units` cells per sample: those with the smallest (score, position), where the
// scores are Philox words of (seed, epoch, sample id, position). One team of warps a sample.
#include "common/grid.h"
#include "common/philox.h"
#include "cuda/kernels.h"
#include "cuda/team.h"

SIMMIM_BEGIN

inline namespace random_mask_file {

struct Scores {
    uint64_t id, seed;
    uint32_t epoch, units;

    // Four scores; places behind the last unit have the largest one.
    __device__ __forceinline__ PhiloxBlock block(uint32_t counter) const {
        PhiloxBlock found = philox(counter, epoch, uint32_t(id), uint32_t(id >> 32), uint32_t(seed),
                                   uint32_t(seed >> 32));
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (counter * 4 + k >= units) found.word[k] = 0xFFFFFFFFu;
        }
        return found;
    }
};

// HELD: blocks of four scores that a thread keeps in registers; 0: they are recomputed in each
// pass.
template <int WARPS, int HELD>
__global__ void __launch_bounds__(WARPS* kWarp)
    random_mask_kernel(const int64_t* ids, int64_t units, int64_t count, uint64_t seed,
                       uint32_t epoch, uint8_t* mask, int32_t* masked, int32_t* visible) {
    constexpr uint32_t kThreads = WARPS * kWarp, kPart = 4 * kThreads;
    __shared__ uint32_t shared[WARPS], marks[kThreads];
    __shared__ int32_t listed[kPart];
    const Team<WARPS> team{shared};
    const int64_t row = blockIdx.x;
    const Scores scores{uint64_t(ids[row]), seed, epoch, uint32_t(units)};
    const uint32_t blocks = uint32_t((units + 3) / 4);

    PhiloxBlock held[HELD > 0 ? HELD : 1];
    if (HELD > 0) {
#pragma unroll
        for (int j = 0; j < HELD; ++j) held[j] = scores.block(threadIdx.x + j * kThreads);
    }

    // The count-th smallest score, bit by bit: the largest threshold with fewer than `count` scores
    // below it.
    uint32_t threshold = 0, below = 0;
    for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
        const uint32_t candidate = threshold | bit;
        uint32_t smaller = 0;
        const auto add = [&](const PhiloxBlock& block) {
#pragma unroll
            for (int k = 0; k < 4; ++k) smaller += block.word[k] < candidate;
        };
        if (HELD > 0) {
#pragma unroll
            for (int j = 0; j < HELD; ++j) add(held[j]);
        } else {
            for (uint32_t c = threadIdx.x; c < blocks; c += kThreads) add(scores.block(c));
        }
        smaller = team.sum(smaller);
        if (int64_t(smaller) < count) {
            threshold = candidate;
            below = smaller;
        }
    }

    // Of units whose score equals the threshold, the first `ties` are masked. Lists are sorted in
    // shared memory part by part, so that neighbouring lanes store neighbouring numbers.
    const uint32_t ties = uint32_t(count) - below;
    uint32_t lower_seen = 0, tied_seen = 0;
    mask += row * units;
    masked += row * count;
    visible += row * (units - count);
    const auto write = [&](uint32_t counter, const PhiloxBlock& block) {
        uint32_t lower = 0, tied = 0;
        bool is_lower[4], is_tied[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            is_lower[k] = block.word[k] < threshold;
            is_tied[k] = block.word[k] == threshold && counter * 4 + k < scores.units;
            lower += is_lower[k];
            tied += is_tied[k];
        }
        // A team handles at most 4096 units here, so two counts fit into one word.
        uint32_t total;
        const uint32_t before = team.before(lower | (tied << 16), &total);
        lower = lower_seen + (before & 0xFFFFu);
        tied = tied_seen + (before >> 16);
        const uint32_t taken_before = lower_seen + min_of(tied_seen, ties);
        lower_seen += total & 0xFFFFu;
        tied_seen += total >> 16;
        const uint32_t taken_here = lower_seen + min_of(tied_seen, ties) - taken_before;
        const uint32_t first = (counter - threadIdx.x) * 4;
        const int32_t exist = int32_t(min_of<int64_t>(units - first, kPart));
        if (WARPS == 1 && HELD > 1) __syncwarp();  // larger teams have synchronised while counting
        uint32_t mark = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const uint32_t unit = threadIdx.x * 4 + k;
            if (int32_t(unit) >= exist) break;
            const uint32_t taken = lower + min_of(tied, ties) - taken_before;
            const bool take = is_lower[k] || (is_tied[k] && tied < ties);
            mark |= uint32_t(take) << (8 * k);
            listed[take ? taken : taken_here + unit - taken] = int32_t(first + unit);
            lower += is_lower[k];
            tied += is_tied[k];
        }
        marks[threadIdx.x] = mark;
        if (WARPS > 1) {
            __syncthreads();
        } else {
            __syncwarp();
        }
        int32_t* const others = visible + first - (taken_before + taken_here);
        for (int32_t i = int32_t(threadIdx.x); i < exist; i += int32_t(kThreads)) {
            mask[first + i] = reinterpret_cast<const uint8_t*>(marks)[i];
            int32_t* const list = uint32_t(i) < taken_here ? masked + taken_before : others;
            list[i] = listed[i];
        }
    };
    if (HELD > 0) {
#pragma unroll
        for (int j = 0; j < HELD; ++j) write(threadIdx.x + j * kThreads, held[j]);
    } else {
        for (uint32_t base = 0; base < blocks; base += kThreads) {
            const uint32_t counter = base + threadIdx.x;
            write(counter, scores.block(counter));
        }
    }
}

}  // namespace random_mask_file

int random_mask(const Tensor& ids, uint64_t seed, uint32_t epoch, const Tensor& mask,
                const Tensor& masked, const Tensor& visible, Stream stream) {
    const int64_t batch = mask.size(0), units = extent_from(mask, 1).cells();
    const int64_t count = masked.size(1);
    const auto start = [&](auto* kernel, int warps) {
        return launch(kernel, batch, dim3(unsigned(warps * kWarp)), stream, ids.as<int64_t>(),
                      units, count, seed, epoch, mask.as<uint8_t>(), masked.as<int32_t>(),
                      visible.as<int32_t>());
    };
    if (units <= 128) return start(random_mask_kernel<1, 1>, 1);
    if (units <= 256) return start(random_mask_kernel<1, 2>, 1);
    if (units <= 1024) return start(random_mask_kernel<1, 8>, 1);
    return start(random_mask_kernel<32, 0>, 32);
}

SIMMIM_END

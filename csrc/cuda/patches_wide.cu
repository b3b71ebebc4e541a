// Per-patch normalisation in one read: a team of warps holds a patch in registers, computes mean
// and variance, and writes it. Patches whose memory is not whole words are read number by number,
// three times, by the same arithmetic in the same order, so the bits are the same.
//
// The patch's first number is subtracted from all, so that float32 is precise enough however large
// the numbers are.
#include <cmath>
#include <type_traits>

#include "cuda/patches.h"

SIMMIM_BEGIN

inline namespace patches_wide_file {

constexpr int kThreads = 256, kNumbers = 32;  // numbers that a thread holds

// Numbers that a thread moves at a time: 16 bytes of the wider type.
template <class In, class Out>
constexpr int kNeighbours = 16 / int(sizeof(In) > sizeof(Out) ? sizeof(In) : sizeof(Out));

// The sum over the WARPS warps of a team, in a fixed order, in every thread of it.
template <int WARPS>
__device__ __forceinline__ float team_sum(float value, float* shared) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
        value += __shfl_xor_sync(kAllLanes, value, step);
    }
    if (WARPS == 1) return value;
    __syncthreads();
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
    __syncthreads();
    const float* own = shared + threadIdx.x / kWarp / WARPS * WARPS;
    value = 0;
#pragma unroll
    for (int i = 0; i < WARPS; ++i) value += own[i];
    return value;
}

// A number minus the patch's first one, whose pixel value is `first`.
template <bool STATS>
__device__ __forceinline__ float less_first(float stored, float offset, float gain, float first) {
    return STATS ? fmaf(stored - offset, gain, -first) : stored - first;
}

__device__ __forceinline__ float inverse_spread(float squares, uint32_t numbers, double eps) {
    const double variance = double(squares) / double(numbers > 1 ? numbers - 1 : 1) + eps;
    return float(1.0 / sqrt(variance));
}

// In, Out: types of the image and of the result; V: numbers that a thread moves at a time; STATS:
// whether there are channel statistics.
template <class In, class Out, int V, int WARPS, bool STATS>
__global__ void __launch_bounds__(kThreads, 1)
    normalize_held(Patches p, const In* image, Out* out, uint32_t line, uint32_t lines) {
    constexpr int kHeld = kNumbers / V;
    constexpr uint32_t kTeam = WARPS * kWarp, kTeams = kThreads / kTeam;
    __shared__ float shared[kThreads / kWarp];
    const uint32_t member = threadIdx.x % kTeam, numbers = line * lines * p.planes;
    const uint32_t groups = numbers / V;
    // Offsets of this thread's groups from a patch's first pixel, and their channels.
    int32_t from[kHeld], to[kHeld];
    float gains[STATS ? kHeld : 1], offsets[STATS ? kHeld : 1];
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
        const uint32_t i = (member + k * kTeam) * V, row = i / line, c = row / lines;
        const uint32_t y = row - c * lines, x = i - row * line;
        from[k] = int32_t(c * p.from.sc + y * p.from.sy + x);
        to[k] = int32_t(c * p.to.sc + y * p.to.sy + x);
        if (STATS) {
            const bool exists = i < numbers;
            const double spread = p.std.base && exists ? p.std.load(c) : 1.0;
            const double mean = p.std.base && exists ? p.mean.load(c) : 0.0;
            gains[k] = float(1.0 / (p.unit * spread));
            offsets[k] = float(p.unit * mean);
        }
    }
    const float shift = p.std.base ? float(p.unit * p.mean.load(0)) : 0.0f;
    const float gain = float(1.0 / (p.unit * (p.std.base ? p.std.load(0) : 1.0)));
    const uint32_t patches = uint32_t(p.from.batch) * p.h * p.w;
    const uint32_t rounds = (patches + gridDim.x * kTeams - 1) / (gridDim.x * kTeams);
    for (uint32_t round = 0; round < rounds; ++round) {
        const uint32_t patch = (round * gridDim.x + blockIdx.x) * kTeams + threadIdx.x / kTeam;
        const uint32_t sample = patch / (p.h * p.w), cell = patch - sample * (p.h * p.w);
        const uint32_t ty = cell / p.w, tx = cell - ty * p.w;
        bool wanted = patch < patches;
        if (wanted && p.grid.mask) {
            wanted =
                p.grid.sample(sample)[p.grid.unit32(0, int32_t(ty * lines), int32_t(tx * p.side))];
        }
        if (WARPS == 1 && !wanted) continue;
        const In* const source =
            image + int64_t(sample) * p.from.sb + int64_t(ty * lines) * p.from.sy + tx * line;
        float values[kHeld][V], sum = 0, squares = 0;
        if (wanted) {
            Pack<In, V> packs[kHeld];
#pragma unroll
            for (int k = 0; k < kHeld; ++k) {  // all loads before the first use
                if (k * kTeam < groups && member + k * kTeam < groups) {
                    packs[k] = load_pack<In, V>(source + from[k]);
                }
            }
            const float stored = float(widen(*source));
            float first = stored;
            if (STATS) first = (stored - shift) * gain;
#pragma unroll
            for (int k = 0; k < kHeld; ++k) {
                if (k * kTeam >= groups || member + k * kTeam >= groups) continue;
                widen_pack<In, V>(packs[k], values[k]);
#pragma unroll
                for (int n = 0; n < V; ++n) {
                    const int of = STATS ? k : 0;
                    values[k][n] = less_first<STATS>(values[k][n], offsets[of], gains[of], first);
                    sum += values[k][n];
                }
            }
        }
        const float mean = team_sum<WARPS>(sum, shared) / float(numbers);
        if (wanted) {
#pragma unroll
            for (int k = 0; k < kHeld; ++k) {
                if (k * kTeam >= groups || member + k * kTeam >= groups) continue;
#pragma unroll
                for (int n = 0; n < V; ++n) {
                    values[k][n] -= mean;
                    squares = fmaf(values[k][n], values[k][n], squares);
                }
            }
        }
        squares = team_sum<WARPS>(squares, shared);
        if (!wanted) continue;
        const float inverse = inverse_spread(squares, numbers, p.eps);
        Out* const target =
            out + int64_t(sample) * p.to.sb + int64_t(ty * lines) * p.to.sy + tx * line;
#pragma unroll
        for (int k = 0; k < kHeld; ++k) {
            if (k * kTeam >= groups || member + k * kTeam >= groups) continue;
#pragma unroll
            for (int n = 0; n < V; ++n) values[k][n] *= inverse;
            store_pack<Out, V>(target + to[k], values[k]);
        }
    }
}

// One team a block; each thread has the same numbers as in normalize_held.
template <class In, class Out, int V, int WARPS, bool STATS>
__global__ void __launch_bounds__(WARPS* kWarp) normalize_strided(Patches p) {
    constexpr uint32_t kTeam = WARPS * kWarp;
    __shared__ float shared[WARPS];
    const uint32_t sample = blockIdx.x / (p.h * p.w), cell = blockIdx.x - sample * (p.h * p.w);
    const uint32_t top = cell / p.w * p.side, left = cell % p.w * p.side;
    if (p.grid.mask && !p.grid.sample(sample)[p.grid.unit32(0, int32_t(top), int32_t(left))]) {
        return;
    }
    const uint32_t area = p.side * p.side, numbers = p.channels * area;
    const In* const image = static_cast<const In*>(p.image.base);
    Out* const out = static_cast<Out*>(p.out.base);
    float first = float(widen(image[p.from.at(sample, 0, top, left)]));
    if (STATS) {
        const double spread = p.std.base ? p.std.load(0) : 1.0;
        const double mean = p.std.base ? p.mean.load(0) : 0.0;
        first = (first - float(p.unit * mean)) * float(1.0 / (p.unit * spread));
    }
    const auto each = [&](const auto& use) {
        for (uint32_t i = threadIdx.x * V; i < numbers; i += kTeam * V) {
            for (uint32_t n = i; n < i + V; ++n) {
                const uint32_t c = n / area, y = top + n % area / p.side, x = left + n % p.side;
                float offset = 0, gain = 1;
                if (STATS) {
                    const double spread = p.std.base ? p.std.load(c) : 1.0;
                    gain = float(1.0 / (p.unit * spread));
                    offset = p.std.base ? float(p.unit * p.mean.load(c)) : 0.0f;
                }
                const float stored = float(widen(image[p.from.at(sample, c, y, x)]));
                use(less_first<STATS>(stored, offset, gain, first), p.to.at(sample, c, y, x));
            }
        }
    };
    float sum = 0, squares = 0;
    each([&](float value, int64_t) { sum += value; });
    const float mean = team_sum<WARPS>(sum, shared) / float(numbers);
    each([&](float value, int64_t) { squares = fmaf(value - mean, value - mean, squares); });
    const float inverse = inverse_spread(team_sum<WARPS>(squares, shared), numbers, p.eps);
    each([&](float value, int64_t to) { out[to] = Narrow<Out>::from((value - mean) * inverse); });
}

template <class In, class Out, int V, int WARPS>
int start_strided(const Patches& p, Stream stream) {
    const bool stats = p.std.base || p.unit != 1.0;
    const auto kernel =
        stats ? normalize_strided<In, Out, V, WARPS, true>
              : normalize_strided<In, Out, V, WARPS, std::is_same<In, uint8_t>::value>;
    return launch(kernel, p.from.batch * p.h * p.w, dim3(WARPS * kWarp), stream, p);
}

template <class In, class Out, int V, int WARPS>
int start_team(const Patches& p, uint32_t line, uint32_t lines, Stream stream) {
    constexpr int64_t kBlocks = 132 * 8;  // all at once
    const int64_t patches = p.from.batch * p.h * p.w, teams = kThreads / kWarp / WARPS;
    // A team handles several patches, so that the cost of its first look-ups is shared.
    const int64_t blocks = min_of(ceil_div(patches, teams * 4), kBlocks);
    const bool stats = p.std.base || p.unit != 1.0;
    const auto kernel = stats ? normalize_held<In, Out, V, WARPS, true>
                              : normalize_held<In, Out, V, WARPS, std::is_same<In, uint8_t>::value>;
    return launch(kernel, blocks, dim3(kThreads), stream, p, static_cast<const In*>(p.image.base),
                  static_cast<Out*>(p.out.base), line, lines);
}

// `line`: contiguous numbers of a patch, or 0 where these are not whole words.
template <class In, class Out, int V, int WARPS>
int start_with(const Patches& p, uint32_t line, Stream stream) {
    if (!line) return start_strided<In, Out, V, WARPS>(p, stream);
    return start_team<In, Out, V, WARPS>(p, line, p.side, stream);
}

template <class In, class Out>
int start(const Patches& p, uint32_t line, int64_t vector, Stream stream) {
    const int64_t numbers = int64_t(p.side) * p.side * p.channels, held = kWarp * kNumbers;
    constexpr int V = kNeighbours<In, Out>;
    if (vector != V) return start_with<In, Out, 2, 1>(p, line, stream);
    if (numbers <= held) return start_with<In, Out, V, 1>(p, line, stream);
    if (numbers <= 4 * held) return start_with<In, Out, V, 4>(p, line, stream);
    return start_with<In, Out, V, 8>(p, line, stream);
}

}  // namespace patches_wide_file

bool hold_patches(Patches p, Stream stream, int* code) {
    const ImageLayout &from = p.from, &to = p.to;
    int64_t vector = 16 / max_of(element_size(p.image.element), element_size(p.out.element));
    const auto whole = [&](int64_t strides) { return strides % vector == 0; };
    const int64_t numbers = int64_t(p.side) * p.side * p.channels;
    const bool last = from.channels > 1 && from.sc == 1 && from.sx == from.channels && to.sc == 1 &&
                      to.sx == to.channels;
    const bool both = last && !p.std.base && p.unit == 1.0;
    const int64_t line = both ? p.side * from.channels : p.side;
    int64_t most = 8 * kWarp * kNumbers;
    if (!whole(line)) {  // for instance patches of 14x14 pixels: pairs of numbers
        vector = 2;
        most = kWarp * kNumbers;
    }
    if (!whole(line) || numbers > most || from.batch * p.h * p.w >= int64_t(1) << 31) {
        return false;
    }
    p.planes = both ? 1 : uint32_t(from.channels);
    const auto aligned = [&](const ImageLayout& at, const Array& array) {
        const int64_t bytes = vector * element_size(array.element);
        return reinterpret_cast<uintptr_t>(array.base) % uintptr_t(bytes) == 0 && whole(at.sb) &&
               whole(at.sy) && (both || (whole(at.sc) && at.sx == 1)) &&
               p.planes * max_of(at.sc, at.sy) + p.side * at.sy <= 0x7FFFFFFF;
    };
    const bool words = aligned(from, p.image) && aligned(to, p.out);
    const auto run = [&](auto* start_as) {
        *code = start_as(p, words ? uint32_t(line) : 0, vector, stream);
        return true;
    };
    switch (p.image.element * 16 + p.out.element) {
        case kFloat32 * 16 + kFloat32:
            return run(start<float, float>);
        case kUInt8 * 16 + kFloat32:
            return run(start<uint8_t, float>);
        case kBFloat16 * 16 + kBFloat16:
            return run(start<BFloat16, BFloat16>);
        case kBFloat16 * 16 + kFloat32:
            return run(start<BFloat16, float>);
        case kFloat16 * 16 + kFloat16:
            return run(start<Float16, Float16>);
        case kFloat16 * 16 + kFloat32:
            return run(start<Float16, float>);
        default:
            return false;
    }
}

SIMMIM_END

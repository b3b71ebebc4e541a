// Masked losses and their gradient in one pass over the masked pixels. Three launches: the factor
// of each result from the number of masked pixels, the pass with one partial sum a block, and the
// ordered sum of those.
//
// A block handles `threads` times kNumbers numbers of one sample (or of one row of a list), in the
// order in which the prediction lies in memory. In the wide kernels a thread moves kGroups groups
// of kVector neighbours: that many 16-byte loads of the prediction are in flight before the first
// use. The narrow kernel moves one number of any type at any stride, in double.
#include "cuda/kernels.h"
#include "cuda/loss_problem.h"
#include "cuda/vector.h"

SIMMIM_BEGIN

namespace {

constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue, which the emulator does not have

constexpr int kMostThreads = 256, kVector = 8, kGroups = 4, kNumbers = kVector * kGroups;

// Groups that a thread has in flight: targets that come one by one take a register a number.
template <class T>
constexpr int kInFlight = kGroups;
template <>
constexpr int kInFlight<Array> = kGroups / 2;

// In: what prediction and gradient hold. T: what the target holds, where its neighbours are the
// prediction's; Array where they are not, or where it is of another type.
template <class In, class T>
struct Targets {
    const T* base;
    Pack<T, kVector> pack;
    __device__ __forceinline__ void load(const Problem&, const Place& p, uint32_t bits) {
        if (bits) pack = load_pack<T, kVector>(base + p.target);
    }
    __device__ __forceinline__ uint32_t masked(const Problem& problem, int64_t sample,
                                               const Place& p) const {
        return problem.masked(sample, p.y, p.x) ? 0xFFu : 0u;
    }
    __device__ __forceinline__ float get(const Problem& problem, const Place& p, int i) const {
        return problem.wanted(float(widen(pack.v[i])), p.channel);
    }
};

template <class In>
struct Targets<In, Array> {
    Array base;
    float values[kVector];
    __device__ __forceinline__ void load(const Problem& problem, Place p, uint32_t bits) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            if (bits >> i & 1) values[i] = problem.wanted(float(base.load(p.target)), p.channel);
            problem.next(p);
        }
    }
    __device__ __forceinline__ uint32_t masked(const Problem& problem, int64_t sample,
                                               Place p) const {
        uint32_t bits = 0;
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            bits |= uint32_t(problem.masked(sample, p.y, p.x)) << i;
            problem.next(p);
        }
        return bits;
    }
    __device__ __forceinline__ float get(const Problem&, const Place&, int i) const {
        return values[i];
    }
};

template <class In, class T, class Base>
__global__ void __launch_bounds__(kMostThreads)
    pass_wide(Problem problem, const In* pred, In* grad, Base target) {
    const int64_t row = blockIdx.x / problem.tiles, tile = blockIdx.x - row * problem.tiles;
    int64_t sample;
    const Place begin = problem.begin(row, &sample);
    constexpr int kFew = kInFlight<T>;
    const int64_t first = (tile * kGroups * blockDim.x + threadIdx.x) * kVector;
    const int64_t step = int64_t(blockDim.x) * kVector;
    const float factor = float(problem.factor(sample));
    double sum = 0;
#pragma unroll 1
    for (int group = 0; group < kGroups; group += kFew) {
        const int64_t start = first + group * step;
        Place places[kFew];
        uint32_t bits[kFew];
        Pack<In, kVector> packs[kFew];
        Targets<In, T> targets[kFew];
#pragma unroll
        for (int k = 0; k < kFew; ++k) {
            bits[k] = 0;
            targets[k].base = target;
            if (start + k * step >= problem.numbers) continue;
            places[k] = problem.place(begin, start + k * step);
            bits[k] = targets[k].masked(problem, sample, places[k]);
            if (bits[k]) packs[k] = load_pack<In, kVector>(pred + places[k].pred);
            targets[k].load(problem, places[k], bits[k]);
        }
#pragma unroll
        for (int k = 0; k < kFew; ++k) {
            if (start + k * step >= problem.numbers) continue;
            float slopes[kVector], cost = 0;
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                slopes[i] = 0;
                if (bits[k] >> i & 1) {
                    const float d =
                        float(widen(packs[k].v[i])) - targets[k].get(problem, places[k], i);
                    cost += problem.value(d);
                    slopes[i] = problem.slope(d) * factor;
                }
            }
            if (grad) store_pack<In, kVector>(grad + places[k].grad, slopes);
            sum += cost;
        }
    }
    leave_sum(sum, problem.partial);
}

__global__ void __launch_bounds__(kMostThreads)
    pass_narrow(Problem problem, Array pred, Array grad, Array target) {
    const int64_t row = blockIdx.x / problem.tiles, tile = blockIdx.x - row * problem.tiles;
    int64_t sample;
    const Place begin = problem.begin(row, &sample);
    const double factor = problem.factor(sample);
    double sum = 0;
    for (int k = 0; k < kNumbers; ++k) {
        const int64_t i = (tile * kNumbers + k) * blockDim.x + threadIdx.x;
        if (i >= problem.numbers) break;
        const Place p = problem.place(begin, i);
        double slope = 0;
        if (problem.masked(sample, p.y, p.x)) {
            const double d = pred.load(p.pred) - problem.wanted(target.load(p.target), p.channel);
            sum += problem.value(d);
            slope = problem.slope(d) * factor;
        }
        if (grad.base) grad.store(p.grad, slope);
    }
    leave_sum(sum, problem.partial);
}

// Whether groups of kVector numbers are neighbours in memory, in `stride`'s tensor at `base`.
bool groups_pack(const Problem& problem, int64_t Axis::* stride, const void* base, int element,
                 int64_t batch) {
    const int64_t bytes = min_of<int64_t>(16, kVector * element_size(element));
    const auto whole = [&](int64_t step) { return step * element_size(element) % bytes == 0; };
    int64_t run = 1;
    bool fits = whole(batch) && reinterpret_cast<uintptr_t>(base) % uintptr_t(bytes) == 0;
    for (int a = kAxes - 1; a >= 0; --a) {
        const Axis& axis = problem.axis[a];
        if (axis.size == 1) continue;
        if (run % kVector != 0 || run == 1) {
            fits = fits && axis.*stride == run;
            run *= axis.size;
        } else {
            fits = fits && whole(axis.*stride);
        }
    }
    return fits && run % kVector == 0;
}

// Whether a group of the prediction is a group of a row of the target, in one mask unit.
bool along_rows(const Problem& problem, const void* base, int element) {
    const Axis* inner = &problem.axis[kAxes - 1];
    while (inner->size == 1 && inner != problem.axis) --inner;
    const int64_t bytes = min_of<int64_t>(16, kVector * element_size(element));
    const auto whole = [&](int64_t step) { return step * element_size(element) % bytes == 0; };
    if (inner->x != 1 || inner->target != 1 || inner->size % kVector) return false;
    if (problem.list.index ? problem.patch % kVector : problem.unit_w % kVector) return false;
    if (!whole(problem.target_y) || !whole(problem.target_batch)) return false;
    for (const Axis& axis : problem.axis) {
        if (axis.size > 1 && &axis != inner && !whole(axis.target)) return false;
    }
    return reinterpret_cast<uintptr_t>(base) % uintptr_t(bytes) == 0;
}

template <class In>
int start_wide(const Problem& problem, int64_t blocks, dim3 threads, Array pred, Array grad,
               Array target, bool along, Address stream) {
    const In* from = static_cast<const In*>(pred.base);
    In* to = static_cast<In*>(grad.base);
    if (along && target.element == kFloat32) {
        return launch(pass_wide<In, float, const float*>, blocks, threads, stream, problem, from,
                      to, static_cast<const float*>(target.base));
    }
    if (along && target.element == kUInt8) {
        return launch(pass_wide<In, uint8_t, const uint8_t*>, blocks, threads, stream, problem,
                      from, to, static_cast<const uint8_t*>(target.base));
    }
    return launch(pass_wide<In, Array, Array>, blocks, threads, stream, problem, from, to, target);
}

}  // namespace

int masked_loss(Address pred, int pred_element, int64_t p_b, int64_t p_c, int64_t p_ty, int64_t p_y,
                int64_t p_tx, int64_t p_x, Address grad, int64_t g_b, int64_t g_c, int64_t g_ty,
                int64_t g_y, int64_t g_tx, int64_t g_x, Address target, int target_element,
                int64_t t_b, int64_t t_c, int64_t t_y, int64_t t_x, Address mean, int mean_element,
                Address std, int std_element, Address mask, int64_t grid_h, int64_t grid_w,
                Address index, int64_t rows, int64_t per_sample, int kind, double beta, double eps,
                int reduction, Address loss, int loss_element, Address scale_out, Address scale,
                Address affine, Address counts, Address partial, int64_t batch, int64_t channels,
                int64_t height, int64_t width, int64_t patch, int64_t threads, int64_t tiles,
                Address stream) {
    if (kind < kL1 || kind > kSmoothL1 || reduction < kMean || reduction > kEach) {
        return kInvalidValue;
    }
    const int64_t h = height / patch, w = width / patch;
    const bool listed = index.as<int32_t>() != nullptr;
    Problem problem{};
    problem.list = {index.as<int32_t>(), rows, per_sample, batch, h * w};
    const int64_t own_h = listed ? 1 : h, own_w = listed ? 1 : w;
    problem.axis[0] = {channels, p_c, g_c, t_c, 0, 0, 1};
    problem.axis[1] = {own_h, p_ty, g_ty, patch * t_y, int32_t(patch), 0, 0};
    problem.axis[2] = {patch, p_y, g_y, t_y, 1, 0, 0};
    problem.axis[3] = {own_w, p_tx, g_tx, patch * t_x, 0, int32_t(patch), 0};
    problem.axis[4] = {patch, p_x, g_x, t_x, 0, 1, 0};
    for (int i = 1; i < kAxes; ++i) {  // so that neighbours in memory come one after another
        const Axis moved = problem.axis[i];
        int to = i;
        for (; to > 0 && problem.axis[to - 1].pred < moved.pred; --to) {
            problem.axis[to] = problem.axis[to - 1];
        }
        problem.axis[to] = moved;
    }
    problem.numbers = channels * own_h * own_w * patch * patch;
    problem.pred_batch = listed ? p_tx : p_b;
    problem.grad_batch = listed ? g_tx : g_b;
    problem.target_batch = t_b;
    problem.target_y = t_y;
    problem.target_x = t_x;
    problem.unit_h = height / grid_h;
    problem.unit_w = width / grid_w;
    problem.grid_w = grid_w;
    problem.units = grid_h * grid_w;
    problem.mask = mask.as<uint8_t>();
    problem.patch = patch;
    problem.units_in_row = w;
    problem.scale = scale.as<double>();
    const bool bytes = target_element == kUInt8;
    double* const scales = bytes || std ? affine.as<double>() : nullptr;
    problem.affine = scales;
    problem.partial = partial.as<double>();
    problem.inverse_beta = 1.0 / beta;
    problem.channels = channels;
    problem.tiles = tiles;
    problem.kind = kind;
    problem.each = reduction == kEach;
    problem.scaled = pred_element != kFloat16;
    const LossScale scaling{scale.as<double>(),
                            {scale_out.as<void>(), loss_element},
                            {mean.as<void>(), mean_element},
                            {std.as<void>(), std_element},
                            scales,
                            bytes ? 255.0 : 1.0,
                            listed ? patch * patch : problem.unit_h * problem.unit_w,
                            channels,
                            eps,
                            reduction};
    int code = loss_scales(scaling, problem.list, problem.mask, batch, problem.units,
                           counts.as<int64_t>(), stream);
    if (code != cudaSuccess) return code;
    const Array from{pred.as<void>(), pred_element}, to{grad.as<void>(), pred_element};
    const Array wanted{target.as<void>(), target_element};
    const int64_t blocks = (listed ? rows : batch) * tiles;
    const bool wide =
        pred_element != kFloat64 && target_element != kFloat64 &&
        groups_pack(problem, &Axis::pred, from.base, pred_element, problem.pred_batch) &&
        (!to.base || groups_pack(problem, &Axis::grad, to.base, pred_element, problem.grad_batch));
    const dim3 block{unsigned(threads)};
    if (!wide) {
        code = launch(pass_narrow, blocks, block, stream, problem, from, to, wanted);
    } else {
        const bool along = along_rows(problem, wanted.base, target_element);
        auto* start = pred_element == kFloat32    ? start_wide<float>
                      : pred_element == kBFloat16 ? start_wide<BFloat16>
                                                  : start_wide<Float16>;
        code = start(problem, blocks, block, from, to, wanted, along, stream);
    }
    if (code != cudaSuccess) return code;
    return loss_results(scaling, problem.list, partial.as<double>(), blocks, tiles,
                        kind == kSmoothL1 ? beta : 1.0, batch, {loss.as<void>(), loss_element},
                        stream);
}

SIMMIM_END

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
    for (int a = kLossAxes - 1; a >= 0; --a) {
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
    const Axis* inner = &problem.axis[kLossAxes - 1];
    while (inner->size == 1 && inner != problem.axis) --inner;
    const int64_t bytes = min_of<int64_t>(16, kVector * element_size(element));
    const auto whole = [&](int64_t step) { return step * element_size(element) % bytes == 0; };
    if (inner->x != 1 || inner->target != 1 || inner->size % kVector) return false;
    if (problem.list.given ? problem.patch % kVector : problem.grid.scale.width % kVector)
        return false;
    if (!whole(problem.target_y) || !whole(problem.target_batch)) return false;
    for (const Axis& axis : problem.axis) {
        if (axis.size > 1 && &axis != inner && !whole(axis.target)) return false;
    }
    return reinterpret_cast<uintptr_t>(base) % uintptr_t(bytes) == 0;
}

template <class In>
int start_wide(const Problem& problem, int64_t blocks, dim3 threads, Array pred, Array grad,
               Array target, bool along, Stream stream) {
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

// How a row of the prediction (a sample, or a row of a list) is cut, and where in the scratch what
// is computed on the way lies: factors of the results, of channels, partial sums, counts.
struct Pieces {
    int64_t p, rows, tiles, results, channels, counts;
    unsigned threads;

    int64_t doubles() const { return results + 2 * channels + rows * tiles; }
};

Pieces pieces_of(const Tensor& pred, const ImageLayout& image, const Tensor& mask,
                 const Tensor& index, const LossSpec& spec) {
    Pieces of{};
    of.p = prediction_patch(pred, image);
    of.rows = index ? index.numel() : image.batch;
    of.results = spec.reduction == kEach ? image.batch : 1;
    of.channels = image.channels;
    of.counts = ceil_div(mask.numel(), kCounted);
    // Few idle threads in short rows.
    const int64_t numbers =
        index ? pred.size(-1) : image.channels * image.size.height * image.size.width;
    of.threads = unsigned(max_of(kWarp, power_of_two(ceil_div(numbers, kNumbers), kMostThreads)));
    of.tiles = ceil_div(numbers, int64_t(kNumbers) * of.threads);
    return of;
}

// So that neighbours in memory come one after another.
void sort_axes(Problem* problem) {
    for (int i = 1; i < kLossAxes; ++i) {
        const Axis moved = problem->axis[i];
        int to = i;
        for (; to > 0 && problem->axis[to - 1].pred < moved.pred; --to)
            problem->axis[to] = problem->axis[to - 1];
        problem->axis[to] = moved;
    }
}

Problem problem_of(const Tensor& pred, const Tensor& grad, const ImageLayout& image,
                   const LossList& list, const LossSpec& spec, int64_t p) {
    const Extent tokens = scale_of(image.size, {1, p, p});
    const int64_t in_row = list.given ? 0 : tokens.width;
    const bool interleaved = spec.order == kInterleaved;
    const PredictionLayout from = prediction_layout(pred, image.channels, p, in_row, interleaved);
    PredictionLayout to{};
    if (grad) to = prediction_layout(grad, image.channels, p, in_row, interleaved);
    const int64_t h = list.given ? 1 : tokens.height, w = list.given ? 1 : tokens.width;
    Problem problem{};
    problem.list = list;
    problem.axis[0] = {image.channels, from.sc, to.sc, image.sc, 0, 0, 1};
    problem.axis[1] = {h, from.sty, to.sty, p * image.sy, int32_t(p), 0, 0};
    problem.axis[2] = {p, from.sdy, to.sdy, image.sy, 1, 0, 0};
    problem.axis[3] = {w, from.stx, to.stx, p * image.sx, 0, int32_t(p), 0};
    problem.axis[4] = {p, from.sdx, to.sdx, image.sx, 0, 1, 0};
    sort_axes(&problem);
    problem.numbers = image.channels * h * w * p * p;
    problem.pred_batch = list.given ? from.stx : from.sb;
    problem.grad_batch = list.given ? to.stx : to.sb;
    problem.target_batch = image.sb;
    problem.target_y = image.sy;
    problem.target_x = image.sx;
    problem.patch = p;
    problem.units_in_row = tokens.width;
    problem.parameter = with_loss(spec.kind, [&](auto l) { return l.parameter(spec.beta); });
    problem.channels = image.channels;
    problem.kind = spec.kind;
    problem.each = spec.reduction == kEach;
    problem.scaled = pred.element != kFloat16;
    return problem;
}

// The pass itself, by the widest kernel that fits.
int start_pass(const Problem& problem, int64_t blocks, unsigned threads, const Tensor& pred,
               const Tensor& grad, const Tensor& target, Stream stream) {
    const Array from = array_of(pred), wanted = array_of(target);
    const Array to{grad.data, pred.element};
    const bool wide =
        pred.element != kFloat64 && target.element != kFloat64 &&
        groups_pack(problem, &Axis::pred, from.base, pred.element, problem.pred_batch) &&
        (!to.base || groups_pack(problem, &Axis::grad, to.base, pred.element, problem.grad_batch));
    const dim3 block{threads};
    if (!wide) return launch(pass_narrow, blocks, block, stream, problem, from, to, wanted);
    const bool along = along_rows(problem, wanted.base, target.element);
    auto* start = pred.element == kFloat32    ? start_wide<float>
                  : pred.element == kBFloat16 ? start_wide<BFloat16>
                                              : start_wide<Float16>;
    return start(problem, blocks, block, from, to, wanted, along, stream);
}

}  // namespace

int64_t masked_loss_scratch(const Tensor& pred, const Tensor& target, const Tensor& mask,
                            const Tensor& index, const LossSpec& spec) {
    const Pieces pieces = pieces_of(pred, image_layout(target), mask, index, spec);
    return pieces.doubles() + pieces.counts;
}

int masked_loss(const Tensor& pred, const Tensor& target, const Tensor& mask, const Tensor& index,
                const Tensor& mean, const Tensor& std, const LossSpec& spec, const Tensor& loss,
                const Tensor& grad, const Tensor& scale, const Tensor& scratch, Stream stream) {
    const ImageLayout image = image_layout(target);
    const Pieces pieces = pieces_of(pred, image, mask, index, spec);
    const int64_t p = pieces.p;
    const LossList list = list_of(index, image.batch, scale_of(image.size, {1, p, p}).cells());
    double* const scales = scratch.as<double>();
    double* const affine = scales + pieces.results;
    double* const partial = affine + 2 * pieces.channels;
    int64_t* const counts = reinterpret_cast<int64_t*>(scales + pieces.doubles());
    const bool bytes = target.element == kUInt8;

    Problem problem = problem_of(pred, grad, image, list, spec, p);
    problem.grid = mask_over(mask, image.size);
    problem.units = problem.grid.units.cells();
    problem.scale = scales;
    problem.affine = bytes || std ? affine : nullptr;
    problem.partial = partial;
    problem.tiles = pieces.tiles;
    const LossScale scaling{scales,
                            array_of(scale),
                            array_of(mean),
                            array_of(std),
                            bytes || std ? affine : nullptr,
                            bytes ? 255.0 : 1.0,
                            index ? p * p : problem.grid.scale.cells(),
                            image.channels,
                            spec.eps,
                            spec.factor,
                            spec.reduction};
    int code =
        loss_scales(scaling, list, problem.grid.mask, image.batch, problem.units, counts, stream);
    if (code != cudaSuccess) return code;
    const int64_t blocks = pieces.rows * pieces.tiles;
    code = start_pass(problem, blocks, pieces.threads, pred, grad, target, stream);
    if (code != cudaSuccess) return code;
    const double unit = with_loss(spec.kind, [&](auto l) { return l.unit(spec.beta); });
    return loss_results(scaling, list, partial, blocks, pieces.tiles, unit, image.batch,
                        array_of(loss), stream);
}

SIMMIM_END

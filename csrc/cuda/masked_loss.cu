// Masked losses and their gradient in one pass over the masked pixels. Two launches: the pass,
// whose blocks count the masked units for themselves and leave one partial sum each, and the
// ordered sum of those; a third where there is more to count than a block should.
//
// There are three kernels for the pass, and the first that supports the layouts is used: pass_wide
// (loss_wide.cu), where contiguous groups of the prediction are contiguous in the target;
// pass_staged (loss_staged.cu), which reorders the target in shared memory; and pass_narrow here,
// which handles one number at a time, of any type and stride, in double: a block handles
// `threads` * kNumbers numbers of one sample (or of one row of a list), in the prediction's memory
// order.
#include "cuda/kernels.h"
#include "cuda/loss_problem.h"
#include "cuda/loss_wide.h"
#include "cuda/vector.h"

SIMMIM_BEGIN

inline namespace masked_loss_file {

constexpr int kMostThreads = 256, kNumbers = 32;

__global__ void __launch_bounds__(kMostThreads, 4)
    pass_narrow(Problem problem, Array pred, Array grad, Array target) {
    const int64_t row = blockIdx.x / problem.tiles, tile = blockIdx.x - row * problem.tiles;
    int64_t sample;
    const Place begin = problem.begin(row, &sample);
    const bool each = problem.scaling.reduction == kEach;
    const double found = each && sample < 0 ? 0.0 : problem.scaling.of(max_of<int64_t>(sample, 0));
    if (threadIdx.x == 0 && tile == 0 && (each ? sample >= 0 : row == 0)) {
        problem.scaling.leave(each ? sample : 0, found);
    }
    const double factor = problem.scaled ? found : kHalfSlope;
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

// How the work is divided into blocks, and where factors, partial sums and counts are in the
// scratch.
struct Pieces {
    int64_t p, rows, tiles, blocks, results, counts;
    unsigned threads;
    bool is_wide, is_staged;
    WideLoss wide;
    StagedCell cell;

    int64_t doubles() const { return results + blocks; }
};

Pieces pieces_of(const Tensor& pred, const Tensor& grad, const Tensor& target, const Tensor& mask,
                 const Tensor& index, const Tensor& std, const LossSpec& spec) {
    const ImageLayout image = image_layout(target);
    Pieces of{};
    of.p = prediction_patch(pred, image);
    const int64_t cells =
        scale_of(image.size, {1, max_of<int64_t>(of.p, 1), max_of<int64_t>(of.p, 1)}).cells();
    const LossList list = list_of(index, image.batch, cells);
    of.rows = index ? index.numel() : image.batch;
    of.results = spec.reduction == kEach ? image.batch : 1;
    of.counts = parts_counted(list, spec.reduction, image.batch, extent_from(mask, 1).cells());
    of.is_wide = plan_wide(pred, grad, target, mask, index, std, spec, &of.wide);
    of.is_staged =
        !of.is_wide && plan_staged(pred, grad, target, mask, index, spec, &of.wide, &of.cell);
    if (of.is_wide || of.is_staged) {
        const WideLoss& w = of.wide;
        of.tiles = int64_t(w.planes) * w.cut.tiles * w.cut.parts;
        of.blocks = w.cells ? (index ? of.rows / w.cells : image.batch) * of.tiles : 0;
        return of;
    }
    // Few idle threads in short rows.
    const int64_t numbers =
        index ? pred.size(-1) : image.channels * image.size.height * image.size.width;
    of.threads = unsigned(max_of(kWarp, power_of_two(ceil_div(numbers, kNumbers), kMostThreads)));
    of.tiles = ceil_div(numbers, int64_t(kNumbers) * of.threads);
    of.blocks = of.rows * of.tiles;
    return of;
}

// Sorts axes by stride, so that consecutive numbers are neighbours in memory.
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
    problem.kind = spec.kind;
    problem.scaled = pred.element != kFloat16;
    return problem;
}

}  // namespace masked_loss_file

int64_t masked_loss_scratch(const Tensor& pred, const Tensor& grad, const Tensor& target,
                            const Tensor& mask, const Tensor& index, const Tensor& std,
                            const LossSpec& spec) {
    const Pieces pieces = pieces_of(pred, grad, target, mask, index, std, spec);
    return pieces.doubles() + pieces.counts;
}

int masked_loss(const Tensor& pred, const Tensor& target, const Tensor& mask, const Tensor& index,
                const Tensor& mean, const Tensor& std, const LossSpec& spec, const Tensor& loss,
                const Tensor& grad, const Tensor& scale, const Tensor& scratch, Stream stream) {
    const ImageLayout image = image_layout(target);
    Pieces pieces = pieces_of(pred, grad, target, mask, index, std, spec);
    const int64_t p = pieces.p, batch = image.batch;
    const LossList list = list_of(index, batch, scale_of(image.size, {1, p, p}).cells());
    double* const scales = scratch.as<double>();
    double* const partial = scales + pieces.results;
    int64_t* const counts = reinterpret_cast<int64_t*>(scales + pieces.doubles());
    const MaskGrid grid = mask_over(mask, image.size);
    const int64_t units = grid.units.cells();
    if (pieces.counts) {
        const int code =
            count_masked(list, spec.reduction, grid.mask, batch, units, counts, stream);
        if (code != cudaSuccess) return code;
    }
    const int64_t known = list.per_sample ? list.rows / pieces.results : -1;
    const LossScale scaling{scales,
                            array_of(scale),
                            grid.mask,
                            pieces.counts ? counts : nullptr,
                            pieces.counts,
                            known,
                            units,
                            batch,
                            index ? p * p : grid.scale.cells(),
                            image.channels,
                            spec.eps,
                            spec.factor,
                            spec.reduction};
    int code;
    if (pieces.is_wide || pieces.is_staged) {
        WideLoss& wide = pieces.wide;
        wide.scaling = scaling;
        wide.list = list;
        wide.mean = array_of(mean);
        wide.std = array_of(std);
        wide.partial = partial;
        code = pieces.is_wide
                   ? start_wide(wide, pieces.blocks, pred, grad, target, spec.kind, stream)
                   : start_staged(wide, pieces.cell, pieces.blocks, pred, grad, target, spec.kind,
                                  stream);
    } else {
        Problem problem = problem_of(pred, grad, image, list, spec, p);
        problem.grid = grid;
        problem.scaling = scaling;
        problem.mean = array_of(mean);
        problem.std = array_of(std);
        problem.unit = target.element == kUInt8 ? 255.0 : 1.0;
        problem.partial = partial;
        problem.tiles = pieces.tiles;
        code = launch(pass_narrow, pieces.blocks, dim3(pieces.threads), stream, problem,
                      array_of(pred), Array{grad.data, pred.element}, array_of(target));
    }
    if (code != cudaSuccess) return code;
    const double unit = with_loss(spec.kind, [&](auto l) { return l.unit(spec.beta); });
    return loss_results(scaling, list, partial, pieces.blocks, pieces.tiles, unit, batch,
                        array_of(loss), stream);
}

SIMMIM_END

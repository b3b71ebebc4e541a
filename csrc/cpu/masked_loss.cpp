// Masked losses: the loss and its gradient in one pass over the masked pixels. What is visible is
// not read; its gradient is zero and written once.
#include "cpu/masked_loss_walk.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

SIMMIM_BEGIN

namespace {

// Denominators of the losses, and divisions by them.
struct Weights {
    Reduction reduction;
    double eps, unit_pixels, channels, factor;

    // 0 where nothing is masked, for 1 / eps may overflow float32.
    double denominator(double masked_units) const {
        if (reduction == kSum) return 1.0;
        return masked_units == 0.0 ? 0.0 : (masked_units * unit_pixels + eps) * channels;
    }
    // a / b times the factor; 0 where nothing is masked.
    double over(double a, double b) const { return b == 0.0 ? 0.0 : a * factor / b; }
};

// An index list: which token each row of the prediction is. Entries are positions in the sample's
// token grid (per_sample > 0 rows a sample), or sample * cells + position; -1 marks an unused row.
struct TokenList {
    const int32_t* position;
    int64_t rows, per_sample;

    // Fills `row_of` (-1: no row) and `present`, each of batch * cells numbers. Returns the first
    // row with an invalid or repeated position, or -1 if there is none.
    int64_t invert(int64_t batch, int64_t cells, int32_t* row_of, uint8_t* present) const {
        for (int64_t i = 0; i < batch * cells; ++i) {
            row_of[i] = -1;
            present[i] = 0;
        }
        for (int64_t r = 0; r < rows; ++r) {
            if (position[r] == -1 && !per_sample) continue;
            const int64_t most = per_sample ? cells : batch * cells;
            if (position[r] < 0 || position[r] >= most) return r;
            const int64_t at = (per_sample ? r / per_sample * cells : 0) + position[r];
            if (present[at]) return r;
            row_of[at] = int32_t(r);
            present[at] = 1;
        }
        return -1;
    }
};

double sum_lanes(const double* total) {
    double sum = 0;
    for (int64_t j = 0; j < kLanes; ++j) sum += total[j];
    return sum;
}

int64_t count_masked(const uint8_t* cells, int64_t n) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) count += cells[i] != 0;
    return count;
}

// `sums` has room for one number a piece and two a sample, `scratch` for `team` times the scratch
// of a loop.
template <class C>
void run(const Walk<C>& walk, const Weights& weights, double unit, double* sums, char* scratch,
         C* loss, C* scale_out, int threads) {
    const int64_t per_sample = walk.pieces_per_sample(), pieces = walk.batch * per_sample;
    const bool apart = weights.reduction == kEach;
    double *partial = sums, *denominator = sums + pieces, *sum = denominator + walk.batch;
    for (int64_t b = 0; b < walk.batch; ++b) {
        denominator[b] = double(count_masked(walk.grid.sample(b), walk.grid.units.cells()));
        sum[b] = 0.0;
        if (!apart && b > 0) denominator[0] += denominator[b];
    }
    const int64_t results = apart ? walk.batch : 1;
    for (int64_t b = 0; b < min_of(results, walk.batch); ++b)
        denominator[b] = weights.denominator(denominator[b]);

    const int64_t elements = walk.batch * walk.scorer.channels * walk.height * walk.width;
    const int64_t bytes = whole_lines(walk.scratch_bytes());
    parallel_for(threads, elements, threads, [&](int64_t part) {
        for (int64_t i = pieces * part / threads; i < pieces * (part + 1) / threads; ++i) {
            const int64_t b = i / per_sample;
            const double scale =
                scale_out ? kHalfSlope : weights.over(1.0, denominator[apart ? b : 0]);
            double total[kLanes] = {};
            walk.piece(b, i % per_sample, C(scale), scratch + part * bytes, total);
            partial[i] = sum_lanes(total);
        }
        if (walk.scorer.stream) finish_streams();
    });

    for (int64_t i = 0; i < pieces; ++i) sum[apart ? i / per_sample : 0] += partial[i];
    for (int64_t b = 0; b < results; ++b) {
        const bool empty = walk.batch == 0;
        loss[b] = empty ? C(0) : C(weights.over(sum[b] * unit, denominator[b]));
        if (scale_out)
            scale_out[b] = empty ? C(0) : C(weights.over(1.0 / kHalfSlope, denominator[b]));
    }
}

struct Call {
    const Tensor &pred, &target, &mask, &index, &mean, &std, &loss, &grad, &scale;
    const LossSpec& spec;
    int threads;
};

// The layout of a prediction or its gradient; with an index list, its rows are those of the list.
Prediction prediction(const Tensor& of, const ImageLayout& image, int64_t patch, const Call& call) {
    const int64_t in_row = call.index ? 0 : image.size.width / patch;
    return {prediction_layout(of, image.channels, patch, in_row, call.spec.order == kInterleaved),
            memory_of(of)};
}

// `mean` or `std` as double, in `numbers`; null where it is absent.
const double* channel_numbers(const Tensor& values, double* numbers) {
    if (!values) return nullptr;
    memory_of(values).load(0, 1, values.size(0), numbers);
    return numbers;
}

// Zeroes the gradient of the unused rows of a list, which no loop has written.
void zero_padding(const Prediction& grad, const TokenList& list, int64_t numbers) {
    for (int64_t r = 0; r < list.rows; ++r) {
        if (list.position[r] == -1)
            grad.memory.zero(r * grad.stx, min_of(grad.sc, grad.sdx), numbers);
    }
}

template <class C>
int64_t serve(const Call& call) {
    const LossSpec& spec = call.spec;
    const ImageLayout image = image_layout(call.target);
    const int64_t p = prediction_patch(call.pred, image), channels = image.channels;
    const Extent tokens = scale_of(image.size, {1, p, p});
    const int64_t cells = call.index ? image.batch * tokens.cells() : 0;

    Walk<C> walk = {};
    walk.norm = spec.norm;
    walk.norm_side = spec.norm_side;
    walk.norm_eps = spec.norm_eps;
    walk.batch = image.batch;
    walk.height = image.size.height;
    walk.width = image.size.width;
    walk.grid = mask_over(call.mask, image.size);
    Scorer<C>& scorer = walk.scorer;
    scorer.channels = channels;
    scorer.p = p;
    scorer.h = tokens.height;
    scorer.w = tokens.width;
    const int64_t sums =
        walk.pieces_per_sample() * image.batch + 2 * max_of<int64_t>(image.batch, 1);
    const Scratch numbers((sums + 2 * channels) * int64_t(sizeof(double)));
    const Scratch rows(cells * int64_t(sizeof(int32_t) + 1));

    const TokenList list{call.index.as<int32_t>(), call.index ? call.index.numel() : 0,
                         call.index.dims == 2 ? call.index.size(1) : 0};
    if (call.index) {
        int32_t* row_of = rows.as<int32_t>();
        uint8_t* present = reinterpret_cast<uint8_t*>(row_of + cells);
        const int64_t wrong = list.invert(image.batch, tokens.cells(), row_of, present);
        if (wrong >= 0) return wrong;
        scorer.row_of = row_of;
        walk.grid = {present, tokens, {1, p, p}};
    }
    double* const statistics = numbers.as<double>() + sums;
    scorer.pred = prediction(call.pred, image, p, call);
    scorer.grad = scorer.pred;
    scorer.grad.memory.base = nullptr;
    if (call.grad) scorer.grad = prediction(call.grad, image, p, call);
    scorer.target = {image, memory_of(call.target), channel_numbers(call.mean, statistics),
                     channel_numbers(call.std, statistics + channels)};
    scorer.single = p == 1 && call.pred.dims < 4 && spec.order == kInterleaved && !call.std &&
                    call.target.element != kUInt8;
    scorer.direct = span_for<C>(call.pred.element, spec.kind, bool(call.grad));
    scorer.buffered = span_for<C>(kElement<C>, spec.kind, bool(call.grad));
    const Scratch each(call.threads * whole_lines(walk.scratch_bytes()));
    double unit = 1.0;
    with_loss(spec.kind, [&](auto loss) {
        scorer.parameter = C(loss.parameter(spec.beta));
        unit = loss.unit(spec.beta);
    });
    scorer.stream = call.grad && call.grad.data != call.pred.data &&
                    is_streamed(image.elements() * element_size(call.pred.element));
    const Weights weights{spec.reduction, spec.eps, double(walk.grid.scale.cells()),
                          double(channels), spec.factor};
    run(walk, weights, unit, numbers.as<double>(), each.as<char>(), call.loss.as<C>(),
        call.scale.as<C>(), call.threads);
    if (call.grad) zero_padding(scorer.grad, list, channels * p * p);
    return -1;
}

}  // namespace

int64_t masked_loss(const Tensor& pred, const Tensor& target, const Tensor& mask,
                    const Tensor& index, const Tensor& mean, const Tensor& std,
                    const LossSpec& spec, const Tensor& loss, const Tensor& grad,
                    const Tensor& scale, int threads) {
    const Call call{pred, target, mask, index, mean, std, loss, grad, scale, spec, threads};
    return loss.element == kFloat64 ? serve<double>(call) : serve<float>(call);
}

SIMMIM_END

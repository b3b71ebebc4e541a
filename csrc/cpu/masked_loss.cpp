// Masked losses: the loss and its gradient in one pass over the masked pixels. What is visible is
// not read; its gradient is zero and written once.
#include "cpu/address.h"
#include "cpu/masked_loss_walk.h"
#include "cpu/parallel.h"

SIMMIM_BEGIN

namespace {

// Partial sums of so small a batch that memory for them costs a share of the call; twin:
// _SUMS_ON_STACK in simmim_kernels/backends/cpu/masked_loss.py.
constexpr int64_t kSumsOnStack = 256;

enum Reduction : int { kMean = 0, kSum = 1, kNone = 2 };

// What `masked_loss` returns where it knows no such loss, reduction or normalisation.
constexpr int64_t kUnknownOption = -2;

// Denominators, and the quotients that loss and gradient are.
struct Weights {
    int reduction;
    double eps, unit_pixels, channels;

    // 0 where nothing is masked: the reciprocal of a tiny eps has no place in float32.
    double denominator(double masked_units) const {
        if (reduction == kSum) return 1.0;
        return masked_units == 0.0 ? 0.0 : (masked_units * unit_pixels + eps) * channels;
    }
    // Nothing masked: 0.
    static double over(double a, double b) { return b == 0.0 ? 0.0 : a / b; }
};

// Which token of which sample each row of a list predicts: position `cell` of the token grid in
// every row of a sample (per_sample > 0), or sample * cells + cell; -1 where a row predicts none.
struct TokenList {
    const int32_t* position;
    int64_t rows, per_sample;

    // Fills row_of (-1: no row) and present, each batch * cells. Returns the first row that names
    // no token, or one that has a row already; -1 where all is right.
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

// `sums` has room for a number a piece and two a sample, `scratch` for `team` times what the walk
// needs.
template <class C>
void run(const Walk<C>& walk, const Weights& weights, double beta, double* sums, char* scratch,
         C* loss, C* scale_out, int threads) {
    const int64_t per_sample = walk.pieces_per_sample(), pieces = walk.batch * per_sample;
    const bool apart = weights.reduction == kNone;
    double *partial = sums, *denominator = sums + pieces, *sum = denominator + walk.batch;
    for (int64_t b = 0; b < walk.batch; ++b) {
        denominator[b] = double(count_masked(walk.mask + b * walk.cells, walk.cells));
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
            const double scale = scale_out ? 1.0 : Weights::over(1.0, denominator[apart ? b : 0]);
            double total[kLanes] = {};
            walk.piece(b, i % per_sample, C(scale), scratch + part * bytes, total);
            partial[i] = sum_lanes(total);
        }
        if (walk.scorer.stream) finish_streams();
    });

    for (int64_t i = 0; i < pieces; ++i) sum[apart ? i / per_sample : 0] += partial[i];
    for (int64_t b = 0; b < results; ++b) {
        const bool empty = walk.batch == 0;
        loss[b] = empty ? C(0) : C(Weights::over(sum[b] * beta, denominator[b]));
        if (scale_out) scale_out[b] = empty ? C(0) : C(Weights::over(1.0, denominator[b]));
    }
}

// How a loss's tensors lie; twin: _plan in simmim_kernels/backends/cpu/masked_loss.py. Strides of
// prediction and gradient: sample, channel, token row, row, token, pixel.
struct Layout {
    int64_t batch, channels, height, width, p;
    int64_t pred_element, target_element, loss_element;
    int64_t norm, norm_side;
    int64_t pred[6], grad[6];
    int64_t target[4];  // sample, channel, row, pixel
};

template <class C>
Walk<C> walk_of(const Layout& of, double norm_eps) {
    Walk<C> walk = {};
    walk.scorer.channels = of.channels;
    walk.scorer.p = of.p;
    walk.scorer.h = of.height / of.p;
    walk.scorer.w = of.width / of.p;
    walk.norm = {int(of.norm), of.norm_side, norm_eps};
    walk.batch = of.batch;
    walk.height = of.height;
    walk.width = of.width;
    return walk;
}

Prediction prediction(char* base, int64_t element, const int64_t* s) {
    return {{base, int(element)}, s[0], s[1], s[2], s[3], s[4], s[5]};
}

}  // namespace

int64_t masked_loss_scratch(Address layout, bool pieces) {
    const Layout& of = *layout.as<const Layout>();
    const auto ask = [&](auto compute) {
        const auto walk = walk_of<decltype(compute)>(of, 0.0);
        return pieces ? walk.pieces_per_sample() : whole_lines(walk.scratch_bytes());
    };
    return of.loss_element == kFloat64 ? ask(double()) : ask(float());
}

int64_t masked_loss(Address layout, Address pred, Address grad, Address target, Address mean,
                    Address std, Address mask, int64_t grid_h, int64_t grid_w, Address list,
                    int64_t list_rows, int64_t rows_per_sample, Address row_of, Address present,
                    double norm_eps, int kind, double beta, double eps, int reduction, Address loss,
                    Address scale, Address sums, Address scratch, int threads) {
    const Layout& of = *layout.as<const Layout>();
    if (kind < kL1 || kind > kSmoothL1 || reduction < kMean || reduction > kNone ||
        of.norm < kNoNorm || of.norm > kPatchNorm)
        return kUnknownOption;
    const TokenList tokens{list.as<int32_t>(), list_rows, rows_per_sample};
    if (tokens.position) {
        grid_h = of.height / of.p;
        grid_w = of.width / of.p;
        const int64_t wrong =
            tokens.invert(of.batch, grid_h * grid_w, row_of.as<int32_t>(), present.as<uint8_t>());
        if (wrong >= 0) return wrong;
    }
    const CoarseGrid grid{grid_w, of.height / grid_h, of.width / grid_w};
    const Weights weights{reduction, eps, double(grid.sy * grid.sx), double(of.channels)};
    const auto serve = [&](auto compute) {
        using C = decltype(compute);
        Walk<C> walk = walk_of<C>(of, norm_eps);
        Scorer<C>& scorer = walk.scorer;
        scorer.pred = prediction(pred.as<char>(), of.pred_element, of.pred);
        scorer.grad = prediction(grad.as<char>(), of.pred_element, grad ? of.grad : of.pred);
        const int64_t* t = of.target;
        scorer.target = {{target.as<char>(), int(of.target_element)},
                         t[0],
                         t[1],
                         t[2],
                         t[3],
                         mean.as<double>(),
                         std.as<double>()};
        scorer.direct = span_for<C>(int(of.pred_element), kind, bool(grad));
        scorer.buffered = span_for<C>(kElement<C>, kind, bool(grad));
        scorer.inverse_beta = C(1.0 / beta);
        scorer.stream = grad && grad.pointer != pred.pointer &&
                        is_streamed(of.batch * of.channels * of.height * of.width *
                                    element_size(int(of.pred_element)));
        scorer.row_of = tokens.position ? row_of.as<int32_t>() : nullptr;
        walk.mask = tokens.position ? present.as<uint8_t>() : mask.as<uint8_t>();
        walk.grid = grid;
        walk.cells = grid_h * grid_w;
        double few[kSumsOnStack];
        run(walk, weights, kind == kSmoothL1 ? beta : 1.0, sums ? sums.as<double>() : few,
            scratch.as<char>(), loss.as<C>(), scale.as<C>(), threads);
        // Rows that predict no token: nobody has written their gradient.
        const int64_t numbers = of.channels * of.p * of.p, *step = of.grad;
        for (int64_t r = 0; grad && r < list_rows; ++r) {
            if (tokens.position[r] == -1)
                scorer.grad.memory.zero(r * step[4], min_of(step[1], step[5]), numbers);
        }
    };
    if (of.loss_element == kFloat64) {
        serve(double());
    } else {
        serve(float());
    }
    return -1;
}

SIMMIM_END

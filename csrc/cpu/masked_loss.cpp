// Masked losses: the loss and its gradient in one pass over the masked pixels. What is visible is
// not read; its gradient is zero and written once.
#include "common/grid.h"
#include "cpu/address.h"
#include "cpu/masked_loss_tiles.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

SIMMIM_BEGIN

namespace {

enum Reduction : int { kMean = 0, kSum = 1, kNone = 2 };

struct Shape {
    int64_t batch, channels, height, width, p;
};

// The mask of one sample over pixels.
struct PixelMask {
    const uint8_t* cells;
    CoarseGrid grid;

    // Where the run of equal cells that holds pixel (y, x) ends, at most at `end`.
    int64_t run_end(int64_t y, int64_t x, int64_t end) const {
        const uint8_t* row = cells + grid.cell(y, 0);
        const int64_t last = (end - 1) / grid.sx;
        int64_t cell = x / grid.sx;
        const bool value = row[cell];
        const uint64_t eight = value ? 0x0101010101010101u : 0;
        for (++cell; cell <= last;) {
            uint64_t next;
            if (cell + 8 <= last + 1 && (std::memcpy(&next, row + cell, 8), next == eight)) {
                cell += 8;
            } else if (bool(row[cell]) == value) {
                ++cell;
            } else {
                return cell * grid.sx;
            }
        }
        return end;
    }

    // 1 where the whole square of pixels is masked, 0 where it is visible, -1 where it is mixed.
    int square(int64_t y, int64_t x, int64_t size) const {
        const bool value = cells[grid.cell(y, x)];
        for (int64_t row = y; row < y + size; row = (row / grid.sy + 1) * grid.sy) {
            if (bool(cells[grid.cell(row, x)]) != value || run_end(row, x, x + size) < x + size)
                return -1;
        }
        return value;
    }
};

// The predictions of a list of mask units alone: row r is that of unit unit[r], `per_sample` rows a
// sample, or, with per_sample 0, that of unit unit[r] % cells of sample unit[r] / cells.
struct Units {
    const int32_t* unit;
    int64_t rows, per_sample;

    int64_t sample(int64_t r, int64_t cells) const {
        return per_sample ? r / per_sample : unit[r] / cells;
    }
    // The first row that names no unit; -1 where all are right.
    int64_t first_wrong(int64_t batch, int64_t cells) const {
        const int64_t allowed = per_sample ? cells : batch * cells;
        for (int64_t r = 0; r < rows; ++r) {
            if (unit[r] < 0 || unit[r] >= allowed) return r;
        }
        return -1;
    }
};

template <class C>
struct Walk {
    Scorer<C> scorer;
    Shape shape;
    const uint8_t* mask;
    int64_t cells;
    CoarseGrid grid;
    Units units;

    // The pixels of rows [y, y_end) and columns [x, x_end), in runs.
    void rows(int64_t b, int64_t y, int64_t y_end, int64_t x, int64_t x_end, C scale,
              double* total) const {
        const PixelMask pixels{mask + b * cells, grid};
        for (int64_t c = 0; c < shape.channels; ++c) {
            for (int64_t row = y; row < y_end; ++row) {
                for (int64_t from = x; from < x_end;) {
                    const int64_t to = pixels.run_end(row, from, x_end);
                    if (pixels.cells[grid.cell(row, from)]) {
                        scorer.score_run(b, c, row, from, to - from, scale, total);
                    } else {
                        scorer.zero_run(b, c, row, from, to - from);
                    }
                    from = to;
                }
            }
        }
    }

    // One row of tokens whose numbers lie side by side.
    void tokens(int64_t b, int64_t ty, C scale, double* total) const {
        const PixelMask pixels{mask + b * cells, grid};
        const Prediction &pred = scorer.pred, &grad = scorer.grad;
        const int64_t p = shape.p, y = ty * p;
        for (int64_t tx = 0; tx < shape.width / p; ++tx) {
            const int64_t x = tx * p;
            const int64_t to = b * grad.sb + ty * grad.sty + tx * grad.stx;
            const int masked = pixels.square(y, x, p);
            if (masked == 1) {
                scorer.score_token(b * pred.sb + ty * pred.sty + tx * pred.stx, to, b, y, x, scale,
                                   total);
            } else if (masked == 0) {
                if (grad.memory.base) grad.memory.zero(to, 1, shape.channels * p * p);
            } else {
                rows(b, y, y + p, x, x + p, scale, total);
            }
        }
    }

    // Row r of a list of units: one token, seen as an image of its own.
    void unit(int64_t r, C scale, double* total) const {
        const int64_t p = shape.p, b = units.sample(r, cells), cell = units.unit[r] % cells;
        const int64_t y = cell / grid.width * p, x = cell % grid.width * p;
        const int64_t k = units.per_sample ? r % units.per_sample : r;
        const int64_t from = (units.per_sample ? b * scorer.pred.sb : 0) + k * scorer.pred.stx;
        const int64_t to = (units.per_sample ? b * scorer.grad.sb : 0) + k * scorer.grad.stx;
        if (scorer.walks_tokens()) return scorer.score_token(from, to, b, y, x, scale, total);
        Scorer<C> own = scorer;
        own.pred.memory.base = scorer.pred.memory.at(from);
        if (own.grad.memory.base) own.grad.memory.base = scorer.grad.memory.at(to);
        own.target.memory.base = scorer.target.memory.at(scorer.target.at(b, 0, y, x));
        for (int64_t c = 0; c < shape.channels; ++c) {
            for (int64_t row = 0; row < p; ++row) own.score_run(0, c, row, 0, p, scale, total);
        }
    }
};

// Numerators, denominators and the scale of the gradient, for each sample or for the batch.
struct Weights {
    int reduction;
    double eps, unit_pixels, channels;

    double denominator(double masked_units) const {
        return reduction == kSum ? 1.0 : (masked_units * unit_pixels + eps) * channels;
    }
    // Nothing masked and no eps: 0.
    static double over(double a, double b) { return b == 0.0 ? 0.0 : a / b; }
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

// Fills partial[0 .. pieces) with sums of losses; sample_scale(b) is what gradients are scaled by.
template <class C, class SampleScale>
void score(const Walk<C>& walk, int64_t pieces, int64_t band, int threads, double* partial,
           const SampleScale& sample_scale) {
    const Shape& shape = walk.shape;
    const bool by_token = walk.scorer.walks_tokens();
    const int64_t bands = (shape.height + band - 1) / band;
    const int64_t elements = walk.units.unit
                                 ? pieces * shape.channels * shape.p * shape.p
                                 : shape.batch * shape.channels * shape.height * shape.width;
    parallel_for(pieces, elements, threads, [&](int64_t piece) {
        double total[kLanes] = {};
        if (walk.units.unit) {
            walk.unit(piece, C(sample_scale(walk.units.sample(piece, walk.cells))), total);
        } else {
            const int64_t b = piece / bands, y = piece % bands * band;
            const int64_t y_end = min_of(shape.height, y + band);
            const C scale = C(sample_scale(b));
            if (by_token) {
                for (int64_t ty = y / shape.p; ty < y_end / shape.p; ++ty)
                    walk.tokens(b, ty, scale, total);
            } else {
                walk.rows(b, y, y_end, 0, shape.width, scale, total);
            }
        }
        partial[piece] = sum_lanes(total);
    });
}

template <class C>
void run(const Walk<C>& walk, const Weights& weights, double beta, bool plain_gradient,
         int64_t band, double* scratch, C* loss, C* scale_out, int threads) {
    const Shape& shape = walk.shape;
    const bool listed = walk.units.unit;
    const int64_t bands = (shape.height + band - 1) / band;
    const int64_t pieces = listed ? walk.units.rows : shape.batch * bands;
    const bool per_sample = weights.reduction == kNone;
    double *partial = scratch, *denominator = scratch + pieces, *sum = denominator + shape.batch;
    for (int64_t b = 0; b < shape.batch; ++b) {
        denominator[b] =
            listed ? 0.0 : double(count_masked(walk.mask + b * walk.cells, walk.cells));
        sum[b] = 0.0;
    }
    for (int64_t r = 0; listed && r < pieces; ++r)
        denominator[walk.units.sample(r, walk.cells)] += 1.0;
    if (!per_sample) {
        for (int64_t b = 1; b < shape.batch; ++b) denominator[0] += denominator[b];
    }
    const int64_t results = per_sample ? shape.batch : 1;
    for (int64_t b = 0; b < min_of(results, shape.batch); ++b)
        denominator[b] = weights.denominator(denominator[b]);

    score(walk, pieces, band, threads, partial, [&](int64_t b) {
        return plain_gradient ? 1.0 : Weights::over(1.0, denominator[per_sample ? b : 0]);
    });

    for (int64_t piece = 0; piece < pieces; ++piece) {  // always in this order
        const int64_t b = listed ? walk.units.sample(piece, walk.cells) : piece / bands;
        sum[per_sample ? b : 0] += partial[piece];
    }
    for (int64_t b = 0; b < results; ++b) {
        const bool empty = shape.batch == 0;
        loss[b] = empty ? C(0) : C(Weights::over(sum[b] * beta, denominator[b]));
        if (scale_out) scale_out[b] = empty ? C(0) : C(Weights::over(1.0, denominator[b]));
    }
}

}  // namespace

int64_t masked_loss(Address pred, int pred_element, int64_t p_sb, int64_t p_sc, int64_t p_sty,
                    int64_t p_sdy, int64_t p_stx, int64_t p_sdx, Address grad, int64_t g_sb,
                    int64_t g_sc, int64_t g_sty, int64_t g_sdy, int64_t g_stx, int64_t g_sdx,
                    Address target, int target_element, int64_t t_sb, int64_t t_sc, int64_t t_sy,
                    int64_t t_sx, Address mean, Address std, Address mask, int64_t grid_h,
                    int64_t grid_w, Address index, int64_t index_rows, int64_t rows_per_sample,
                    int kind, double beta, double eps, int reduction, Address loss,
                    int loss_element, Address scale, int64_t band, Address scratch, int64_t batch,
                    int64_t channels, int64_t height, int64_t width, int64_t p, int threads) {
    const Units units{index.as<int32_t>(), index_rows, rows_per_sample};
    const int64_t wrong = units.unit ? units.first_wrong(batch, grid_h * grid_w) : -1;
    if (wrong >= 0) return wrong;
    const Prediction from{{pred.as<char>(), pred_element}, p_sb, p_sc, p_sty, p_sdy, p_stx, p_sdx};
    const Prediction to{{grad.as<char>(), pred_element}, g_sb, g_sc, g_sty, g_sdy, g_stx, g_sdx};
    const Target image{{target.as<char>(), target_element},
                       t_sb,
                       t_sc,
                       t_sy,
                       t_sx,
                       mean.as<double>(),
                       std.as<double>()};
    const CoarseGrid grid{grid_w, height / grid_h, width / grid_w};
    const Weights weights{reduction, eps, double(grid.sy * grid.sx), double(channels)};
    const double unit_of_loss = kind == kSmoothL1 ? beta : 1.0;
    const bool plain_gradient = bool(scale);
    const auto serve = [&](auto compute) {
        using C = decltype(compute);
        const int element = sizeof(C) == 8 ? kFloat64 : kFloat32;
        const bool wants_grad = bool(grad);
        const Walk<C> walk{{from, to, image, span_for<C>(pred_element, kind, wants_grad),
                            span_for<C>(element, kind, wants_grad), C(1.0 / beta), channels, p},
                           {batch, channels, height, width, p},
                           mask.as<uint8_t>(),
                           grid_h * grid_w,
                           grid,
                           units};
        run(walk, weights, unit_of_loss, plain_gradient, band, scratch.as<double>(), loss.as<C>(),
            scale.as<C>(), threads);
    };
    if (loss_element == kFloat64) {
        serve(double());
    } else {
        serve(float());
    }
    return -1;
}

SIMMIM_END

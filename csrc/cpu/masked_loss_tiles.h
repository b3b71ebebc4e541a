// Scores parts of a batch for the masked losses: whole tokens where a token's numbers are
// contiguous, else rows of the image.
#pragma once

#include "cpu/masked_loss_span.h"
#include "cpu/masked_loss_target.h"

SIMMIM_BEGIN

constexpr int64_t kTile = 1024;  // elements: prediction, target and gradient together fit the L1

constexpr int64_t kGoal = 8192;  // targets that are normalised or converted before they are scored

constexpr int64_t kAhead = 4;  // rows of prefetching; 2 to 16 take the same time within the noise

// Row and column of a token.
struct Place {
    int64_t ty, tx;
};

// One loss over one batch, in compute type C.
template <class C>
struct Scorer {
    Prediction pred, grad;  // grad.memory.base is null where no gradient is wanted
    Target target;
    SpanLoop<C> direct, buffered;  // over the prediction's own memory (or null), over rows of C
    C parameter;                   // of the loss
    int64_t channels, p;
    // Where only some tokens are predicted: the row of token (ty, tx) of sample b is
    // row_of[(b * h + ty) * w + tx]; null where all are.
    const int32_t* row_of;
    int64_t h, w;
    bool stream;  // whether the gradient is stored past the caches
    bool single;  // whether tokens are one pixel each and targets are stored in the same order

    int64_t token(const Prediction& numbers, int64_t b, int64_t ty, int64_t tx) const {
        if (row_of) return row_of[(b * h + ty) * w + tx] * numbers.stx;
        return b * numbers.sb + ty * numbers.sty + tx * numbers.stx;
    }

    // Whether tokens are scored whole: a token's numbers are contiguous and a line of them fits
    // into a tile, or tokens are one pixel each.
    bool walks_tokens() const {
        const bool planar = pred.is_planar(p) && (!grad.memory.base || grad.is_planar(p));
        const bool interleaved = pred.is_interleaved(p, channels) &&
                                 (!grad.memory.base || grad.is_interleaved(p, channels));
        const bool whole = (planar && p <= kTile) || (interleaved && channels * p <= kTile);
        return single || (direct && whole);
    }

    int64_t token(const Prediction& numbers, int64_t b, const Place& at) const {
        return token(numbers, b, at.ty, at.tx);
    }

    // Scores a masked token of one pixel, whose channels form a row of any length. `next` is a
    // later masked token, for prefetching, or the token itself. `made` is its normalised target, or
    // null. The sums have the same bits for every layout.
    void score_single(int64_t b, const Place& here, const Place& next, const C* made, C scale,
                      double* total) const {
        C goals[kTile], row[kTile], slope[kTile];
        const int64_t from = token(pred, b, here), to = token(grad, b, here);
        const int64_t at = target.at(b, 0, here.ty, here.tx);
        const int64_t pred_next = token(pred, b, next) - from;
        const bool has_grad = grad.memory.base;
        const bool in_target = target.sc == 1 && target.memory.element == kElement<C>;
        for (int64_t c = 0, n; c < channels; c += n) {
            n = min_of(kTile, channels - c);
            const C* goal = made ? made + c : goals;
            if (!made && in_target) goal = numbers<C>(target.memory, at + c);
            if (goal == goals) target.memory.load(at + c * target.sc, target.sc, n, goals);
            const Run run = {0, n, true};
            const int64_t goal_next =
                in_target && !made ? target.at(b, 0, next.ty, next.tx) - at : 0;
            if (direct && pred.sc == 1 && (!has_grad || grad.sc == 1)) {
                direct({pred.memory.at(from + c), goal, slopes(to + c), n, 0, n, 1, 1, pred_next,
                        goal_next, stream},
                       &run, 1, parameter, scale, total);
                continue;
            }
            pred.memory.load(from + c * pred.sc, pred.sc, n, row);
            buffered({reinterpret_cast<char*>(row), goal, reinterpret_cast<char*>(slope), 0, 0, 0,
                      1, 0, 0, 0, false},
                     &run, 1, parameter, scale, total);
            if (has_grad) grad.memory.store(slope, n, to + c * grad.sc, grad.sc);
        }
    }

    // Scores a masked token of several pixels, of a prediction that `walks_tokens`. `next` as
    // above.
    void score_token(int64_t b, const Place& here, const Place& next, C scale,
                     double* total) const {
        C tile[kTile];
        int64_t from = token(pred, b, here), to = token(grad, b, here);
        const int64_t y = here.ty * p, x = here.tx * p;
        const int64_t pred_next = token(pred, b, next) - from;
        const int64_t goal_next =
            ((next.ty - here.ty) * target.sy + (next.tx - here.tx) * target.sx) * p;
        const auto score = [&](const C* goal, int64_t step, int64_t n, int64_t count) {
            const Run run = {0, n, true};
            direct({pred.memory.at(from), goal, slopes(to), n, step, n, count, count, pred_next,
                    count > 1 ? goal_next : 0, stream},
                   &run, 1, parameter, scale, total);
            from += n * count;
            to += n * count;
        };
        if (pred.is_interleaved(p, channels)) {
            // Several lines are written before the first is read: a vector that is read right after
            // its numbers were stored in parts waits for all of them.
            const int64_t at_once = kTile / (channels * p);
            C planes[kTile];
            for (int64_t dy = 0; dy < p; dy += at_once) {
                const int64_t lines = min_of(at_once, p - dy), pixels = lines * p;
                for (int64_t c = 0; c < channels; ++c)
                    target.load_lines(target.at(b, c, y + dy, x), target.template affine<C>(c),
                                      lines, p, planes + c * pixels);
                interleave_planes(planes, channels, pixels, tile);
                score(tile, 0, channels * pixels, 1);
            }
            return;
        }
        const int64_t at_once = kTile / p;
        for (int64_t c = 0; c < channels; ++c) {
            if (target.template in_place<C>() && p % kLanes == 0) {
                score(numbers<C>(target.memory, target.at(b, c, y, x)), target.sy, p, p);
                continue;
            }
            const Affine<C> affine = target.template affine<C>(c);
            for (int64_t dy = 0; dy < p; dy += at_once) {
                const int64_t lines = min_of(at_once, p - dy);
                target.load_lines(target.at(b, c, y + dy, x), affine, lines, p, tile);
                score(tile, 0, lines * p, 1);
            }
        }
    }

    // The same with a target that is normalised already and has the order of the token's numbers;
    // the sums have the same bits as `score_token`'s.
    void score_made_token(int64_t b, const Place& here, const Place& next, const C* made, C scale,
                          double* total) const {
        const bool interleaved = pred.is_interleaved(p, channels);
        const int64_t line = interleaved ? channels * p : p;
        const int64_t block = line * p, most = kTile / line * line;
        const int64_t from = token(pred, b, here), to = token(grad, b, here);
        const int64_t pred_next = token(pred, b, next) - from;
        for (int64_t first = 0; first < channels * p * p; first += block) {
            for (int64_t i = first, n; i < first + block; i += n) {
                n = min_of(most, first + block - i);
                const Run run = {0, n, true};
                direct({pred.memory.at(from + i), made + i, slopes(to + i), n, 0, n, 1, 1,
                        pred_next, 0, stream},
                       &run, 1, parameter, scale, total);
            }
        }
    }

    void zero_token(int64_t b, const Place& at) const {
        if (!grad.memory.base || row_of) return;
        grad.memory.zero(token(grad, b, at), single ? grad.sc : 1, channels * p * p, stream);
    }

    // Scores rows [y, y + count) of channel c, which have the same masked runs; at most kGoal
    // pixels.
    void score_rows(int64_t b, int64_t c, int64_t y, int64_t count, const Run* runs,
                    int64_t run_count, C scale, double* total) const {
        if (is_image() && target.template in_place<C>()) {
            const int64_t x = runs[0].x;
            const bool more = c + 1 < channels;
            return direct({pred.memory.at(image(pred, b, c, y, x)),
                           numbers<C>(target.memory, target.at(b, c, y, x)),
                           slopes(image(grad, b, c, y, x)), pred.sty, target.sy, grad.sty, count,
                           kAhead, more ? pred.sc : 0, more ? target.sc : 0, stream},
                          runs, run_count, parameter, scale, total);
        }
        const Affine<C> affine = target.template affine<C>(c);
        score_made(b, c, y, count, runs, run_count, scale, total,
                   [&](int64_t row, int64_t x, int64_t n, C* to) {
                       target.load(target.at(b, c, row, x), affine, n, to);
                   });
    }

    // The same with targets written by make(row, x, n, to), n pixels at a time, row after row. As
    // many rows as fit are scored in one call: a call for each row and token made losses of tokens
    // with window targets a quarter slower (benchmarks/NOTES.md).
    template <class Make>
    void score_made(int64_t b, int64_t c, int64_t y, int64_t count, const Run* runs,
                    int64_t run_count, C scale, double* total, const Make& make) const {
        C goal[kGoal];
        const int64_t x = runs[0].x;
        const int64_t length = runs[run_count - 1].x + runs[run_count - 1].n - x;
        int64_t most = kGoal / length;
        if (most > p) most -= most % p;  // whole tokens, where rows begin with one
        for (const int64_t end = y + count; y < end; y += most) {
            const int64_t rows = min_of(most, end - y);
            for (int64_t row = 0; row < rows; ++row) {
                for (int64_t r = 0; r < run_count; ++r) {
                    if (runs[r].masked)
                        make(y + row, runs[r].x, runs[r].n, goal + row * length + runs[r].x - x);
                }
            }
            if (is_image()) {
                direct(
                    {pred.memory.at(image(pred, b, c, y, x)), goal, slopes(image(grad, b, c, y, x)),
                     pred.sty, length, grad.sty, rows, kAhead, rows * pred.sty, 0, stream},
                    runs, run_count, parameter, scale, total);
                continue;
            }
            const bool planar = walks_tokens() && pred.is_planar(p);
            for (int64_t row = 0, lines; row < rows; row += lines) {
                lines = planar && (y + row) % p == 0 && row + p <= rows ? p : 1;
                for (int64_t r = 0; r < run_count; ++r)
                    score_lines(b, c, y + row, lines, runs[r], goal + row * length + runs[r].x - x,
                                length, scale, total);
            }
        }
    }

  private:
    char* slopes(int64_t offset) const {
        return grad.memory.base ? grad.memory.at(offset) : nullptr;
    }

    // Whether the pixels of a row are contiguous.
    bool is_image() const { return direct && p == 1 && !row_of && pred.stx == 1 && grad.stx == 1; }
    static int64_t image(const Prediction& of, int64_t b, int64_t c, int64_t y, int64_t x) {
        return b * of.sb + c * of.sc + y * of.sty + x * of.stx;
    }

    // Scores one run of pixels in several rows: all rows of a token, or one.
    void score_lines(int64_t b, int64_t c, int64_t y, int64_t lines, const Run& run, const C* goal,
                     int64_t goal_step, C scale, double* total) const {
        if (lines != p || p == 1 || run.x % p || run.n % p) {
            for (int64_t k = 0; k < lines; ++k)
                score_apart(b, c, y + k, run, goal + k * goal_step, scale, total);
            return;
        }
        const Run line = {0, p, true};
        for (int64_t x = run.x; x < run.x + run.n; x += p) {
            const int64_t ty = y / p, tx = x / p, within = c * p * p;
            if (!run.masked) {
                if (grad.memory.base && !row_of)
                    grad.memory.zero(token(grad, b, ty, tx) + within, 1, p * p, stream);
                continue;
            }
            direct({pred.memory.at(token(pred, b, ty, tx) + within), goal + (x - run.x),
                    slopes(token(grad, b, ty, tx) + within), p, goal_step, p, p, kAhead, pred.stx,
                    0, stream},
                   &line, 1, parameter, scale, total);
        }
    }

    // Scores one run of a row of any layout, in parts that each lie within one token.
    void score_apart(int64_t b, int64_t c, int64_t y, const Run& run, const C* goal, C scale,
                     double* total) const {
        const int64_t ty = y / p, dy = y % p;
        const int64_t in_pred = c * pred.sc + dy * pred.sdy, in_grad = c * grad.sc + dy * grad.sdy;
        int64_t tx = run.x / p, dx = run.x % p;
        if (!run.masked && (!grad.memory.base || row_of)) return;
        C row[kTile];
        for (int64_t i = 0, n = 0; i < run.n; i += n, ++tx, dx = 0) {
            n = p == 1 ? run.n : min_of(p - dx, run.n - i);
            const int64_t pred_step = p == 1 ? pred.stx : pred.sdx;
            const int64_t grad_step = p == 1 ? grad.stx : grad.sdx;
            const int64_t to = token(grad, b, ty, tx) + in_grad + dx * grad.sdx;
            if (!run.masked) {
                grad.memory.zero(to, grad_step, n);
                continue;
            }
            const Run part = {0, n, true};
            char* numbers = reinterpret_cast<char*>(row);
            pred.memory.load(token(pred, b, ty, tx) + in_pred + dx * pred.sdx, pred_step, n, row);
            buffered({numbers, goal + i, numbers, 0, 0, 0, 1, 0, 0, 0, false}, &part, 1, parameter,
                     scale, total);
            if (grad.memory.base) grad.memory.store(row, n, to, grad_step);
        }
    }
};

SIMMIM_END

// Where predictions and targets of the masked losses lie, and how they meet: whole tokens whose
// numbers lie side by side, or rows of the image.
#pragma once

#include "common/grid.h"
#include "cpu/masked_loss_span.h"

SIMMIM_BEGIN

constexpr int64_t kTile = 1024;  // elements of a tile: it, its target and its gradient fit the L1

constexpr int64_t kGoal = 8192;  // targets that are made before they are scored

constexpr int64_t kAhead = 4;  // rows: from 2 to 16 the time is the same, to the noise

constexpr int64_t kLine = 8;  // pixels of a short line that are copied at once

template <class C>
const C* numbers(const Memory& memory, int64_t offset) {
    return reinterpret_cast<const C*>(memory.at(offset));
}

// A prediction or its gradient. Pixel (y, x) is pixel (dy, dx) of token (ty, tx), y = ty * p + dy.
struct Prediction : PredictionLayout {
    Memory memory;

    // A token's numbers lie side by side, in order "cyx" or "yxc".
    bool is_planar(int64_t p) const { return sdx == 1 && sdy == p && sc == p * p; }
    bool is_interleaved(int64_t p, int64_t channels) const {
        return sc == 1 && sdx == channels && sdy == p * channels;
    }
};

// A channel's pixel value is (stored number - offset) * scale: the difference comes first, for of
// large numbers, which need not be bytes, it keeps the digits.
template <class C>
struct Affine {
    C offset, scale;

    C operator()(C stored) const { return (stored - offset) * scale; }
};

// The target image; pixels u become (u - mean) / std, those of uint8 (u / 255 - mean) / std.
struct Target : ImageLayout {
    Memory memory;
    const double *mean, *std;  // null: 0 and 1

    // Pixels that can be used where they lie.
    template <class C>
    bool in_place() const {
        return memory.element == kElement<C> && sx == 1 && !std;
    }

    template <class C>
    Affine<C> affine(int64_t c) const {
        const double unit = memory.element == kUInt8 ? 255.0 : 1.0;
        return {C(mean ? unit * mean[c] : 0.0), C(1.0 / (unit * (std ? std[c] : 1.0)))};
    }

    // n pixels from `offset`, put `step` apart.
    template <class C>
    void load(int64_t offset, const Affine<C>& of, int64_t n, C* row, int64_t step) const {
        if (memory.element == kUInt8) {
            load_integers(numbers<uint8_t>(memory, offset), of, n, row, step);
        } else if (memory.element == kUInt16) {
            load_integers(numbers<uint16_t>(memory, offset), of, n, row, step);
        } else if (memory.element == kInt16) {
            load_integers(numbers<int16_t>(memory, offset), of, n, row, step);
        } else if (in_place<C>()) {
            const C* p = reinterpret_cast<const C*>(memory.at(offset));
            for (int64_t i = 0; i < n; ++i) row[i * step] = p[i];
        } else if (step == 1) {
            memory.load(offset, sx, n, row);
            for (int64_t i = 0; std && i < n; ++i) row[i] = of(row[i]);
        } else {
            C side[kRow];
            for (int64_t i = 0; i < n; i += kRow) {
                const int64_t m = min_of(kRow, n - i);
                memory.load(offset + i * sx, sx, m, side);
                for (int64_t j = 0; std && j < m; ++j) side[j] = of(side[j]);
                for (int64_t j = 0; j < m; ++j) row[(i + j) * step] = side[j];
            }
        }
    }

    template <class T, class C>
    void load_integers(const T* from, const Affine<C>& of, int64_t n, C* row, int64_t step) const {
        if (sx == 1 && step == 1) {
            for (int64_t i = 0; i < n; ++i) row[i] = of(C(from[i]));
        } else {
            for (int64_t i = 0; i < n; ++i) row[i * step] = of(C(from[i * sx]));
        }
    }

    // `lines` lines of n pixels that lie side by side, the first at `offset`.
    template <class C>
    void load_lines(int64_t offset, const Affine<C>& of, int64_t lines, int64_t n, C* out) const {
        if (in_place<C>() && n >= kLine) {  // pieces of fixed size, the last one overlapping
            const C* p = numbers<C>(memory, offset);
            for (int64_t k = 0; k < lines; ++k, p += sy, out += n) {
                for (int64_t i = 0; i + kLine <= n; i += kLine)
                    std::memcpy(out + i, p + i, kLine * sizeof(C));
                std::memcpy(out + n - kLine, p + n - kLine, kLine * sizeof(C));
            }
        } else if (n == 16 && sx == 1 && memory.element == kUInt8) {  // a ViT's patch: one vector
            const uint8_t* p = reinterpret_cast<const uint8_t*>(memory.at(offset));
            for (int64_t k = 0; k < lines; ++k) {
                for (int64_t i = 0; i < 16; ++i) out[16 * k + i] = of(C(p[k * sy + i]));
            }
        } else {
            for (int64_t k = 0; k < lines; ++k) load(offset + k * sy, of, n, out + k * n, 1);
        }
    }
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
    bool stream;  // the gradient

    int64_t token(const Prediction& numbers, int64_t b, int64_t ty, int64_t tx) const {
        if (row_of) return row_of[(b * h + ty) * w + tx] * numbers.stx;
        return b * numbers.sb + ty * numbers.sty + tx * numbers.stx;
    }

    // Whether tokens are walked whole: their numbers lie side by side, and a line of them fits.
    bool walks_tokens() const {
        const bool planar = pred.is_planar(p) && (!grad.memory.base || grad.is_planar(p));
        const bool interleaved = pred.is_interleaved(p, channels) &&
                                 (!grad.memory.base || grad.is_interleaved(p, channels));
        return direct && ((planar && p <= kTile) || (interleaved && channels * p <= kTile));
    }

    // A token that is masked as a whole, of a prediction that `walks_tokens`.
    // `next` is the masked token after it in its row, or itself.
    void score_token(int64_t b, int64_t ty, int64_t tx, int64_t next, C scale,
                     double* total) const {
        C tile[kTile];
        int64_t from = token(pred, b, ty, tx), to = token(grad, b, ty, tx);
        const int64_t y = ty * p, x = tx * p;
        const auto score = [&](const C* goal, int64_t step, int64_t n, int64_t count) {
            const Run run = {0, n, true};
            direct({pred.memory.at(from), goal, slopes(to), n, step, n, count, count,
                    (next - tx) * pred.stx, count > 1 ? (next - tx) * p : 0, stream},
                   &run, 1, parameter, scale, total);
            from += n * count;
            to += n * count;
        };
        if (pred.is_interleaved(p, channels)) {
            for (int64_t dy = 0; dy < p; ++dy) {
                for (int64_t c = 0; c < channels; ++c)
                    target.load(target.at(b, c, y + dy, x), target.template affine<C>(c), p,
                                tile + c, channels);
                score(tile, 0, channels * p, 1);
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

    void zero_token(int64_t b, int64_t ty, int64_t tx) const {
        if (!grad.memory.base || row_of) return;
        grad.memory.zero(token(grad, b, ty, tx), 1, channels * p * p, stream);
    }

    // Rows [y, y + count) of channel c, which share their runs, no longer than kGoal in all.
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
                       target.load(target.at(b, c, row, x), affine, n, to, 1);
                   });
    }

    // The same; make(row, x, n, to) makes the targets of n pixels, row after row. As many rows as
    // there is room for are scored at once: with a call for each row and token, losses of tokens
    // with window targets took a quarter longer (benchmarks/NOTES.md).
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

    // Pixels of a row lie side by side.
    bool is_image() const { return direct && p == 1 && !row_of && pred.stx == 1 && grad.stx == 1; }
    static int64_t image(const Prediction& of, int64_t b, int64_t c, int64_t y, int64_t x) {
        return b * of.sb + c * of.sc + y * of.sty + x * of.stx;
    }

    // A run of some rows; all those of a token, or one.
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

    // A run of a row whose numbers may lie anywhere: part by part, each within a token.
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

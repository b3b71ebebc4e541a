// Where predictions and targets of the masked losses lie, and how they meet: whole tokens whose
// numbers lie side by side, or runs of pixels in a row of the image.
#pragma once

#include "common/grid.h"
#include "cpu/masked_loss_span.h"

SIMMIM_BEGIN

constexpr int64_t kTile = 1024;  // elements of a tile: it, its target and its gradient fit the L1

// A prediction or its gradient. Pixel (y, x) is pixel (dy, dx) of token (ty, tx), y = ty * p + dy.
struct Prediction {
    Memory memory;
    int64_t sb, sc, sty, sdy, stx, sdx;

    // Neighbours in a row lie as far apart across tokens as within one: an image.
    bool is_linear(int64_t p) const { return p == 1 || stx == p * sdx; }
    // A token's numbers lie side by side, in order "cyx" or "yxc".
    bool is_planar(int64_t p) const { return sdx == 1 && sdy == p && sc == p * p; }
    bool is_interleaved(int64_t p, int64_t channels) const {
        return sc == 1 && sdx == channels && sdy == p * channels;
    }
};

// The target image; pixels of uint8 become (u / 255 - mean) / std.
struct Target {
    Memory memory;
    int64_t sb, sc, sy, sx;
    const double *mean, *std;  // null: 0 and 1

    int64_t at(int64_t b, int64_t c, int64_t y, int64_t x) const {
        return b * sb + c * sc + y * sy + x * sx;
    }

    // n pixels of channel c from `offset`, put `step` apart.
    template <class C>
    void load(int64_t offset, int64_t c, int64_t n, C* row, int64_t step) const {
        if (memory.element == kUInt8) {
            const double deviation = std ? std[c] : 1.0;
            const C scale = C(1.0 / (255.0 * deviation));
            const C shift = C(mean ? -mean[c] / deviation : 0.0);
            const uint8_t* p = reinterpret_cast<const uint8_t*>(memory.at(offset));
            if (sx == 1 && step == 1) {
                for (int64_t i = 0; i < n; ++i) row[i] = C(p[i]) * scale + shift;
            } else {
                for (int64_t i = 0; i < n; ++i) row[i * step] = C(p[i * sx]) * scale + shift;
            }
        } else if (step == 1) {
            memory.load(offset, sx, n, row);
        } else {
            C side[kRow];
            for (int64_t i = 0; i < n; i += kRow) {
                const int64_t m = min_of(kRow, n - i);
                memory.load(offset + i * sx, sx, m, side);
                for (int64_t j = 0; j < m; ++j) row[(i + j) * step] = side[j];
            }
        }
    }
};

// One loss over one batch, in compute type C.
template <class C>
struct Scorer {
    Prediction pred, grad;  // grad.memory.base is null where no gradient is wanted
    Target target;
    SpanLoop<C> direct, buffered;  // over the prediction's own memory, over rows of C
    C inverse_beta;
    int64_t channels, p;
    // Where only some tokens are predicted: the row of token (ty, tx) of sample b is
    // row_of[(b * h + ty) * w + tx]; null where all are.
    const int32_t* row_of;
    int64_t h, w;

    int64_t token(const Prediction& numbers, int64_t b, int64_t ty, int64_t tx) const {
        if (row_of) return row_of[(b * h + ty) * w + tx] * numbers.stx;
        return b * numbers.sb + ty * numbers.sty + tx * numbers.stx;
    }

    // Whether tokens are walked whole: their numbers lie side by side, and a line of them fits.
    bool walks_tokens() const {
        const bool planar = pred.is_planar(p) && (!grad.memory.base || grad.is_planar(p));
        const bool interleaved = pred.is_interleaved(p, channels) &&
                                 (!grad.memory.base || grad.is_interleaved(p, channels));
        return (planar && p <= kTile) || (interleaved && channels * p <= kTile);
    }

    // A token that is masked as a whole, of a prediction that `walks_tokens`.
    void score_token(int64_t b, int64_t ty, int64_t tx, C scale, double* total) const {
        C tile[kTile];
        const int64_t from = token(pred, b, ty, tx), to = token(grad, b, ty, tx);
        const int64_t y = ty * p, x = tx * p;
        const bool planar = pred.is_planar(p);
        const int64_t lines = planar ? channels * p : p;
        const int64_t length = planar ? p : channels * p;
        const int64_t at_once = kTile / length;
        for (int64_t line = 0; line < lines; line += at_once) {
            const int64_t count = min_of(at_once, lines - line);
            for (int64_t k = 0; k < count; ++k) {
                C* row = tile + k * length;
                if (planar) {
                    const int64_t c = (line + k) / p;
                    target.load(target.at(b, c, y + (line + k) % p, x), c, p, row, 1);
                } else {
                    for (int64_t c = 0; c < channels; ++c)
                        target.load(target.at(b, c, y + line + k, x), c, p, row + c, channels);
                }
            }
            direct(pred.memory.at(from + line * length), tile,
                   grad.memory.base ? grad.memory.at(to + line * length) : nullptr, count * length,
                   inverse_beta, scale, total);
        }
    }

    void zero_token(int64_t b, int64_t ty, int64_t tx) const {
        if (grad.memory.base && !row_of)
            grad.memory.zero(token(grad, b, ty, tx), 1, channels * p * p);
    }

    // The target as it is stored: wanted(x, n, tile) gives n numbers from pixel (y, x) on.
    struct Stored {
        const Target& target;
        int64_t b, c, y;

        const C* operator()(int64_t x, int64_t n, C* tile) const {
            const int64_t offset = target.at(b, c, y, x);
            if (target.memory.element == kElement<C> && target.sx == 1)
                return reinterpret_cast<const C*>(target.memory.at(offset));
            target.load(offset, c, n, tile, 1);
            return tile;
        }
    };

    // n masked pixels from (y, x) of channel c.
    template <class Wanted>
    void score_run(int64_t b, int64_t c, int64_t y, int64_t x, int64_t n, C scale, double* total,
                   const Wanted& wanted) const {
        C tile[kTile], row[kTile];
        for (const int64_t end = x + n; x < end; x += kTile) {
            const int64_t m = min_of(kTile, end - x);
            const C* goal = wanted(x, m, tile);
            for_parts(b, c, y, x, m, [&](int64_t i, const Part& part) {
                char* slope = grad.memory.base ? grad.memory.at(part.to) : nullptr;
                if (part.from_step == 1 && part.to_step == 1)
                    return direct(pred.memory.at(part.from), goal + i, slope, part.n, inverse_beta,
                                  scale, total);
                pred.memory.load(part.from, part.from_step, part.n, row);
                buffered(reinterpret_cast<const char*>(row), goal + i, reinterpret_cast<char*>(row),
                         part.n, inverse_beta, scale, total);
                if (slope) grad.memory.store(row, part.n, part.to, part.to_step);
            });
        }
    }

    void zero_run(int64_t b, int64_t c, int64_t y, int64_t x, int64_t n) const {
        if (!grad.memory.base || row_of) return;
        for_parts(b, c, y, x, n, [&](int64_t, const Part& part) {
            grad.memory.zero(part.to, part.to_step, part.n);
        });
    }

  private:
    // n numbers of the prediction and of its gradient that are equally far apart.
    struct Part {
        int64_t from, from_step, to, to_step, n;
    };

    // Cuts a run of pixels into such parts: use(first, part).
    template <class Use>
    void for_parts(int64_t b, int64_t c, int64_t y, int64_t x, int64_t n, const Use& use) const {
        const int64_t ty = y / p, dy = y % p;
        const int64_t from = c * pred.sc + dy * pred.sdy, to = c * grad.sc + dy * grad.sdy;
        if (!row_of && pred.is_linear(p) && grad.is_linear(p)) {
            const int64_t from_step = pred.stx / p, to_step = grad.stx / p;
            return use(0, Part{token(pred, b, ty, 0) + from + x * from_step, from_step,
                               token(grad, b, ty, 0) + to + x * to_step, to_step, n});
        }
        for (int64_t i = 0; i < n;) {
            const int64_t tx = (x + i) / p, dx = (x + i) % p, k = min_of(p - dx, n - i);
            use(i, Part{token(pred, b, ty, tx) + from + dx * pred.sdx, pred.sdx,
                        token(grad, b, ty, tx) + to + dx * grad.sdx, grad.sdx, k});
            i += k;
        }
    }
};

SIMMIM_END

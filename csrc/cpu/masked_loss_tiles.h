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
    int64_t row(int64_t b, int64_t c, int64_t y, int64_t p) const {
        return b * sb + c * sc + y / p * sty + y % p * sdy;
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

    // Whether tokens are walked whole: their numbers lie side by side, and a line of them fits.
    bool walks_tokens() const {
        const bool planar = pred.is_planar(p) && (!grad.memory.base || grad.is_planar(p));
        const bool interleaved = pred.is_interleaved(p, channels) &&
                                 (!grad.memory.base || grad.is_interleaved(p, channels));
        return (planar && p <= kTile) || (interleaved && channels * p <= kTile);
    }

    // A masked token whose numbers begin at these offsets and whose first pixel is (y, x).
    void score_token(int64_t pred_offset, int64_t grad_offset, int64_t b, int64_t y, int64_t x,
                     C scale, double* total) const {
        C tile[kTile];
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
            direct(pred.memory.at(pred_offset + line * length), tile,
                   grad.memory.base ? grad.memory.at(grad_offset + line * length) : nullptr,
                   count * length, inverse_beta, scale, total);
        }
    }

    // n masked pixels from (y, x) of channel c.
    void score_run(int64_t b, int64_t c, int64_t y, int64_t x, int64_t n, C scale,
                   double* total) const {
        C tile[kTile], row[kTile], slope[kTile];
        const bool same = target.memory.element == (sizeof(C) == 8 ? kFloat64 : kFloat32);
        const bool in_place = lies_side_by_side(pred) && lies_side_by_side(grad);
        for (const int64_t end = x + n; x < end; x += kTile) {
            const int64_t m = min_of(kTile, end - x);
            const int64_t offset = target.at(b, c, y, x);
            const C* wanted = tile;
            if (same && target.sx == 1) {
                wanted = reinterpret_cast<const C*>(target.memory.at(offset));
            } else {
                target.load(offset, c, m, tile, 1);
            }
            if (in_place) {
                direct(pred.memory.at(pred.row(b, c, y, p) + x), wanted,
                       grad.memory.base ? grad.memory.at(grad.row(b, c, y, p) + x) : nullptr, m,
                       inverse_beta, scale, total);
                continue;
            }
            for_parts(pred, b, c, y, x, m, [&](int64_t i, int64_t from, int64_t step, int64_t k) {
                pred.memory.load(from, step, k, row + i);
            });
            buffered(reinterpret_cast<const char*>(row), wanted, reinterpret_cast<char*>(slope), m,
                     inverse_beta, scale, total);
            if (!grad.memory.base) continue;
            for_parts(grad, b, c, y, x, m, [&](int64_t i, int64_t to, int64_t step, int64_t k) {
                grad.memory.store(slope + i, k, to, step);
            });
        }
    }

    void zero_run(int64_t b, int64_t c, int64_t y, int64_t x, int64_t n) const {
        if (!grad.memory.base) return;
        for_parts(grad, b, c, y, x, n, [&](int64_t, int64_t to, int64_t step, int64_t k) {
            grad.memory.zero(to, step, k);
        });
    }

  private:
    bool lies_side_by_side(const Prediction& numbers) const {
        return !numbers.memory.base || (numbers.is_linear(p) && numbers.stx == p);
    }

    // Cuts a run of pixels where its numbers are not equally far apart: part(i, offset, step, n).
    template <class Part>
    void for_parts(const Prediction& numbers, int64_t b, int64_t c, int64_t y, int64_t x, int64_t n,
                   const Part& part) const {
        const int64_t row = numbers.row(b, c, y, p);
        if (numbers.is_linear(p)) {
            const int64_t step = numbers.stx / p;
            return part(0, row + x * step, step, n);
        }
        for (int64_t i = 0; i < n;) {
            const int64_t dx = (x + i) % p, k = min_of(p - dx, n - i);
            part(i, row + (x + i) / p * numbers.stx + dx * numbers.sdx, numbers.sdx, k);
            i += k;
        }
    }
};

SIMMIM_END

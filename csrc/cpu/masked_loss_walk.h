// The loops of the masked losses over a batch: by whole tokens or by rows of pixels, with targets
// as they are stored or normalised on the way.
#pragma once

#include "cpu/masked_loss_tiles.h"
#include "cpu/patch_norm.h"
#include "cpu/pixel_mask.h"
#include "cpu/window_norm.h"

SIMMIM_BEGIN

template <class C>
struct Walk {
    Scorer<C> scorer;
    Norm norm;
    int64_t norm_side;
    double norm_eps;
    MaskGrid grid;
    int64_t batch, height, width;

    // Pieces of work, each with one partial sum. `band`: rows of pixels in a piece.
    int64_t band() const {
        const int64_t p = scorer.p;
        if (norm == kPatchNorm) return norm_side;
        if (norm == kWindowNorm) return max_of<int64_t>(256, min_of(norm_side, 2 * height));
        return p * max_of<int64_t>(1, 16 / p);
    }
    int64_t pieces_per_sample() const {
        const int64_t bands = (height + band() - 1) / band();
        return norm == kWindowNorm ? scorer.channels * bands : bands;
    }
    int64_t scratch_bytes() const {
        if (norm == kWindowNorm) return WindowRows<C>::scratch_bytes(width, norm_side);
        if (norm == kNoNorm) return 0;
        if (norm_side == 1)
            return int64_t(sizeof(C)) * scorer.channels + PatchRows<C>::scratch_bytes(1);
        const int64_t width = patches_at_once() * norm_side;
        return PatchRows<C>::scratch_bytes(width) +
               int64_t(sizeof(C)) * width * (1 + rows_of_token());
    }

    void piece(int64_t b, int64_t i, C scale, char* scratch, double* total) const {
        const int64_t bands = (height + band() - 1) / band();
        const int64_t y = i % bands * band(), y_end = min_of(height, y + band());
        if (norm == kWindowNorm) {
            window_rows(b, i / bands, y, y_end, scale, scratch, total);
        } else if (patches_are_tokens()) {
            patch_tokens(b, y, scale, scratch, total);
        } else if (norm == kPatchNorm && !normalizes_tokens()) {
            patches(b, y, scale, scratch, total);
        } else if (scorer.walks_tokens()) {
            tokens(b, y, y_end, scale, reinterpret_cast<C*>(scratch), total);
        } else {
            rows(b, y, y_end, 0, width, scale, total);
        }
    }

  private:
    PixelMask pixels(int64_t b) const { return {grid.sample(b), grid}; }

    // Whether a patch of the target is a token of several pixels, scored as a whole.
    bool patches_are_tokens() const {
        return norm == kPatchNorm && norm_side == scorer.p && norm_side > 1 &&
               scorer.walks_tokens();
    }
    // Rows of a token over all its channels; 0 where patches of the target are not tokens.
    int64_t rows_of_token() const { return patches_are_tokens() ? scorer.channels * norm_side : 0; }

    // How many patches of a row are normalised together: they fit the L2 cache.
    int64_t patches_at_once() const {
        const int64_t most = kGoal / (norm_side * max_of<int64_t>(rows_of_token(), 1));
        return patches_are_tokens() ? max_of<int64_t>(most, 1) : 1;
    }

    // Whether a patch of the target is a token of one pixel.
    bool normalizes_tokens() const { return norm == kPatchNorm && norm_side == 1 && scorer.single; }

    static constexpr int64_t kTokensAhead = 8;

    // How many masked tokens ahead numbers are prefetched: of short tokens one is scored before the
    // next has come from memory.
    int64_t tokens_ahead() const {
        if (!scorer.single) return 1;
        const int64_t bytes = scorer.channels * int64_t(sizeof(C));
        return min_of(kTokensAhead, max_of<int64_t>(1, 2048 / max_of<int64_t>(1, bytes)));
    }

    const C* normalized_token(int64_t b, const Place& at, C* row) const {
        const int64_t n = scorer.channels;
        scorer.target.memory.load(scorer.target.at(b, 0, at.ty, at.tx), scorer.target.sc, n, row);
        normalize_token(row, n, norm_eps);
        return row;
    }

    static constexpr int64_t kRuns = 64;  // runs found at a time, for all rows that share them

    // Finds runs of equally masked pixels in row y from x on, each at most kTile long and together
    // at most kGoal, and moves x to their end.
    int64_t find_runs(int64_t b, int64_t y, int64_t& x, int64_t x_end, Run* runs) const {
        const PixelMask own = pixels(b);
        const int64_t limit = min_of(x_end, x + kGoal);
        int64_t count = 0;
        for (; x < limit && count < kRuns; ++count) {
            const int64_t to = own.run_end(y, x, min_of(limit, x + kTile));
            runs[count] = {x, to - x, own.at(y, x)};
            x = to;
        }
        return count;
    }

    void rows(int64_t b, int64_t y, int64_t y_end, int64_t x, int64_t x_end, C scale,
              double* total) const {
        while (y < y_end) {
            const int64_t same = min_of(y_end, (y / grid.scale.height + 1) * grid.scale.height);
            for (int64_t from = x; from < x_end;) {
                Run runs[kRuns];
                const int64_t count = find_runs(b, y, from, x_end, runs);
                for (int64_t c = 0; c < scorer.channels; ++c)
                    scorer.score_rows(b, c, y, same - y, runs, count, scale, total);
            }
            y = same;
        }
    }

    // Scores rows [y, y_end) of whole tokens. `row` has room for the target of one token.
    void tokens(int64_t b, int64_t y, int64_t y_end, C scale, C* row, double* total) const {
        const int64_t p = scorer.p, ahead = tokens_ahead();
        // A queue of masked tokens. Once it is full, each new one is prefetched while the first in
        // the queue is scored.
        Place waiting[kTokensAhead];
        int64_t first = 0, count = 0;
        const auto score = [&](const Place& next) {
            const Place& at = waiting[first];
            if (scorer.single) {
                const C* made = norm == kNoNorm ? nullptr : normalized_token(b, at, row);
                scorer.score_single(b, at, next, made, scale, total);
            } else {
                scorer.score_token(b, at, next, scale, total);
            }
            first = (first + 1) % kTokensAhead;
            --count;
        };
        for (; y < y_end; y += p) {
            for (int64_t x = 0; x < width; x += p) {
                const int masked = pixels(b).square(y, x, p);
                const Place here = {y / p, x / p};
                if (masked < 0) {
                    rows(b, y, y + p, x, x + p, scale, total);
                } else if (masked) {
                    if (count == ahead) score(here);
                    waiting[(first + count++) % kTokensAhead] = here;
                } else {
                    scorer.zero_token(b, here);
                }
            }
            while (count && (!scorer.single || y + p == y_end)) score(waiting[first]);
        }
    }

    // Scores rows of one channel, normalising masked pixels; rows without any are skipped.
    void window_rows(int64_t b, int64_t c, int64_t y, int64_t y_end, C scale, char* scratch,
                     double* total) const {
        const Target& t = scorer.target;
        const Memory std{reinterpret_cast<char*>(const_cast<double*>(t.std)), kFloat64};
        const Plane plane{t.memory, t.at(b, c, 0, 0), t.sy, t.sx, height, width};
        WindowRows<C> window(plane, norm_side, stored_eps(norm_eps, t.memory.element, std, c),
                             scratch);
        int64_t current = -1;
        const auto make = [&](int64_t row, int64_t x, int64_t n, C* to) {
            if (row != current) window.seek(current = row);
            window.write(x, x + n, to);
        };
        for (int64_t rows; y < y_end; y += rows) {
            rows = 1;
            for (int64_t x = 0; x < width;) {
                Run runs[kRuns];
                const bool first = x == 0;
                const int64_t count = find_runs(b, y, x, width, runs);
                if (first && x == width)
                    rows = min_of(y_end, (y / grid.scale.height + 1) * grid.scale.height) - y;
                scorer.score_made(b, c, y, rows, runs, count, scale, total, make);
            }
        }
    }

    PatchRows<C> patch_rows(int64_t b, char* scratch) const {
        const Target& t = scorer.target;
        const auto numbers = [](const double* values) {
            return Memory{reinterpret_cast<char*>(const_cast<double*>(values)), kFloat64};
        };
        const Channels image{t.memory,        t.at(b, 0, 0, 0), t.sc,          t.sy, t.sx,
                             scorer.channels, numbers(t.mean),  numbers(t.std)};
        return {image, norm_side, norm_eps, scratch};
    }

    // Scores one row of patches, normalising those with a masked pixel.
    void patches(int64_t b, int64_t y, C scale, char* scratch, double* total) const {
        PatchRows<C> patch = patch_rows(b, scratch);
        C* line = reinterpret_cast<C*>(scratch + PatchRows<C>::scratch_bytes(norm_side));
        for (int64_t x = 0; x < width; x += norm_side)
            patch_apart(patch, b, y, x, scale, line, total);
    }

    // Scores one patch row by row. `line` has room for one row of a patch.
    void patch_apart(PatchRows<C>& patch, int64_t b, int64_t y, int64_t x, C scale, C* line,
                     double* total) const {
        const int64_t side = norm_side;
        if (pixels(b).square(y, x, side) != 0) patch.measure(y, x, 1);
        for (int64_t c = 0; c < scorer.channels; ++c) {
            const auto make = [&](int64_t row, int64_t first, int64_t n, C* to) {
                patch.write(c, row - y, line);
                std::memcpy(to, line + (first - x), size_t(n) * sizeof(C));
            };
            for (int64_t row = y, rows; row < y + side; row += rows) {
                rows = min_of(y + side, (row / grid.scale.height + 1) * grid.scale.height) - row;
                for (int64_t from = x; from < x + side;) {
                    Run runs[kRuns];
                    const int64_t count = find_runs(b, row, from, x + side, runs);
                    scorer.score_made(b, c, row, rows, runs, count, scale, total, make);
                }
            }
        }
    }

    // Scores one row of patches that are tokens: neighbouring masked ones are normalised together,
    // and each is scored as a whole.
    void patch_tokens(int64_t b, int64_t y, C scale, char* scratch, double* total) const {
        const int64_t side = norm_side, ty = y / side, most = patches_at_once();
        const int64_t numbers = rows_of_token() * side;
        PatchRows<C> patch = patch_rows(b, scratch);
        C* line = reinterpret_cast<C*>(scratch + PatchRows<C>::scratch_bytes(most * side));
        C* made = line + most * side;
        for (int64_t x = 0, count; x < width; x += count * side) {
            const int masked = pixels(b).square(y, x, side);
            count = 1;
            if (masked < 0) {
                patch_apart(patch, b, y, x, scale, line, total);
            } else if (!masked) {
                scorer.zero_token(b, {ty, x / side});
            } else {
                while (count < most && x + count * side < width &&
                       pixels(b).square(y, x + count * side, side) == 1) {
                    ++count;
                }
                patch.measure(y, x, count);
                write_tokens(patch, count, line, made);
                for (int64_t k = 0; k < count; ++k) {
                    const int64_t tx = x / side + k, next = k + 1 < count ? tx + 1 : tx;
                    scorer.score_made_token(b, {ty, tx}, {ty, next}, made + k * numbers, scale,
                                            total);
                }
            }
        }
    }

    // Writes the normalised numbers of `count` patches, each in the order of a prediction's token.
    // `line` has room for one row of them.
    void write_tokens(const PatchRows<C>& patch, int64_t count, C* line, C* made) const {
        const int64_t side = norm_side, channels = scorer.channels;
        const bool planar = scorer.pred.is_planar(side);
        for (int64_t c = 0; c < channels; ++c) {
            for (int64_t dy = 0; dy < side; ++dy) {
                patch.write(c, dy, line);
                C* to = planar ? made + (c * side + dy) * side : made + dy * side * channels + c;
                for (int64_t k = 0; k < count; ++k, to += channels * side * side) {
                    const C* from = line + k * side;
                    if (planar) {
                        std::memcpy(to, from, size_t(side) * sizeof(C));
                    } else {
                        for (int64_t dx = 0; dx < side; ++dx) to[dx * channels] = from[dx];
                    }
                }
            }
        }
    }
};

SIMMIM_END

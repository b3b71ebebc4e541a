// Mask-token substitution: out = where(masked, token, x) + pos, and its gradients in one pass.
#include "common/grid.h"
#include "cpu/address.h"
#include "cpu/parallel.h"
#include "cpu/runs.h"
#include "cpu/token_rows.h"

SIMMIM_BEGIN

namespace {

// Where the tokens of x (or of its gradient) lie: element (b, t, d) of the prefix tokens and of the
// h x w grid that follows them; and the mask over that grid.
struct Tokens {
    Memory memory;
    int64_t sb, sy, sx, sd;
    int64_t batch, prefix, h, w, width;
    const uint8_t* mask;
    int64_t grid_h, grid_w;

    int64_t length() const { return prefix + h * w; }
    int64_t elements() const { return batch * length() * width; }
    bool streams(const Memory& output) const {
        return output.base && is_streamed(elements() * element_size(output.element));
    }
    int64_t prefix_row(int64_t b, int64_t t) const { return b * sb + t * sx; }
    int64_t grid_row(int64_t b, int64_t y, int64_t x) const {
        return b * sb + prefix * sx + y * sy + x * sx;
    }
    // Whether neighbours in a row of tokens follow each other without a gap.
    bool dense() const { return sx == width && sd == 1; }

    // Calls run(x0, x1, masked) along token row y of sample b.
    template <class Run>
    void for_each_run_of(int64_t b, int64_t y, const Run& run) const {
        const uint8_t* units = mask + (b * grid_h + y / (h / grid_h)) * grid_w;
        for_each_run(units, grid_w, w / grid_w, run);
    }
};

// Token row y of sample b; the first one brings the prefix tokens along.
template <class C>
void forward_row(const Tokens& x, const Memory& token, const Memory& pos, int64_t pos_skip,
                 const Memory& out, bool stream, int64_t b, int64_t y) {
    const Memory none{nullptr, kFloat32};
    const int64_t width = x.width, base = b * x.length();
    for (int64_t t = 0; y == 0 && t < x.prefix; ++t) {
        write_row<C>(x.memory, x.prefix_row(b, t), x.sd, t < pos_skip ? none : pos,
                     (t - pos_skip) * width, out, (base + t) * width, width, stream);
    }
    x.for_each_run_of(b, y, [&](int64_t x0, int64_t x1, bool masked) {
        const int64_t step = !masked && x.dense() ? x1 - x0 : 1;  // tokens moved at once
        for (int64_t column = x0; column < x1; column += step) {
            const int64_t t = x.prefix + y * x.w + column;
            write_row<C>(masked ? token : x.memory, masked ? 0 : x.grid_row(b, y, column),
                         masked ? 1 : x.sd, pos, (t - pos_skip) * width, out, (base + t) * width,
                         step * width, stream);
        }
    });
}

// The gradients of x and of the token from token row y of sample b.
template <class C>
void backward_row(const Tokens& grad, const Memory& dx, bool stream, double* token, int64_t b,
                  int64_t y) {
    const Memory none{nullptr, kFloat32};
    const int64_t width = grad.width, base = b * grad.length();
    for (int64_t t = 0; dx.base && y == 0 && t < grad.prefix; ++t) {
        write_row<C>(grad.memory, grad.prefix_row(b, t), grad.sd, none, 0, dx, (base + t) * width,
                     width, stream);
    }
    constexpr int64_t kRows = 64;
    int64_t masked_rows[kRows], count = 0;
    const auto add = [&] {
        if (token) add_rows<C>(grad.memory, masked_rows, count, grad.sd, width, token);
        count = 0;
    };
    grad.for_each_run_of(b, y, [&](int64_t x0, int64_t x1, bool masked) {
        const int64_t from = grad.grid_row(b, y, x0);
        const int64_t to = (base + grad.prefix + y * grad.w + x0) * width;
        if (masked) {
            if (dx.base) dx.zero(to, 1, (x1 - x0) * width, stream);
            for (int64_t x = 0; x < x1 - x0; ++x) {
                masked_rows[count++] = from + x * grad.sx;
                if (count == kRows) add();
            }
            return;
        }
        if (!dx.base) return;
        const int64_t step = grad.dense() ? x1 - x0 : 1;
        for (int64_t x = 0; x < x1 - x0; x += step) {
            write_row<C>(grad.memory, from + x * grad.sx, grad.sd, none, 0, dx, to + x * width,
                         step * width, stream);
        }
    });
    add();
}

// Adds token row y (with the prefix tokens, where it is the first and they have positions) of the
// samples [first, last), at most kGroup: `sum` has one row a prefix token, then one a token.
template <class C>
void add_positions(const Tokens& grad, int64_t pos_skip, double* sum, int64_t first, int64_t last,
                   int64_t y) {
    const int64_t width = grad.width, step = grad.dense() ? grad.w : 1;
    const auto add = [&](int64_t row, int64_t n, double* to) {
        int64_t rows[kGroup];
        for (int64_t b = first; b < last; ++b) rows[b - first] = row + b * grad.sb;
        add_rows<C>(grad.memory, rows, last - first, grad.sd, n, to);
    };
    for (int64_t t = pos_skip; y == 0 && t < grad.prefix; ++t)
        add(grad.prefix_row(0, t), width, sum + t * width);
    for (int64_t x = 0; x < grad.w; x += step)
        add(grad.grid_row(0, y, x), step * width, sum + (grad.prefix + x) * width);
}

struct Sums {
    double* token;  // one row for each piece, zero at first
    Memory pos;     // one row for each position from pos_skip on
    int64_t pos_skip;
};

// One piece: token row y of the samples [first, last). With position sums, [first, last) is the
// whole batch and `scratch` holds one row for each prefix token and each column.
template <class C>
void backward_piece(const Tokens& grad, const Memory& dx, const Sums& sums, double* token,
                    double* scratch, int64_t first, int64_t last, int64_t y) {
    const bool stream = grad.streams(dx);
    const int64_t width = grad.width;
    if (sums.pos.base) {
        std::memset(scratch, 0, size_t((grad.prefix + grad.w) * width) * sizeof(double));
    }
    for (int64_t b = first; b < last; b += kGroup) {
        const int64_t stop = min_of(last, b + kGroup);
        for (int64_t sample = b; sample < stop; ++sample) {
            backward_row<C>(grad, dx, stream, token, sample, y);
        }
        if (sums.pos.base) add_positions<C>(grad, sums.pos_skip, scratch, b, stop, y);
    }
    if (!sums.pos.base) return;
    const int64_t from = y == 0 ? sums.pos_skip : grad.prefix;
    const int64_t to = grad.prefix + y * grad.w - sums.pos_skip - (grad.prefix - from);
    sums.pos.store(scratch + from * width, (grad.prefix - from + grad.w) * width, to * width, 1);
}

}  // namespace

void mask_tokens_forward(Address x, int x_element, int64_t x_sb, int64_t x_sy, int64_t x_sx,
                         int64_t x_sd, Address mask, int64_t grid_h, int64_t grid_w, Address token,
                         int token_element, Address pos, int pos_element, int64_t pos_skip,
                         Address out, int out_element, int64_t batch, int64_t prefix, int64_t h,
                         int64_t w, int64_t width, int threads) {
    const Tokens tokens{
        {x.as<char>(), x_element}, x_sb,   x_sy,  x_sx, x_sd, batch, prefix, h, w, width,
        mask.as<uint8_t>(),        grid_h, grid_w};
    const Memory source{token.as<char>(), token_element}, added{pos.as<char>(), pos_element};
    const Memory target{out.as<char>(), out_element};
    const auto run = out_element == kFloat64 ? forward_row<double> : forward_row<float>;
    const bool stream = tokens.streams(target);
    parallel_for(batch * h, tokens.elements(), threads, [&](int64_t piece) {
        run(tokens, source, added, pos_skip, target, stream, piece / h, piece % h);
        if (stream) finish_streams();
    });
}

void mask_tokens_backward(Address grad, int grad_element, int64_t g_sb, int64_t g_sy, int64_t g_sx,
                          int64_t g_sd, Address mask, int64_t grid_h, int64_t grid_w, Address x,
                          int x_element, Address token, Address pos, int pos_element,
                          int64_t pos_skip, Address scratch, int64_t block, int64_t batch,
                          int64_t prefix, int64_t h, int64_t w, int64_t width, int threads) {
    const Tokens tokens{{grad.as<char>(), grad_element},
                        g_sb,
                        g_sy,
                        g_sx,
                        g_sd,
                        batch,
                        prefix,
                        h,
                        w,
                        width,
                        mask.as<uint8_t>(),
                        grid_h,
                        grid_w};
    const Memory dx{x.as<char>(), x_element};
    const Sums sums{token.as<double>(), {pos.as<char>(), pos_element}, pos_skip};
    const auto run = grad_element == kFloat64 ? backward_piece<double> : backward_piece<float>;
    const int64_t pieces = (batch + block - 1) / block * h;
    // One slice of scratch for each of `threads` contiguous ranges of pieces.
    parallel_for(threads, tokens.elements(), threads, [&](int64_t part) {
        double* own = scratch.as<double>() + part * (prefix + w) * width;
        for (int64_t piece = pieces * part / threads; piece < pieces * (part + 1) / threads;
             ++piece) {
            const int64_t first = piece / h * block;
            run(tokens, dx, sums, sums.token ? sums.token + piece * width : nullptr, own, first,
                min_of(batch, first + block), piece % h);
        }
        if (tokens.streams(dx)) finish_streams();
    });
    if (!sums.token) return;
    for (int64_t piece = 1; piece < pieces; ++piece) {  // always in this order
        for (int64_t d = 0; d < width; ++d) sums.token[d] += sums.token[piece * width + d];
    }
}

SIMMIM_END

// Mask-token substitution: out = where(masked, token, x) + pos, and its gradients in one pass.
#include "common/grid.h"
#include "cpu/parallel.h"
#include "cpu/runs.h"
#include "cpu/scratch.h"
#include "cpu/token_rows.h"

SIMMIM_BEGIN

namespace {

// Samples that share one partial sum of the token's gradient.
constexpr int64_t kBlock = 8;

// The tokens of x, or of its gradient, and the mask over them.
struct Tokens : TokenLayout {
    Memory memory;
    MaskGrid mask;

    Tokens(const Tensor& x, const Tensor& mask, int64_t prefix)
        : TokenLayout(token_layout(x, mask, prefix)),
          memory(memory_of(x)),
          mask(mask_over(mask, grid)) {}

    bool streams(const Memory& output) const {
        return output.base && is_streamed(elements() * element_size(output.element));
    }

    // Calls run(x0, x1, masked) along token row y of sample b.
    template <class Run>
    void for_each_run_of(int64_t b, int64_t y, const Run& run) const {
        for_each_run(mask.row(b, 0, y), mask.units.width, mask.scale.width, run);
    }
};

// Writes token row y of sample b, the first together with the prefix tokens.
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
        const int64_t step = !masked && x.dense() ? x1 - x0 : 1;  // tokens copied in one call
        for (int64_t column = x0; column < x1; column += step) {
            const int64_t t = x.prefix + y * x.grid.width + column;
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
        const int64_t to = (base + grad.prefix + y * grad.grid.width + x0) * width;
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

// Adds token row y of the samples [first, last), at most kGroup of them, to `sum`, which has one
// row for each prefix token and then one for each token. Prefix tokens are added with the first
// row, where they have positions.
template <class C>
void add_positions(const Tokens& grad, int64_t pos_skip, double* sum, int64_t first, int64_t last,
                   int64_t y) {
    const int64_t width = grad.width, step = grad.dense() ? grad.grid.width : 1;
    const auto add = [&](int64_t row, int64_t n, double* to) {
        int64_t rows[kGroup];
        for (int64_t b = first; b < last; ++b) rows[b - first] = row + b * grad.sb;
        add_rows<C>(grad.memory, rows, last - first, grad.sd, n, to);
    };
    for (int64_t t = pos_skip; y == 0 && t < grad.prefix; ++t)
        add(grad.prefix_row(0, t), width, sum + t * width);
    for (int64_t x = 0; x < grad.grid.width; x += step)
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
        std::memset(scratch, 0, size_t((grad.prefix + grad.grid.width) * width) * sizeof(double));
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
    const int64_t to = grad.prefix + y * grad.grid.width - sums.pos_skip - (grad.prefix - from);
    sums.pos.store(scratch + from * width, (grad.prefix - from + grad.grid.width) * width,
                   to * width, 1);
}

}  // namespace

void mask_tokens_forward(const Tensor& x, const Tensor& mask, const Tensor& token,
                         const Tensor& pos_embed, const Tensor& out, int64_t prefix_tokens,
                         int threads) {
    const Tokens tokens(x, mask, prefix_tokens);
    const Memory source = memory_of(token), pos = memory_of(pos_embed), target = memory_of(out);
    const int64_t pos_skip =
        pos_embed && tokens.width ? tokens.length() - pos_embed.numel() / tokens.width : 0;
    const auto run = out.element == kFloat64 ? forward_row<double> : forward_row<float>;
    const bool stream = tokens.streams(target);
    const int64_t h = tokens.grid.height;
    parallel_for(tokens.batch * h, tokens.elements(), threads, [&](int64_t piece) {
        run(tokens, source, pos, pos_skip, target, stream, piece / h, piece % h);
        if (stream) finish_streams();
    });
}

void mask_tokens_backward(const Tensor& grad, const Tensor& mask, const Tensor& x,
                          const Tensor& token, const Tensor& pos_embed, int64_t prefix_tokens,
                          int threads) {
    const Tokens tokens(grad, mask, prefix_tokens);
    const int64_t batch = tokens.batch, width = tokens.width, h = tokens.grid.height;
    // Position gradients are sums over the whole batch, so samples are not cut into blocks then.
    const int64_t block = pos_embed ? max_of<int64_t>(batch, 1) : kBlock;
    const int64_t pieces = (batch + block - 1) / block * h;
    const Memory dx = memory_of(x);
    const Scratch token_rows(token ? max_of<int64_t>(pieces, 1) * width * 8 : 0);
    const int64_t pos_row = pos_embed ? (tokens.prefix + tokens.grid.width) * width : 0;
    const Scratch pos_rows(threads * pos_row * 8);
    Sums sums{token_rows.as<double>(), memory_of(pos_embed), 0};
    if (pos_embed) sums.pos_skip = tokens.length() - pos_embed.size(0);
    for (int64_t i = 0; token && i < max_of<int64_t>(pieces, 1) * width; ++i) sums.token[i] = 0;
    const auto run = grad.element == kFloat64 ? backward_piece<double> : backward_piece<float>;
    // One slice of scratch for each of `threads` contiguous ranges of pieces.
    parallel_for(threads, tokens.elements(), threads, [&](int64_t part) {
        double* own = pos_rows.as<double>() + part * pos_row;
        for (int64_t piece = pieces * part / threads; piece < pieces * (part + 1) / threads;
             ++piece) {
            const int64_t first = piece / h * block;
            run(tokens, dx, sums, sums.token ? sums.token + piece * width : nullptr, own, first,
                min_of(batch, first + block), piece % h);
        }
        if (tokens.streams(dx)) finish_streams();
    });
    if (!token) return;
    for (int64_t piece = 1; piece < pieces; ++piece) {  // always in this order
        for (int64_t d = 0; d < width; ++d) sums.token[d] += sums.token[piece * width + d];
    }
    memory_of(token).store(sums.token, width, 0, 1);
}

SIMMIM_END

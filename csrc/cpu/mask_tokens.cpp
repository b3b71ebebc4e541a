// Mask-token substitution: out = where(masked, token, x) + pos, and its gradients in one pass.
#include "common/grid.h"
#include "cpu/address.h"
#include "cpu/parallel.h"
#include "cpu/token_rows.h"

SIMMIM_BEGIN

namespace {

// Where the tokens of x (or of its gradient) lie: element (b, t, d) of the prefix tokens and of the
// h x w grid that follows them.
struct Tokens {
    Memory memory;
    int64_t sb, sy, sx, sd, prefix;

    int64_t prefix_row(int64_t b, int64_t t) const { return b * sb + t * sx; }
    int64_t grid_row(int64_t b, int64_t y, int64_t x) const {
        return b * sb + prefix * sx + y * sy + x * sx;
    }
};

template <class C>
void forward(const Tokens& x, const uint8_t* mask, const CoarseGrid& grid, int64_t cells,
             const Memory& token, const Memory& pos, int64_t pos_skip, const Memory& out,
             int64_t batch, int64_t h, int64_t w, int64_t width, int threads) {
    const Memory none{nullptr, kFloat32};
    const int64_t length = x.prefix + h * w;
    parallel_for(batch * h, batch * length * width, threads, [&](int64_t piece) {
        const int64_t b = piece / h, y = piece % h;
        for (int64_t t = 0; y == 0 && t < x.prefix; ++t) {
            write_row<C>(x.memory, x.prefix_row(b, t), x.sd, t < pos_skip ? none : pos,
                         (t - pos_skip) * width, out, (b * length + t) * width, width);
        }
        for (int64_t column = 0; column < w; ++column) {
            const int64_t t = x.prefix + y * w + column;
            const bool masked = mask[b * cells + grid.cell(y, column)];
            write_row<C>(masked ? token : x.memory, masked ? 0 : x.grid_row(b, y, column),
                         masked ? 1 : x.sd, pos, (t - pos_skip) * width, out,
                         (b * length + t) * width, width);
        }
    });
}

struct Sums {
    double* token;  // one row for each piece
    double* pos;    // one row for each position, or null
    int64_t pos_skip;
};

// One piece: a row of the token grid for the samples [first, last).
template <class C>
void backward_piece(const Tokens& grad, const uint8_t* mask, const CoarseGrid& grid, int64_t cells,
                    const Memory& dx, double* token, const Sums& sums, int64_t first, int64_t last,
                    int64_t y, int64_t h, int64_t w, int64_t width) {
    const Memory none{nullptr, kFloat32};
    const int64_t length = grad.prefix + h * w;
    const auto pass = [&](int64_t b, int64_t t, int64_t row, bool masked) {
        const int64_t target = (b * length + t) * width;
        if (dx.base && masked) dx.zero(target, 1, width);
        if (dx.base && !masked) write_row<C>(grad.memory, row, grad.sd, none, 0, dx, target, width);
        if (token && masked) add_row<C>(grad.memory, row, grad.sd, width, token);
        if (sums.pos && t >= sums.pos_skip)
            add_row<C>(grad.memory, row, grad.sd, width, sums.pos + (t - sums.pos_skip) * width);
    };
    for (int64_t b = first; b < last; ++b) {
        for (int64_t t = 0; y == 0 && t < grad.prefix; ++t) {
            pass(b, t, grad.prefix_row(b, t), false);
        }
        for (int64_t x = 0; x < w; ++x) {
            pass(b, grad.prefix + y * w + x, grad.grid_row(b, y, x),
                 mask[b * cells + grid.cell(y, x)]);
        }
    }
}

}  // namespace

void mask_tokens_forward(Address x, int x_element, int64_t x_sb, int64_t x_sy, int64_t x_sx,
                         int64_t x_sd, Address mask, int64_t grid_h, int64_t grid_w, Address token,
                         int token_element, Address pos, int pos_element, int64_t pos_skip,
                         Address out, int out_element, int64_t batch, int64_t prefix, int64_t h,
                         int64_t w, int64_t width, int threads) {
    const Tokens tokens{{x.as<char>(), x_element}, x_sb, x_sy, x_sx, x_sd, prefix};
    const CoarseGrid grid{grid_w, h / grid_h, w / grid_w};
    const auto run = out_element == kFloat64 ? forward<double> : forward<float>;
    run(tokens, mask.as<uint8_t>(), grid, grid_h * grid_w, {token.as<char>(), token_element},
        {pos.as<char>(), pos_element}, pos_skip, {out.as<char>(), out_element}, batch, h, w, width,
        threads);
}

void mask_tokens_backward(Address grad, int grad_element, int64_t g_sb, int64_t g_sy, int64_t g_sx,
                          int64_t g_sd, Address mask, int64_t grid_h, int64_t grid_w, Address x,
                          int x_element, Address token, Address pos, int64_t pos_skip,
                          int64_t block, int64_t batch, int64_t prefix, int64_t h, int64_t w,
                          int64_t width, int threads) {
    const Tokens tokens{{grad.as<char>(), grad_element}, g_sb, g_sy, g_sx, g_sd, prefix};
    const CoarseGrid grid{grid_w, h / grid_h, w / grid_w};
    const Memory dx{x.as<char>(), x_element};
    const Sums sums{token.as<double>(), pos.as<double>(), pos_skip};
    const auto run = grad_element == kFloat64 ? backward_piece<double> : backward_piece<float>;
    const int64_t blocks = (batch + block - 1) / block;
    parallel_for(blocks * h, batch * (prefix + h * w) * width, threads, [&](int64_t piece) {
        const int64_t first = piece / h * block;
        run(tokens, mask.as<uint8_t>(), grid, grid_h * grid_w, dx,
            sums.token ? sums.token + piece * width : nullptr, sums, first,
            min_of(batch, first + block), piece % h, h, w, width);
    });
    if (!sums.token) return;
    for (int64_t piece = 1; piece < blocks * h; ++piece) {  // always in this order
        for (int64_t d = 0; d < width; ++d) sums.token[d] += sums.token[piece * width + d];
    }
}

SIMMIM_END

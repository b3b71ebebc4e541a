// Compact rows of visible tokens to their places with the token elsewhere, and back with the sums
// over the places of the token and over the batch.
#include "cpu/address.h"
#include "cpu/parallel.h"
#include "cpu/token_rows.h"
#include "cpu/visible_rows.h"

SIMMIM_BEGIN

namespace {

struct Rows {
    Memory memory;
    int64_t sr, sd;
};

struct Tokens {
    Memory memory;
    int64_t sb, st, sd, prefix;

    int64_t offset(int64_t b, int64_t t) const { return b * sb + t * st; }
};

// One token row y of sample b.
template <class C>
void place_piece(const Rows& rows, const VisibleRows& visible, const Memory& token,
                 const Memory& pos, const Memory& out, int64_t prefix, int64_t b, int64_t y,
                 int64_t h, int64_t w, int64_t width) {
    const Memory none{nullptr, kFloat32};
    const int64_t base = (b * (prefix + h * w)) * width;
    if (y == 0) out.zero(base, 1, prefix * width);
    const uint8_t* units = visible.units(b, y);
    int64_t row = visible.first(b, y);
    for (int64_t x = 0; x < w; ++x) {
        const int64_t t = y * w + x, target = base + (prefix + t) * width;
        const bool masked = units[x / visible.sx];
        if (!masked) {
            write_row<C>(rows.memory, row++ * rows.sr, rows.sd, pos, t * width, out, target, width,
                         false);
        } else if (token.base || pos.base) {
            write_row<C>(token.base ? token : pos, token.base ? 0 : t * width, 1,
                         token.base ? pos : none, t * width, out, target, width, false);
        } else {
            out.zero(target, 1, width);
        }
    }
}

template <class C>
void take_piece(const Tokens& x, const VisibleRows& visible, const Memory& rows, double* token,
                double* pos, int64_t b, int64_t y, int64_t w, int64_t width) {
    const Memory none{nullptr, kFloat32};
    const uint8_t* units = visible.units(b, y);
    int64_t row = visible.first(b, y);
    for (int64_t column = 0; column < w; ++column) {
        const int64_t t = y * w + column, source = x.offset(b, x.prefix + t);
        const bool masked = units[column / visible.sx];
        if (!masked && rows.base)
            write_row<C>(x.memory, source, x.sd, none, 0, rows, row++ * width, width, false);
        if (masked && token) add_row<C>(x.memory, source, x.sd, width, token);
        if (pos) add_row<C>(x.memory, source, x.sd, width, pos + t * width);
    }
}

}  // namespace

int64_t place_tokens(Address rows, int rows_element, int64_t r_sr, int64_t r_sd, Address mask,
                     int64_t grid_h, int64_t grid_w, Address starts, Address token,
                     int token_element, Address pos, int pos_element, Address out, int out_element,
                     int64_t count, int64_t batch, int64_t prefix, int64_t h, int64_t w,
                     int64_t width, int threads) {
    const VisibleRows visible{mask.as<uint8_t>(), grid_h,     grid_w,
                              h / grid_h,         w / grid_w, starts.as<int64_t>()};
    const int64_t found = visible.count(batch);
    if (found > count) return found;
    const Rows source{{rows.as<char>(), rows_element}, r_sr, r_sd};
    const auto run = out_element == kFloat64 ? place_piece<double> : place_piece<float>;
    parallel_for(batch * h, batch * (prefix + h * w) * width, threads, [&](int64_t piece) {
        run(source, visible, {token.as<char>(), token_element}, {pos.as<char>(), pos_element},
            {out.as<char>(), out_element}, prefix, piece / h, piece % h, h, w, width);
    });
    return found;
}

int64_t take_tokens(Address x, int x_element, int64_t x_sb, int64_t x_st, int64_t x_sd,
                    Address mask, int64_t grid_h, int64_t grid_w, Address starts, Address rows,
                    int rows_element, Address token, Address pos, int64_t block, int64_t count,
                    int64_t batch, int64_t prefix, int64_t h, int64_t w, int64_t width,
                    int threads) {
    const VisibleRows visible{mask.as<uint8_t>(), grid_h,     grid_w,
                              h / grid_h,         w / grid_w, starts.as<int64_t>()};
    const int64_t found = visible.count(batch);
    if (found > count) return found;
    const Tokens source{{x.as<char>(), x_element}, x_sb, x_st, x_sd, prefix};
    const Memory target{rows.as<char>(), rows_element};
    const auto run = x_element == kFloat64 ? take_piece<double> : take_piece<float>;
    double* sums = token.as<double>();
    const int64_t blocks = (batch + block - 1) / block;
    // One piece: a token row of the samples of one block, so that a position's sum over the batch
    // is made in one place when a block holds them all.
    parallel_for(blocks * h, batch * h * w * width, threads, [&](int64_t piece) {
        const int64_t first = piece / h * block;
        for (int64_t b = first; b < min_of(batch, first + block); ++b) {
            run(source, visible, target, sums ? sums + piece * width : nullptr, pos.as<double>(), b,
                piece % h, w, width);
        }
    });
    if (rows) target.zero(found * width, 1, (count - found) * width);
    if (!sums) return found;
    for (int64_t piece = 1; piece < blocks * h; ++piece) {  // always in this order
        for (int64_t d = 0; d < width; ++d) sums[d] += sums[piece * width + d];
    }
    return found;
}

SIMMIM_END

// Compact rows of visible tokens to their places with the token elsewhere, and back with the sums
// over the places of the token and over the batch.
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/token_rows.h"
#include "cpu/visible_rows.h"

SIMMIM_BEGIN

namespace {

constexpr int64_t kBlock = 8;  // samples in one partial sum of the token's gradient

// Compact rows of the visible tokens, sample after sample; `prefix` more of each before its own.
struct Rows {
    Memory memory;
    int64_t sr, sd;
    int64_t prefix;

    int64_t first(const VisibleRows& visible, int64_t b, int64_t y) const {
        return visible.first(b, y) + prefix * (b + 1);
    }
    int64_t first_of_prefix(const VisibleRows& visible, int64_t b) const {
        return visible.first(b, 0) + prefix * b;
    }
};

// One row of the position embedding for each patch token, or with the prefix for each token.
struct Positions {
    Memory memory;
    int64_t first;  // the token that the first row belongs to

    Positions(const Tensor& rows, const TokenLayout& tokens)
        : memory(memory_of(rows)),
          first(rows ? tokens.length() - rows.numel() / max_of<int64_t>(tokens.width, 1) : 0) {}

    int64_t offset(int64_t token, int64_t width) const { return (token - first) * width; }
};

// One token row y of sample b.
template <class C>
void place_piece(const Rows& rows, const VisibleRows& visible, const Memory& token,
                 const Positions& positions, const Memory& out, const TokenLayout& to, int64_t b,
                 int64_t y) {
    const Memory none{nullptr, kFloat32}, &pos = positions.memory;
    const int64_t width = to.width, prefix = to.prefix, w = to.grid.width;
    const int64_t base = b * to.length() * width;
    if (y == 0 && !rows.prefix) out.zero(base, 1, prefix * width);
    for (int64_t t = 0; y == 0 && t < rows.prefix; ++t) {
        const int64_t row = rows.first_of_prefix(visible, b) + t;
        const bool added = t >= positions.first;
        write_row<C>(rows.memory, row * rows.sr, rows.sd, added ? pos : none,
                     positions.offset(t, width), out, base + t * width, width, false);
    }
    const uint8_t* units = visible.units(b, y);
    int64_t row = rows.first(visible, b, y);
    for (int64_t x = 0; x < w; ++x) {
        const int64_t t = prefix + y * w + x, target = base + t * width;
        const int64_t added = positions.offset(t, width);
        const bool masked = units[x / visible.mask.scale.width];
        if (!masked) {
            write_row<C>(rows.memory, row++ * rows.sr, rows.sd, pos, added, out, target, width,
                         false);
        } else if (token.base || pos.base) {
            write_row<C>(token.base ? token : pos, token.base ? 0 : added, 1,
                         token.base ? pos : none, added, out, target, width, false);
        } else {
            out.zero(target, 1, width);
        }
    }
}

template <class C>
void take_piece(const Memory& x, const TokenLayout& from, const VisibleRows& visible,
                const Rows& rows, double* token, double* pos, const Positions& positions, int64_t b,
                int64_t y) {
    const Memory none{nullptr, kFloat32};
    const int64_t width = from.width, prefix = from.prefix, w = from.grid.width;
    for (int64_t t = 0; y == 0 && t < prefix; ++t) {
        const int64_t source = from.prefix_row(b, t);
        const int64_t row = rows.first_of_prefix(visible, b) + t;
        if (rows.memory.base && rows.prefix)
            write_row<C>(x, source, from.sd, none, 0, rows.memory, row * width, width, false);
        if (pos && t >= positions.first)
            add_row<C>(x, source, from.sd, width, pos + positions.offset(t, width));
    }
    const uint8_t* units = visible.units(b, y);
    int64_t row = rows.first(visible, b, y);
    for (int64_t column = 0; column < w; ++column) {
        const int64_t t = prefix + y * w + column, source = from.grid_row(b, y, column);
        const bool masked = units[column / visible.mask.scale.width];
        if (!masked && rows.memory.base)
            write_row<C>(x, source, from.sd, none, 0, rows.memory, row++ * width, width, false);
        if (masked && token) add_row<C>(x, source, from.sd, width, token);
        if (pos) add_row<C>(x, source, from.sd, width, pos + positions.offset(t, width));
    }
}

}  // namespace

int64_t place_tokens(const Tensor& rows, const Tensor& mask, const Tensor& token,
                     const Tensor& pos_embed, const Tensor& out, int64_t prefix_tokens,
                     bool prefixed, int64_t h, int64_t w, int threads) {
    const TokenLayout tokens = flat_tokens(out, prefix_tokens, {1, h, w});
    const Scratch starts(VisibleRows::scratch_bytes(mask));
    const VisibleRows visible{mask_over(mask, tokens.grid), starts.as<int64_t>()};
    const int64_t prefix = prefixed ? prefix_tokens : 0;
    const int64_t found = visible.count(tokens.batch) + tokens.batch * prefix;
    if (found > rows.size(0)) return found;
    const Rows source{memory_of(rows), rows.stride(0), rows.stride(1), prefix};
    const Positions positions(pos_embed, tokens);
    const auto run = out.element == kFloat64 ? place_piece<double> : place_piece<float>;
    parallel_for(tokens.batch * h, tokens.elements(), threads, [&](int64_t piece) {
        run(source, visible, memory_of(token), positions, memory_of(out), tokens, piece / h,
            piece % h);
    });
    return found;
}

int64_t take_tokens(const Tensor& x, const Tensor& mask, const Tensor& rows, const Tensor& token,
                    const Tensor& pos_embed, int64_t prefix_tokens, bool prefixed, int64_t h,
                    int64_t w, int64_t count, int threads) {
    const TokenLayout tokens = flat_tokens(x, prefix_tokens, {1, h, w});
    const Scratch starts(VisibleRows::scratch_bytes(mask));
    const VisibleRows visible{mask_over(mask, tokens.grid), starts.as<int64_t>()};
    const int64_t batch = tokens.batch, width = tokens.width;
    const int64_t prefix = prefixed ? prefix_tokens : 0;
    const int64_t found = visible.count(batch) + batch * prefix;
    if (found > count) return found;
    const Rows target{memory_of(rows), width, 1, prefix};
    const Positions positions(pos_embed, tokens);
    // Position gradients are sums over the whole batch, so samples are not cut into blocks then.
    const int64_t block = pos_embed ? max_of<int64_t>(batch, 1) : kBlock;
    const int64_t blocks = (batch + block - 1) / block;
    const int64_t token_sums = token ? max_of<int64_t>(blocks * h, 1) * width : 0;
    const int64_t pos_sums = pos_embed ? pos_embed.numel() : 0;
    const Scratch sums((token_sums + pos_sums) * int64_t(sizeof(double)));
    double *token_sum = sums.as<double>(), *pos_sum = token_sum + token_sums;
    for (int64_t i = 0; i < token_sums + pos_sums; ++i) token_sum[i] = 0;
    const auto run = x.element == kFloat64 ? take_piece<double> : take_piece<float>;
    // One piece is a token row of the samples of one block; with a single block, each position's
    // sum over the batch is made in one piece.
    parallel_for(blocks * h, batch * h * w * width, threads, [&](int64_t piece) {
        const int64_t first = piece / h * block;
        for (int64_t b = first; b < min_of(batch, first + block); ++b) {
            run(memory_of(x), tokens, visible, target, token ? token_sum + piece * width : nullptr,
                pos_embed ? pos_sum : nullptr, positions, b, piece % h);
        }
    });
    if (rows) memory_of(rows).zero(found * width, 1, (count - found) * width);
    if (pos_embed) memory_of(pos_embed).store(pos_sum, pos_sums, 0, 1);
    if (!token) return found;
    for (int64_t piece = 1; piece < blocks * h; ++piece) {  // always in this order
        for (int64_t d = 0; d < width; ++d) token_sum[d] += token_sum[piece * width + d];
    }
    memory_of(token).store(token_sum, width, 0, 1);
    return found;
}

SIMMIM_END

// Index arithmetic between mask units, tokens and pixels; its Python twin is
// simmim_kernels/grid.py. Everything has three axes: depth, height and width. An image has depth 1.
// Sizes and offsets are 64 bits wide.
#pragma once

#include <cmath>

#include "common/types.h"

SIMMIM_BEGIN

// How long a grid, or one of its cells, is along each axis.
struct Extent {
    int64_t depth, height, width;

    SIMMIM_HD int64_t cells() const { return depth * height * width; }
    SIMMIM_HD int64_t rows() const { return depth * height; }
};

// How many cells of `fine` one cell of `coarse` spans along each axis.
SIMMIM_HD Extent scale_of(const Extent& fine, const Extent& coarse) {
    return {fine.depth / coarse.depth, fine.height / coarse.height, fine.width / coarse.width};
}

// The axes of a tensor from `axis` on, two or three of them.
inline Extent extent_from(const Tensor& tensor, int axis) {
    return {tensor.dims - axis == 3 ? tensor.size(-3) : 1, tensor.size(-2), tensor.size(-1)};
}

// The largest whole number whose square is at most n; with `power` 3, whose cube is.
inline int64_t root_below(int64_t n, int power = 2) {
    const auto raised = [power](int64_t x) { return power == 3 ? x * x * x : x * x; };
    auto root = int64_t(power == 3 ? std::cbrt(double(n)) : std::sqrt(double(n)));
    while (raised(root) > n) --root;
    while (raised(root + 1) <= n) ++root;
    return root;
}

// The grid of a flat row of tokens: as many times finer than the grid of `mask` along each axis.
inline Extent token_grid(int64_t tokens, const Tensor& mask) {
    const Extent units = extent_from(mask, 1);
    const int axes = mask.dims - 1;
    const int64_t scale = root_below(tokens / units.cells(), axes);
    return {axes == 3 ? units.depth * scale : 1, units.height * scale, units.width * scale};
}

// Where tokens lie: (B, L, D), of which the first `prefix` come before the grid, or (B, h, w, D).
// Strides by sample, row, column and feature.
struct TokenLayout {
    Extent grid;
    int64_t batch, prefix, width;
    int64_t sb, sy, sx, sd;

    SIMMIM_HD int64_t length() const { return prefix + grid.cells(); }
    SIMMIM_HD int64_t elements() const { return batch * length() * width; }
    SIMMIM_HD int64_t prefix_row(int64_t b, int64_t t) const { return b * sb + t * sx; }
    SIMMIM_HD int64_t grid_row(int64_t b, int64_t y, int64_t x) const {
        return b * sb + prefix * sx + y * sy + x * sx;
    }
    // Whether the tokens of a row follow each other without a gap.
    SIMMIM_HD bool dense() const { return sx == width && sd == 1; }
};

inline TokenLayout flat_tokens(const Tensor& x, int64_t prefix, const Extent& grid) {
    return {grid,        x.size(0),  prefix, x.size(2), x.stride(0), grid.width * x.stride(1),
            x.stride(1), x.stride(2)};
}

inline TokenLayout token_layout(const Tensor& x, const Tensor& mask, int64_t prefix) {
    if (x.dims == 3) return flat_tokens(x, prefix, token_grid(x.size(1) - prefix, mask));
    return {{1, x.size(1), x.size(2)},
            x.size(0),
            0,
            x.size(3),
            x.stride(0),
            x.stride(1),
            x.stride(2),
            x.stride(3)};
}

// Where the pixels of an image (B, C, H, W) lie. Strides by sample, channel, row and column.
struct ImageLayout {
    int64_t batch, channels;
    Extent size;
    int64_t sb, sc, sy, sx;

    SIMMIM_HD int64_t elements() const { return batch * channels * size.cells(); }
    SIMMIM_HD int64_t at(int64_t b, int64_t c, int64_t y, int64_t x) const {
        return b * sb + c * sc + y * sy + x * sx;
    }
};

inline ImageLayout image_layout(const Tensor& image) {
    return {image.size(0),   image.size(1),   {1, image.size(2), image.size(3)},
            image.stride(0), image.stride(1), image.stride(2),
            image.stride(3)};
}

// Where the numbers of a prediction of an image lie. Pixel (ty * patch + dy, tx * patch + dx) of
// channel c is at b * sb + c * sc + ty * sty + dy * sdy + tx * stx + dx * sdx; of listed units row
// r begins at r * stx.
struct PredictionLayout {
    int64_t sb, sc, sty, sdy, stx, sdx;
};

// Pixels in the side of a token of a prediction: an image (1), a map (B, C*p*p, h, w), or tokens
// (B, L, C*p*p) or (R, C*p*p).
inline int64_t prediction_patch(const Tensor& pred, const ImageLayout& image) {
    if (pred.dims != 4) return root_below(pred.size(-1) / image.channels);
    const bool same = pred.size(1) == image.channels && pred.size(2) == image.size.height &&
                      pred.size(3) == image.size.width;
    return same ? 1 : image.size.height / max_of<int64_t>(pred.size(2), 1);
}

// Of listed units `tokens_in_row` is 0. `interleaved`: a token's numbers are (dy, dx, channel),
// else (channel, dy, dx).
inline PredictionLayout prediction_layout(const Tensor& pred, int64_t channels, int64_t patch,
                                          int64_t tokens_in_row, bool interleaved) {
    const int64_t* s = pred.strides;
    if (pred.dims == 4 && patch == 1) return {s[0], s[1], s[2], 0, s[3], 0};
    PredictionLayout of{s[0], 0, pred.stride(-2), 0, pred.stride(-1), 0};
    int64_t number = s[1];
    if (pred.dims < 4) {
        number = pred.stride(-1);
        of.stx = pred.stride(-2);
        of.sty = tokens_in_row * of.stx;
        if (pred.dims == 2) of.sb = 0;
    }
    of.sc = interleaved ? number : patch * patch * number;
    of.sdx = interleaved ? channels * number : number;
    of.sdy = patch * of.sdx;
    return of;
}

// The mask (nonzero: masked) of a batch on its grid of units, seen from a finer grid of tokens or
// pixels.
struct MaskGrid {
    const uint8_t* mask;
    Extent units;  // of a sample
    Extent scale;  // cells of the finer grid in a unit

    // Which unit of its sample holds the cell (z, y, x) of the finer grid.
    SIMMIM_HD int64_t unit(int64_t z, int64_t y, int64_t x) const {
        return (z / scale.depth * units.height + y / scale.height) * units.width + x / scale.width;
    }

    // The same in 32 bits, which a GPU divides several times faster, for grids below 2^31 cells.
    SIMMIM_HD int32_t unit32(int32_t z, int32_t y, int32_t x) const {
        const int32_t row =
            z / int32_t(scale.depth) * int32_t(units.height) + y / int32_t(scale.height);
        return row * int32_t(units.width) + x / int32_t(scale.width);
    }

    SIMMIM_HD const uint8_t* sample(int64_t b) const { return mask + b * units.cells(); }

    // The units that row (z, y) of the finer grid goes through.
    SIMMIM_HD const uint8_t* row(int64_t b, int64_t z, int64_t y) const {
        return sample(b) + unit(z, y, 0);
    }
};

// `mask` is contiguous, (B, gh, gw) or (B, gd, gh, gw).
inline MaskGrid mask_over(const Tensor& mask, const Extent& fine) {
    const Extent units = extent_from(mask, 1);
    return {mask.as<uint8_t>(), units, scale_of(fine, units)};
}

SIMMIM_END

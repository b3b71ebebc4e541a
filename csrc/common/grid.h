// Index arithmetic between mask units, tokens and pixels; its Python twin is
// simmim_kernels/grid.py. Everything has three axes: depth, height and width. An image has depth 1.
// Sizes and offsets are 64 bits wide.
#pragma once

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

// The largest whole number whose `power`-th power is at most n.
inline int64_t root_below(int64_t n, int power) {
    for (int64_t root = 1;; ++root) {
        int64_t product = 1;
        for (int i = 0; i < power; ++i) product *= root;
        if (product > n) return root - 1;
    }
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

// Which cell of a coarse grid holds position (y, x) of a grid that is `sy` by `sx` times finer.
struct CoarseGrid {
    int64_t width;  // cells in a row of the coarse grid
    int64_t sy, sx;

    SIMMIM_HD int64_t cell(int64_t y, int64_t x) const { return (y / sy) * width + x / sx; }

    SIMMIM_HD int32_t cell32(int32_t y, int32_t x) const {
        return (y / int32_t(sy)) * int32_t(width) + x / int32_t(sx);
    }
};

// `mask` is contiguous, (B, gh, gw) or (B, gd, gh, gw).
inline MaskGrid mask_over(const Tensor& mask, const Extent& fine) {
    const Extent units = extent_from(mask, 1);
    return {mask.as<uint8_t>(), units, scale_of(fine, units)};
}

SIMMIM_END

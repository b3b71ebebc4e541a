// Code shared by the forward and backward kernels of mask-token substitution. The wide kernels go
// through the tokens of a sample as cut_rows divides them; the kernels with position gradients and
// the narrow ones work in tiles.
//
// A tile is a number of consecutive tokens by a number of consecutive features, of one sample
// (forward) or of a run of samples (backward, with sums over samples). In the wide kernels a thread
// moves kVector features of kTokens tokens at a time, so kTokens 16-byte loads are in flight. The
// narrow kernels move one feature of any type and stride, in double.
#pragma once

#include "common/grid.h"
#include "cuda/rows.h"
#include "cuda/vector.h"

SIMMIM_BEGIN

namespace tokens_tile {

constexpr int kThreads = 256;
constexpr int kVector = 8;
constexpr int kTokens = 4;

// Codes in place of a token's offset: it is masked, or not wanted; and the bit that marks the
// offset of a masked token that is read all the same.
constexpr int64_t kMasked = -1, kOutside = -2, kHidden = INT64_MIN;

__device__ __forceinline__ bool is_read(int64_t place) {
    return uint64_t(place) < uint64_t(kOutside);
}

// Numbers that a thread moves at a time: 16 bytes of the wider type.
template <class In, class Out>
constexpr int kNumbers = 16 / int(sizeof(In) > sizeof(Out) ? sizeof(In) : sizeof(Out));

template <class In, class Out, int V>
__device__ __forceinline__ Pack<Out, V> converted(const Pack<In, V>& pack) {
    if constexpr (std::is_same<In, Out>::value) {
        return pack;
    } else {
        float values[V];
        widen_pack<In, V>(pack, values);
        return narrow_pack<Out, V>(values);
    }
}

// The layout of the tokens of x (or of its gradient), and their mask.
struct Tokens {
    int64_t sb, sy, sx, sd;
    int32_t prefix, w, length;
    MaskGrid grid;
    int64_t units;  // of a sample

    // Offset of token t within its sample; its mask unit, or -1 for a prefix token.
    __device__ __forceinline__ int64_t offset(int32_t t, int64_t* unit) const {
        if (t < prefix) {
            *unit = -1;
            return t * sx;
        }
        const int32_t patch = t - prefix, y = patch / w, x = patch - y * w;
        *unit = grid.unit32(0, y, x);
        return prefix * sx + y * sy + x * sx;
    }
    __device__ __forceinline__ bool masked(int64_t sample, int64_t unit) const {
        return unit >= 0 && grid.mask[sample * units + unit];
    }

    // Offsets in bytes of a block's tokens from the first of their sample. Masked tokens get
    // kMasked, or a marked offset where they are read; visible ones get kOutside where they are not
    // wanted.
    template <class In>
    __device__ __forceinline__ void list_places(const RowPiece& piece, int64_t* places,
                                                bool reads_masked = false,
                                                bool wants_visible = true) const {
        for (int32_t k = int32_t(threadIdx.x); k < piece.padded; k += int32_t(blockDim.x)) {
            places[k] = kOutside;
            if (k >= piece.count) continue;
            int64_t unit;
            const int64_t place = offset(piece.first + k, &unit) * int64_t(sizeof(In));
            if (masked(piece.row, unit)) {
                places[k] = reads_masked ? place | kHidden : kMasked;
            } else if (wants_visible) {
                places[k] = place;
            }
        }
    }
};

// The tile of this thread: its first token and feature, and its piece of work. Threads of a block
// are (columns, rows); over blocks features vary fastest, then tokens.
struct Tile {
    int64_t piece, feature;
    int32_t tile, token;
};

template <int V>
__device__ __forceinline__ Tile tile_of(int32_t tiles, int64_t width) {
    const int64_t across = int64_t(blockDim.x) * V;
    const uint32_t blocks = uint32_t((width + across - 1) / across);
    const uint32_t row = blockIdx.x / blocks, column = blockIdx.x - row * blocks;
    const uint32_t piece = row / uint32_t(tiles), tile = row - piece * uint32_t(tiles);
    return {int64_t(piece), int64_t(column) * across + int64_t(threadIdx.x) * V, int32_t(tile),
            int32_t(tile * blockDim.y * kTokens + threadIdx.y)};
}

// Threads of a block: the largest power of two of columns that divides the width, so that no lane
// idles (768 / 8 = 3 x 32), but at least 4; the rest of the threads are rows.
inline dim3 block_of(int64_t width, int V) {
    const int64_t columns = ceil_div(width, V);
    int across = int(min_of<int64_t>(columns & -columns, 32));
    if (across < 4) across = power_of_two(columns, 32);
    return dim3(unsigned(across), unsigned(kThreads / across));
}

inline int64_t tiles_of(int64_t length, const dim3& block) {
    return ceil_div(length, int64_t(block.y) * kTokens);
}

inline bool tokens_pack(const Array& x, const Tokens& tokens, int64_t width) {
    return tokens.sd == 1 && width % kVector == 0 && packs(x.base, x.element, tokens.sb) &&
           packs(x.base, x.element, tokens.sy) && packs(x.base, x.element, tokens.sx);
}

template <class Kernel, class... Arguments>
int start(Kernel* kernel, int V, int64_t pieces, const Tokens& tokens, int64_t width, Stream stream,
          Arguments... arguments) {
    const dim3 block = block_of(width, V);
    const int64_t tiles = tiles_of(tokens.length, block);
    return launch(kernel, pieces * tiles * ceil_div(width, int64_t(block.x) * V), block, stream,
                  arguments..., int32_t(tiles), width);
}

// Arguments of every launcher.
struct Problem {
    Tokens tokens;
    int64_t width, batch;
    Stream stream;
};

constexpr int pair(int in, int out) { return in * 8 + out; }

inline Problem problem_of(const Tensor& x, const Tensor& mask, int64_t prefix, Stream stream) {
    const TokenLayout of = token_layout(x, mask, prefix);
    const MaskGrid grid = mask_over(mask, of.grid);
    const Tokens tokens{of.sb,
                        of.sy,
                        of.sx,
                        of.sd,
                        int32_t(of.prefix),
                        int32_t(of.grid.width),
                        int32_t(of.length()),
                        grid,
                        grid.units.cells()};
    return {tokens, of.width, of.batch, stream};
}

}  // namespace tokens_tile

SIMMIM_END

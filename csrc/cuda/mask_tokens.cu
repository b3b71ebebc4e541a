// Mask-token substitution: out = where(masked, token, x) + pos, and its gradients in one pass.
//
// A block handles a tile of consecutive tokens by consecutive features, of one sample (forward) or
// of a run of samples (backward, which adds up what the samples share). In the wide kernels a
// thread moves kVector features of kTokens tokens at a time: that many 16-byte loads are in flight
// before the first use. The narrow kernels move one feature of any type at any stride, in double.
#include "common/grid.h"
#include "cuda/kernels.h"
#include "cuda/sums.h"

SIMMIM_BEGIN

namespace {

constexpr int kThreads = 256;
constexpr int kVector = 8;
constexpr int kTokens = 4;

// Where the tokens of x (or of its gradient) lie, and which of them are masked.
struct Tokens {
    int64_t sb, sy, sx, sd;
    int32_t prefix, w, length;
    CoarseGrid grid;
    int64_t cells;
    const uint8_t* mask;

    // Offset of token t within its sample; its cell of the mask grid, or -1 for a prefix token.
    __device__ __forceinline__ int64_t offset(int32_t t, int64_t* cell) const {
        if (t < prefix) {
            *cell = -1;
            return t * sx;
        }
        const int32_t patch = t - prefix, y = patch / w, x = patch - y * w;
        *cell = grid.cell32(y, x);
        return prefix * sx + y * sy + x * sx;
    }
    __device__ __forceinline__ bool masked(int64_t sample, int64_t cell) const {
        return cell >= 0 && mask[sample * cells + cell];
    }
};

// The tile of this thread: its first token and feature, and which piece of work it belongs to.
// Threads lie (columns, rows) in a block; features vary fastest over blocks, then tokens.
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

// In: what x holds; Out: what the result holds; token and pos hold In or float.
template <class In, class Out>
__global__ void __launch_bounds__(kThreads)
    forward_wide(const In* x, Tokens tokens, Array token, Array pos, int64_t pos_skip, Out* out,
                 int32_t tiles, int64_t width) {
    const Tile tile = tile_of<kVector>(tiles, width);
    if (tile.feature >= width) return;
    Pack<In, kVector> packs[kTokens];
    bool masked[kTokens];
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
        const int32_t t = tile.token + k * int32_t(blockDim.y);
        masked[k] = true;
        if (t >= tokens.length) continue;
        int64_t cell;
        const int64_t offset = tokens.offset(t, &cell);
        masked[k] = tokens.masked(tile.piece, cell);
        if (!masked[k]) {
            packs[k] = load_pack<In, kVector>(x + tile.piece * tokens.sb + offset + tile.feature);
        }
    }
    float shared[kVector];
    load_either<In, kVector>(token, tile.feature, shared);
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
        const int32_t t = tile.token + k * int32_t(blockDim.y);
        if (t >= tokens.length) continue;
        float values[kVector], added[kVector];
        widen_pack<In, kVector>(packs[k], values);
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[i] = masked[k] ? shared[i] : values[i];
        if (pos.base && t >= pos_skip) {
            load_either<In, kVector>(pos, (t - pos_skip) * width + tile.feature, added);
#pragma unroll
            for (int i = 0; i < kVector; ++i) values[i] += added[i];
        }
        store_pack<Out, kVector>(out + (tile.piece * tokens.length + t) * width + tile.feature,
                                 values);
    }
}

__global__ void __launch_bounds__(kThreads)
    forward_narrow(Array x, Tokens tokens, Array token, Array pos, int64_t pos_skip, Array out,
                   int32_t tiles, int64_t width) {
    const Tile tile = tile_of<1>(tiles, width);
    if (tile.feature >= width) return;
    for (int k = 0; k < kTokens; ++k) {
        const int32_t t = tile.token + k * int32_t(blockDim.y);
        if (t >= tokens.length) return;
        int64_t cell;
        const int64_t offset = tokens.offset(t, &cell);
        double value = tokens.masked(tile.piece, cell)
                           ? token.load(tile.feature)
                           : x.load(tile.piece * tokens.sb + offset + tile.feature * tokens.sd);
        if (pos.base && t >= pos_skip) {
            value += pos.load((t - pos_skip) * width + tile.feature);
        }
        out.store((tile.piece * tokens.length + t) * width + tile.feature, value);
    }
}

// The sums of the rows of threads in a block, row by row, into one row of partial sums.
template <class C, int V>
__device__ __forceinline__ void leave_row(const C* own, C* row, const Tile& tile, int64_t width) {
    __shared__ C sums[V][kThreads];
    const unsigned slot = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
    for (int i = 0; i < V; ++i) sums[i][slot] = own[i];
    __syncthreads();
    if (threadIdx.y != 0 || tile.feature >= width) return;
    for (int i = 0; i < V; ++i) {
        C sum = 0;
        for (unsigned y = 0; y < blockDim.y; ++y) sum += sums[i][y * blockDim.x + threadIdx.x];
        row[tile.feature + i] = sum;
    }
}

// In: what the incoming gradient holds; Out: what dx holds. POS: sums for positions are wanted,
// which take kTokens * kVector registers.
template <class In, class Out, bool POS>
__global__ void __launch_bounds__(kThreads)
    backward_wide(const In* grad, Tokens tokens, Out* dx, float* token_sums, float* pos_sums,
                  int64_t pos_rows, int64_t run, int64_t batch, int32_t tiles, int64_t width) {
    const Tile tile = tile_of<kVector>(tiles, width);
    const bool inside = tile.feature < width;
    int64_t offsets[kTokens], cells[kTokens];
    float token_sum[kVector] = {}, pos_sum[POS ? kTokens : 1][kVector] = {};
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
        const int32_t t = tile.token + k * int32_t(blockDim.y);
        cells[k] = -1;
        offsets[k] = t < tokens.length ? tokens.offset(t, &cells[k]) : 0;
    }
    const int64_t first = tile.piece * run, last = min_of(first + run, batch);
    for (int64_t sample = first; inside && sample < last; ++sample) {
        Pack<In, kVector> packs[kTokens];
        bool masked[kTokens];
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
            masked[k] = false;
            if (tile.token + k * int32_t(blockDim.y) >= tokens.length) continue;
            masked[k] = tokens.masked(sample, cells[k]);
            // Where only dx is wanted, a masked row is not read.
            if (POS || token_sums || !masked[k]) {
                packs[k] =
                    load_pack<In, kVector>(grad + sample * tokens.sb + offsets[k] + tile.feature);
            }
        }
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
            const int32_t t = tile.token + k * int32_t(blockDim.y);
            if (t >= tokens.length) continue;
            float values[kVector], kept[kVector];
            widen_pack<In, kVector>(packs[k], values);
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                kept[i] = masked[k] ? 0.0f : values[i];
                token_sum[i] += masked[k] ? values[i] : 0.0f;
                if (POS) pos_sum[POS ? k : 0][i] += values[i];
            }
            if (dx) {
                store_pack<Out, kVector>(dx + (sample * tokens.length + t) * width + tile.feature,
                                         kept);
            }
        }
    }
    if (POS && inside) {
        const int64_t pos_skip = tokens.length - pos_rows;
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
            const int64_t t = tile.token + k * int64_t(blockDim.y);
            if (t >= tokens.length || t < pos_skip) continue;
            store_pack<float, kVector>(
                pos_sums + (tile.piece * pos_rows + t - pos_skip) * width + tile.feature,
                pos_sum[POS ? k : 0]);
        }
    }
    if (!token_sums) return;
    leave_row<float, kVector>(token_sum, token_sums + (tile.piece * tiles + tile.tile) * width,
                              tile, width);
}

__global__ void __launch_bounds__(kThreads)
    backward_narrow(Array grad, Tokens tokens, Array dx, Array token_sums, Array pos_sums,
                    int64_t pos_rows, int64_t run, int64_t batch, int32_t tiles, int64_t width) {
    const Tile tile = tile_of<1>(tiles, width);
    const int64_t first = tile.piece * run, last = min_of(first + run, batch);
    const int64_t pos_skip = tokens.length - pos_rows;
    double token_sum = 0;
    for (int k = 0; k < kTokens; ++k) {
        const int32_t t = tile.token + k * int32_t(blockDim.y);
        if (t >= tokens.length || tile.feature >= width) break;
        int64_t cell;
        const int64_t offset = tokens.offset(t, &cell) + tile.feature * tokens.sd;
        double pos_sum = 0;
        for (int64_t sample = first; sample < last; ++sample) {
            const bool masked = tokens.masked(sample, cell);
            const double value = grad.load(sample * tokens.sb + offset);
            if (dx.base) {
                dx.store((sample * tokens.length + t) * width + tile.feature, masked ? 0 : value);
            }
            token_sum += masked ? value : 0;
            pos_sum += value;
        }
        if (pos_sums.base && t >= pos_skip) {
            pos_sums.store((tile.piece * pos_rows + t - pos_skip) * width + tile.feature, pos_sum);
        }
    }
    if (!token_sums.base) return;
    leave_row<double, 1>(
        &token_sum,
        static_cast<double*>(token_sums.base) + (tile.piece * tiles + tile.tile) * width, tile,
        width);
}

// Threads of a block: the largest power of two of columns that divides the width, so that no lane
// idles (768 / 8 = 3 x 32), but at least 4; the rest of the threads are rows.
dim3 block_of(int64_t width, int V) {
    const int64_t columns = ceil_div(width, V);
    int across = int(min_of<int64_t>(columns & -columns, 32));
    if (across < 4) across = power_of_two(columns, 32);
    return dim3(unsigned(across), unsigned(kThreads / across));
}

int64_t tiles_of(int64_t length, const dim3& block) {
    return ceil_div(length, int64_t(block.y) * kTokens);
}

bool tokens_pack(const Array& x, const Tokens& tokens, int64_t width) {
    return tokens.sd == 1 && width % kVector == 0 && packs(x.base, x.element, tokens.sb) &&
           packs(x.base, x.element, tokens.sy) && packs(x.base, x.element, tokens.sx);
}

bool either(const Array& rows, int element, int64_t width) {
    return !rows.base || ((rows.element == element || rows.element == kFloat32) &&
                          packs(rows.base, rows.element, width));
}

template <class Kernel, class... Arguments>
int start(Kernel* kernel, int V, int64_t pieces, const Tokens& tokens, int64_t width,
          Address stream, Arguments... arguments) {
    const dim3 block = block_of(width, V);
    const int64_t tiles = tiles_of(tokens.length, block);
    return launch(kernel, pieces * tiles * ceil_div(width, int64_t(block.x) * V), block, stream,
                  arguments..., int32_t(tiles), width);
}

// Every forward and backward launcher's arguments, whatever the element types.
struct Problem {
    Tokens tokens;
    int64_t width, batch;
    Address stream;
};

template <class In, class Out>
int start_forward(const Problem& p, const Array& x, const Array& token, const Array& pos,
                  int64_t pos_skip, const Array& out) {
    return start(forward_wide<In, Out>, kVector, p.batch, p.tokens, p.width, p.stream,
                 static_cast<const In*>(x.base), p.tokens, token, pos, pos_skip,
                 static_cast<Out*>(out.base));
}

template <class In, class Out>
int start_backward(const Problem& p, const Array& grad, const Array& dx, Address token_sums,
                   Address pos_sums, int64_t pos_rows, int64_t run) {
    const auto kernel = pos_sums ? backward_wide<In, Out, true> : backward_wide<In, Out, false>;
    return start(kernel, kVector, ceil_div(p.batch, run), p.tokens, p.width, p.stream,
                 static_cast<const In*>(grad.base), p.tokens, static_cast<Out*>(dx.base),
                 token_sums.as<float>(), pos_sums.as<float>(), pos_rows, run, p.batch);
}

constexpr int pair(int in, int out) { return in * 8 + out; }

Tokens tokens_of(int64_t sb, int64_t sy, int64_t sx, int64_t sd, Address mask, int64_t grid_h,
                 int64_t grid_w, int64_t prefix, int64_t h, int64_t w) {
    const CoarseGrid grid{grid_w, h / grid_h, w / grid_w};
    return {sb,
            sy,
            sx,
            sd,
            int32_t(prefix),
            int32_t(w),
            int32_t(prefix + h * w),
            grid,
            grid_h * grid_w,
            mask.as<uint8_t>()};
}

}  // namespace

int mask_tokens_forward(Address x, int x_element, int64_t x_sb, int64_t x_sy, int64_t x_sx,
                        int64_t x_sd, Address mask, int64_t grid_h, int64_t grid_w, Address token,
                        int token_element, Address pos, int pos_element, int64_t pos_skip,
                        Address out, int out_element, int64_t batch, int64_t prefix, int64_t h,
                        int64_t w, int64_t width, Address stream) {
    if (batch * (prefix + h * w) * width == 0) return cudaSuccess;
    const Problem p{tokens_of(x_sb, x_sy, x_sx, x_sd, mask, grid_h, grid_w, prefix, h, w), width,
                    batch, stream};
    const Array source{x.pointer, x_element}, shared{token.pointer, token_element},
        added{pos.pointer, pos_element}, target{out.pointer, out_element};
    if (tokens_pack(source, p.tokens, width) && either(shared, x_element, width) &&
        either(added, x_element, width) && packs(out.pointer, out_element, width)) {
        switch (pair(x_element, out_element)) {
            case pair(kFloat32, kFloat32):
                return start_forward<float, float>(p, source, shared, added, pos_skip, target);
            case pair(kBFloat16, kBFloat16):
                return start_forward<BFloat16, BFloat16>(p, source, shared, added, pos_skip,
                                                         target);
            case pair(kBFloat16, kFloat32):
                return start_forward<BFloat16, float>(p, source, shared, added, pos_skip, target);
            case pair(kFloat16, kFloat16):
                return start_forward<Float16, Float16>(p, source, shared, added, pos_skip, target);
            case pair(kFloat16, kFloat32):
                return start_forward<Float16, float>(p, source, shared, added, pos_skip, target);
        }
    }
    return start(forward_narrow, 1, batch, p.tokens, width, stream, source, p.tokens, shared, added,
                 pos_skip, target);
}

int mask_tokens_backward(Address grad, int grad_element, int64_t g_sb, int64_t g_sy, int64_t g_sx,
                         int64_t g_sd, Address mask, int64_t grid_h, int64_t grid_w, Address x,
                         int x_element, Address token, int token_element, Address token_sums,
                         Address pos, int pos_element, Address pos_sums, int64_t pos_rows,
                         int64_t run, int64_t batch, int64_t prefix, int64_t h, int64_t w,
                         int64_t width, Address stream) {
    const Problem p{tokens_of(g_sb, g_sy, g_sx, g_sd, mask, grid_h, grid_w, prefix, h, w), width,
                    batch, stream};
    const Array incoming{grad.pointer, grad_element}, dx{x.pointer, x_element};
    int kind = -1;  // the narrow kernel
    if (tokens_pack(incoming, p.tokens, width) && (!x || packs(x.pointer, x_element, width))) {
        kind = pair(grad_element, x ? x_element : grad_element);
    }
    int code = cudaSuccess, sum_element = kFloat32;
    switch (width == 0 ? -2 : kind) {
        case -2:
            break;
        case pair(kFloat32, kFloat32):
            code =
                start_backward<float, float>(p, incoming, dx, token_sums, pos_sums, pos_rows, run);
            break;
        case pair(kFloat32, kBFloat16):
            code = start_backward<float, BFloat16>(p, incoming, dx, token_sums, pos_sums, pos_rows,
                                                   run);
            break;
        case pair(kFloat32, kFloat16):
            code = start_backward<float, Float16>(p, incoming, dx, token_sums, pos_sums, pos_rows,
                                                  run);
            break;
        case pair(kBFloat16, kBFloat16):
            code = start_backward<BFloat16, BFloat16>(p, incoming, dx, token_sums, pos_sums,
                                                      pos_rows, run);
            break;
        case pair(kFloat16, kFloat16):
            code = start_backward<Float16, Float16>(p, incoming, dx, token_sums, pos_sums, pos_rows,
                                                    run);
            break;
        default:
            sum_element = kFloat64;
            code = start(backward_narrow, 1, ceil_div(batch, run), p.tokens, width, stream,
                         incoming, p.tokens, dx, Array{token_sums.pointer, kFloat64},
                         Array{pos_sums.pointer, kFloat64}, pos_rows, run, batch);
    }
    const dim3 block = block_of(width, sum_element == kFloat32 ? kVector : 1);
    const int64_t runs = ceil_div(batch, run), tiles = tiles_of(p.tokens.length, block);
    if (code == cudaSuccess && token) {
        code = add_rows(token_sums.pointer, sum_element, runs * tiles, width,
                        {token.pointer, token_element}, stream);
    }
    if (code == cudaSuccess && pos) {
        code = add_rows(pos_sums.pointer, sum_element, runs, pos_rows * width,
                        {pos.pointer, pos_element}, stream);
    }
    return code;
}

SIMMIM_END

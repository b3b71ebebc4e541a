// The gradients of mask-token substitution in one pass: of x (zero where masked), and the sums for
// token and positions, in partial rows that `add_rows` adds in order.
#include "cuda/kernels.h"
#include "cuda/sums.h"
#include "cuda/tokens_tile.h"

SIMMIM_BEGIN

using namespace tokens_tile;

namespace {

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

template <class In, class Out>
int start_backward(const Problem& p, const Array& grad, const Array& dx, Address token_sums,
                   Address pos_sums, int64_t pos_rows, int64_t run) {
    const auto kernel = pos_sums ? backward_wide<In, Out, true> : backward_wide<In, Out, false>;
    return start(kernel, kVector, ceil_div(p.batch, run), p.tokens, p.width, p.stream,
                 static_cast<const In*>(grad.base), p.tokens, static_cast<Out*>(dx.base),
                 token_sums.as<float>(), pos_sums.as<float>(), pos_rows, run, p.batch);
}

}  // namespace

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

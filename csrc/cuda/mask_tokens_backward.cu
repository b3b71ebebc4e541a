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
    int64_t offsets[kTokens], units[kTokens];
    float token_sum[kVector] = {}, pos_sum[POS ? kTokens : 1][kVector] = {};
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
        const int32_t t = tile.token + k * int32_t(blockDim.y);
        units[k] = -1;
        offsets[k] = t < tokens.length ? tokens.offset(t, &units[k]) : 0;
    }
    const int64_t first = tile.piece * run, last = min_of(first + run, batch);
    for (int64_t sample = first; inside && sample < last; ++sample) {
        Pack<In, kVector> packs[kTokens];
        bool masked[kTokens];
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
            masked[k] = false;
            if (tile.token + k * int32_t(blockDim.y) >= tokens.length) continue;
            masked[k] = tokens.masked(sample, units[k]);
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
        int64_t unit;
        const int64_t offset = tokens.offset(t, &unit) + tile.feature * tokens.sd;
        double pos_sum = 0;
        for (int64_t sample = first; sample < last; ++sample) {
            const bool masked = tokens.masked(sample, unit);
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

constexpr int64_t kTileTokens = 32;  // fewest tokens whose sum over a run of samples a block leaves
constexpr int64_t kFeatures = 256;   // that a block covers where the width allows
constexpr int64_t kBlocks =
    1024;  // two full waves on 132 multiprocessors before blocks loop longer
constexpr int64_t kLeastRun = 16;  // samples for each partial row of position sums

// The samples are cut into runs. Partial sums, in doubles: a row for each run and each tile of
// tokens, and a row for each run and position.
struct Runs {
    int64_t run, runs, token_numbers, pos_numbers;
};

Runs runs_of(const TokenLayout& tokens, const Tensor& token, const Tensor& pos_embed) {
    const int64_t tiles = ceil_div(tokens.length(), kTileTokens);
    const int64_t blocks = tokens.batch * tiles * ceil_div(tokens.width, kFeatures);
    const int64_t run = max_of(ceil_div(blocks, kBlocks), pos_embed ? kLeastRun : int64_t(1));
    const int64_t runs = ceil_div(tokens.batch, run);
    return {run, runs, token ? runs * tiles * tokens.width : 0,
            pos_embed ? runs * pos_embed.numel() : 0};
}

// Where partial sums go; null where nobody asks for them.
struct Partial {
    void *token, *pos;
    int64_t pos_rows, run;
};

template <class In, class Out>
int start_backward(const Problem& p, const Array& grad, const Array& dx, const Partial& partial) {
    const auto kernel = partial.pos ? backward_wide<In, Out, true> : backward_wide<In, Out, false>;
    return start(kernel, kVector, ceil_div(p.batch, partial.run), p.tokens, p.width, p.stream,
                 static_cast<const In*>(grad.base), p.tokens, static_cast<Out*>(dx.base),
                 static_cast<float*>(partial.token), static_cast<float*>(partial.pos),
                 partial.pos_rows, partial.run, p.batch);
}

}  // namespace

int64_t mask_tokens_scratch(const Tensor& grad, const Tensor& mask, const Tensor& token,
                            const Tensor& pos_embed, int64_t prefix_tokens) {
    const Runs runs = runs_of(token_layout(grad, mask, prefix_tokens), token, pos_embed);
    return runs.token_numbers + runs.pos_numbers;
}

int mask_tokens_backward(const Tensor& grad, const Tensor& mask, const Tensor& x,
                         const Tensor& token, const Tensor& pos_embed, int64_t prefix_tokens,
                         const Tensor& scratch, Stream stream) {
    const Problem p = problem_of(grad, mask, prefix_tokens, stream);
    const Runs runs = runs_of(token_layout(grad, mask, prefix_tokens), token, pos_embed);
    const int64_t width = p.width;
    double* sums = scratch.as<double>();
    const Partial partial{token ? sums : nullptr, pos_embed ? sums + runs.token_numbers : nullptr,
                          pos_embed ? pos_embed.size(0) : 0, runs.run};
    const Array incoming = array_of(grad), dx = array_of(x);
    int kind = -1;  // the narrow kernel
    if (tokens_pack(incoming, p.tokens, width) && (!x || packs(x.data, x.element, width))) {
        kind = pair(grad.element, x ? x.element : grad.element);
    }
    int code = cudaSuccess, sum_element = kFloat32;
    switch (width == 0 ? -2 : kind) {
        case -2:
            break;
        case pair(kFloat32, kFloat32):
            code = start_backward<float, float>(p, incoming, dx, partial);
            break;
        case pair(kFloat32, kBFloat16):
            code = start_backward<float, BFloat16>(p, incoming, dx, partial);
            break;
        case pair(kFloat32, kFloat16):
            code = start_backward<float, Float16>(p, incoming, dx, partial);
            break;
        case pair(kBFloat16, kBFloat16):
            code = start_backward<BFloat16, BFloat16>(p, incoming, dx, partial);
            break;
        case pair(kFloat16, kFloat16):
            code = start_backward<Float16, Float16>(p, incoming, dx, partial);
            break;
        default:
            sum_element = kFloat64;
            code = start(backward_narrow, 1, runs.runs, p.tokens, width, stream, incoming, p.tokens,
                         dx, Array{partial.token, kFloat64}, Array{partial.pos, kFloat64},
                         partial.pos_rows, runs.run, p.batch);
    }
    const dim3 block = block_of(width, sum_element == kFloat32 ? kVector : 1);
    const int64_t tiles = tiles_of(p.tokens.length, block);
    if (code == cudaSuccess && token) {
        code =
            add_rows(partial.token, sum_element, runs.runs * tiles, width, array_of(token), stream);
    }
    if (code == cudaSuccess && pos_embed) {
        code = add_rows(partial.pos, sum_element, runs.runs, pos_embed.numel(), array_of(pos_embed),
                        stream);
    }
    return code;
}

SIMMIM_END

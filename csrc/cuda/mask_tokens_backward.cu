// The gradients of mask-token substitution in one pass: of x (zero where masked), and the sums for
// token and positions, in partial rows that `add_rows` adds in order.
#include "cuda/kernels.h"
#include "cuda/sums.h"
#include "cuda/tokens_tile.h"

SIMMIM_BEGIN

using namespace tokens_tile;

inline namespace mask_tokens_backward_file {

// Adds the sums of a block's threads, `down` rows of `across` threads with V numbers each, down the
// rows, and stores one row of partial sums. With a single row each thread stores its own.
template <class C, int V>
__device__ __forceinline__ void leave_row(const C* own, C* row, int32_t across, int32_t down,
                                          int64_t first, int64_t width) {
    __shared__ C sums[V][kRowThreads];
    const int32_t thread = int32_t(threadIdx.y * blockDim.x + threadIdx.x);
    if constexpr (V > 1) {
        if (down == 1) {
            const int64_t own_first = first + int64_t(thread) * V;
            if (thread < across && own_first < width) store_pack<C, V>(row + own_first, own);
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < V; ++i) sums[i][thread] = own[i];
    __syncthreads();
    const int64_t rest = min_of<int64_t>(int64_t(across) * V, width - first);
    for (int32_t f = thread; f < rest; f += int32_t(blockDim.x * blockDim.y)) {
        C sum = 0;
        for (int32_t y = 0; y < down; ++y) sum += sums[f % V][y * across + f / V];
        row[first + f] = sum;
    }
}

// In, Out: types of the incoming gradient and of dx. A block goes through tokens of one sample and
// stores one row of partial sums over its masked tokens.
template <class In, class Out>
__global__ void __launch_bounds__(kRowThreads)
    backward_wide(RowCut cut, const In* grad, Tokens tokens, Out* dx, float* token_sums,
                  int64_t width) {
    constexpr int V = kNumbers<In, Out>;
    __shared__ int64_t places[kCells];
    const RowPiece piece(cut, tokens.length);
    tokens.list_places<In>(piece, places, token_sums != nullptr, dx != nullptr);
    __syncthreads();
    const int64_t feature = int64_t(piece.group) * V;
    const bool inside = feature < width && piece.down < cut.down;
    float sum[V] = {};
    if (inside) {
        grad += piece.row * tokens.sb + feature;
        if (dx) {
            dx += (int64_t(piece.row) * tokens.length + piece.first + piece.down) * width + feature;
        }
        const int64_t step = dx ? cut.down * width : 0;
        for (int32_t start = piece.down; start < piece.padded; start += piece.step) {
            int64_t place[kInFlight];
            Pack<In, V> packs[kInFlight];
            const int64_t* listed = places + start;
#pragma unroll
            for (int k = 0; k < kInFlight; ++k, listed += cut.down) {  // all loads before a use
                place[k] = *listed;
                if (is_read(place[k]))
                    packs[k] = load_pack<In, V>(moved(grad, place[k] & ~kHidden));
            }
#pragma unroll
            for (int k = 0; k < kInFlight; ++k, dx += step) {
                if (place[k] >= 0) {
                    store_pack<Out, V>(dx, converted<In, Out, V>(packs[k]));
                } else if (place[k] != kOutside) {
                    if (token_sums) {
                        float values[V];
                        widen_pack<In, V>(packs[k], values);
#pragma unroll
                        for (int i = 0; i < V; ++i) sum[i] += values[i];
                    }
                    if (dx) store_pack<Out, V>(dx, Pack<Out, V>{});
                }
            }
        }
    }
    if (!token_sums) return;
    const int64_t block = blockIdx.x / uint32_t(cut.parts);
    leave_row<float, V>(sum, token_sums + block * width, cut.across, cut.down,
                        int64_t(piece.part) * cut.across * V, width);
}

// The same with position gradients, whose sums take kTokens * kVector registers: a block goes
// through a range of samples.
template <class In, class Out>
__global__ void __launch_bounds__(kThreads)
    backward_positions(const In* grad, Tokens tokens, Out* dx, float* token_sums, float* pos_sums,
                       int64_t pos_rows, int64_t run, int64_t batch, int32_t tiles, int64_t width) {
    const Tile tile = tile_of<kVector>(tiles, width);
    const bool inside = tile.feature < width;
    int64_t offsets[kTokens], units[kTokens];
    float token_sum[kVector] = {}, pos_sum[kTokens][kVector] = {};
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
            packs[k] =
                load_pack<In, kVector>(grad + sample * tokens.sb + offsets[k] + tile.feature);
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
                pos_sum[k][i] += values[i];
            }
            if (dx) {
                store_pack<Out, kVector>(dx + (sample * tokens.length + t) * width + tile.feature,
                                         kept);
            }
        }
    }
    if (inside) {
        const int64_t pos_skip = tokens.length - pos_rows;
#pragma unroll
        for (int k = 0; k < kTokens; ++k) {
            const int64_t t = tile.token + k * int64_t(blockDim.y);
            if (t >= tokens.length || t < pos_skip) continue;
            store_pack<float, kVector>(
                pos_sums + (tile.piece * pos_rows + t - pos_skip) * width + tile.feature,
                pos_sum[k]);
        }
    }
    if (!token_sums) return;
    leave_row<float, kVector>(token_sum, token_sums + (tile.piece * tiles + tile.tile) * width,
                              int32_t(blockDim.x), int32_t(blockDim.y),
                              tile.feature - int64_t(threadIdx.x) * kVector, width);
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
        static_cast<double*>(token_sums.base) + (tile.piece * tiles + tile.tile) * width,
        int32_t(blockDim.x), int32_t(blockDim.y), tile.feature - int64_t(threadIdx.x), width);
}

constexpr int64_t kTileTokens = 32;  // fewest tokens of a block's partial sum over samples
constexpr int64_t kFeatures = 256;   // features that a block covers where the width allows
constexpr int64_t kBlocks = 1024;    // two waves on 132 multiprocessors, then blocks loop longer
constexpr int64_t kLeastRun = 16;    // fewest samples of a partial row of position sums

// Samples are cut into runs. Partial sums (doubles): one row for each run and tile of tokens, and
// one for each run and position.
struct Runs {
    int64_t run, runs, token_numbers, pos_numbers;
};

Runs runs_of(const TokenLayout& tokens, const Tensor& token, const Tensor& pos_embed) {
    const int64_t tiles = ceil_div(tokens.length(), kTileTokens);
    const int64_t blocks = tokens.batch * tiles * ceil_div(tokens.width, kFeatures);
    const int64_t run = max_of(ceil_div(blocks, kBlocks), pos_embed ? kLeastRun : int64_t(1));
    const int64_t runs = ceil_div(tokens.batch, run);
    const auto wide = [&](int64_t V) {
        return tokens.batch * cut_rows(tokens.batch, tokens.length(), tokens.width / V).tiles;
    };
    const int64_t rows = max_of(runs * tiles, max_of(wide(4), wide(8)));
    return {run, runs, token ? rows * tokens.width : 0, pos_embed ? runs * pos_embed.numel() : 0};
}

// Scratch for partial sums; null where that gradient is not wanted.
struct Partial {
    void *token, *pos;
    int64_t pos_rows, run;
};

template <class In, class Out>
int start_backward(const Problem& p, const Array& grad, const Array& dx, const Partial& partial) {
    const In* from = static_cast<const In*>(grad.base);
    Out* to = static_cast<Out*>(dx.base);
    float *token = static_cast<float*>(partial.token), *pos = static_cast<float*>(partial.pos);
    if (pos) {
        return start(backward_positions<In, Out>, kVector, ceil_div(p.batch, partial.run), p.tokens,
                     p.width, p.stream, from, p.tokens, to, token, pos, partial.pos_rows,
                     partial.run, p.batch);
    }
    const RowCut cut = cut_rows(p.batch, p.tokens.length, p.width / kNumbers<In, Out>);
    return launch(backward_wide<In, Out>, cut.blocks(p.batch), cut.threads(), p.stream, cut, from,
                  p.tokens, to, token, p.width);
}

// The number of rows of partial sums for the token.
int64_t token_rows(const Problem& p, int element, int dx_element, const Runs& runs, bool pos) {
    const bool narrow = element == kFloat64;
    if (pos || narrow) {
        return runs.runs * tiles_of(p.tokens.length, block_of(p.width, narrow ? 1 : kVector));
    }
    const int64_t most = max_of(element_size(element), element_size(dx_element));
    return p.batch * cut_rows(p.batch, p.tokens.length, p.width / (16 / most)).tiles;
}

}  // namespace mask_tokens_backward_file

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
    if (code == cudaSuccess && token) {
        const int64_t rows = token_rows(p, sum_element == kFloat64 ? kFloat64 : grad.element,
                                        x ? x.element : grad.element, runs, bool(pos_embed));
        code = add_rows(partial.token, sum_element, rows, width, array_of(token), stream);
    }
    if (code == cudaSuccess && pos_embed) {
        code = add_rows(partial.pos, sum_element, runs.runs, pos_embed.numel(), array_of(pos_embed),
                        stream);
    }
    return code;
}

SIMMIM_END

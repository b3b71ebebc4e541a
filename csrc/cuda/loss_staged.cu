// The pass of the masked losses where prediction and target have different orders: the target's
// pixels of a cell are read line by line, stored in shared memory in the prediction's order, and
// compared from there. A cell is a token; of a map, it is one line of all tokens in one channel.
#include <type_traits>

#include "cuda/kernels.h"
#include "cuda/loss_wide.h"

SIMMIM_BEGIN

inline namespace loss_staged_file {

constexpr int kMostThreads = 256;

// W (two or four) contiguous numbers of a target of any type but float64.
template <int W>
__device__ __forceinline__ void load_neighbours(const void* base, int element, int64_t bytes,
                                                float* values) {
    const char* at = static_cast<const char*>(base) + bytes;
    if (element == kFloat32) {
        widen_pack<float, W>(load_pack<float, W>(reinterpret_cast<const float*>(at)), values);
    } else if (element == kBFloat16) {
        widen_pack<BFloat16, W>(load_pack<BFloat16, W>(reinterpret_cast<const BFloat16*>(at)),
                                values);
    } else if (element == kFloat16) {
        widen_pack<Float16, W>(load_pack<Float16, W>(reinterpret_cast<const Float16*>(at)), values);
    } else {
        widen_pack<uint8_t, W>(load_pack<uint8_t, W>(reinterpret_cast<const uint8_t*>(at)), values);
    }
}

// FEW: a cell (not of a map) has at most a quarter of kStagedNumbers, so fewer threads are enough.
// PAIRS: lines are multiples of two pixels, but not of four.
template <class In, class Loss, bool FEW, bool PAIRS>
__global__ void __launch_bounds__(FEW ? kMostThreads / 4 : kMostThreads, FEW ? 12 : 3)
    pass_staged(const WideLoss w, const StagedCell cell, const In* pred, In* grad, Array target) {
    static_assert(FEW || !PAIRS, "pairs are few");
    constexpr int W = PAIRS ? 2 : 4, V = PAIRS ? 4 : 16 / int(sizeof(In));
    constexpr int kRounds = kStagedNumbers / kMostThreads / W;  // vectors that a thread stages
    alignas(16) __shared__ float pixels[FEW ? kStagedNumbers / 4 : kStagedNumbers];
    __shared__ uint8_t
        seen[FEW ? 1 : kStagedTokens];  // for a map: which of the sample's tokens are masked
    __shared__ float gains[kStagedChannels], offsets[kStagedChannels];
    const int32_t threads = int32_t(blockDim.x);
    const int32_t row = int32_t(blockIdx.x / uint32_t(w.cut.tiles));
    const int32_t first = int32_t(blockIdx.x - uint32_t(row) * uint32_t(w.cut.tiles)) * w.cut.chunk;
    const int32_t last = min_of(first + w.cut.chunk, w.cells);
    const bool each = w.scaling.reduction == kEach;
    int64_t owner = row, named;
    if (w.list.given && each) owner = w.list.sample(int64_t(row) * w.cells, &named);
    const double found = owner < 0 ? 0.0 : w.scaling.of(owner);
    if (threadIdx.x == 0 && first == 0 && owner >= 0 && (each || row == 0)) {
        w.scaling.leave(each ? owner : 0, found);
    }
    const float factor = w.scaled ? float(found) : kHalfSlope;
    for (int32_t c = int32_t(threadIdx.x); c < cell.channels; c += threads) {
        const double spread = w.std.base ? w.std.load(c) : 1.0;
        gains[c] = float(1.0 / (w.unit * spread));
        offsets[c] = w.std.base ? float(w.unit * w.mean.load(c)) : 0.0f;
    }
    for (int32_t t = int32_t(threadIdx.x); !FEW && t < cell.tokens; t += threads) {
        const int32_t y = t / cell.tokens_across * cell.p, x = t % cell.tokens_across * cell.p;
        seen[t] =
            w.scaling.mask[row * w.scaling.units + y / w.unit_h * w.units_across + x / w.unit_w];
    }

    // Where this thread's vectors of pixels lie in a cell of the target, where each number goes,
    // and whose channel it has.
    int64_t from[kRounds];
    int32_t to[kRounds][W], token[kRounds];
    const int32_t in_line = cell.line / W, vectors = cell.lines * in_line;
#pragma unroll
    for (int k = 0; k < kRounds; ++k) {
        const int32_t j = int32_t(threadIdx.x) + k * threads, line = j / in_line;
        const int32_t b = (j - line * in_line) * W, outer = line / cell.inner_lines;
        const int32_t inner = line - outer * cell.inner_lines;
        from[k] = outer * cell.outer_bytes + inner * cell.inner_bytes + b * cell.size;
        token[k] = cell.tokens ? line * cell.tokens_across + b / cell.p : outer;
#pragma unroll
        for (int e = 0; e < W; ++e) {
            to[k][e] = outer * cell.outer_place + inner * cell.inner_place +
                       (b + e) / cell.run * cell.run_place + (b + e) % cell.run * cell.number_place;
        }
    }
    const bool affine = w.std.base || w.unit != 1.0;
    double sum = 0;
    for (int32_t o = first; o < last; ++o) {
        int64_t place;
        int32_t channel = 0, unit;
        if (!FEW && cell.tokens) {
            channel = o / cell.p;
            place = row * w.target_sample + channel * w.target_channel +
                    (o - channel * cell.p) * w.target_y;
        } else {
            place = w.place(row, 0, o, cell.column, &unit);
        }
        __syncthreads();  // the previous cell has been read
        if (place >= 0) {
            float values[kRounds][W];
            bool wanted[kRounds];
#pragma unroll
            for (int k = 0; k < kRounds; ++k) {  // all loads before the first use
                wanted[k] = int32_t(threadIdx.x) + k * threads < vectors;
#pragma unroll
                for (int e = 0; e < W; ++e) values[k][e] = 0;
                if (wanted[k] && (FEW || !cell.tokens || seen[token[k]])) {
                    load_neighbours<W>(target.base, target.element, place + from[k], values[k]);
                }
            }
#pragma unroll
            for (int k = 0; k < kRounds; ++k) {
                if (!wanted[k]) continue;
                if (affine && !cell.late) {
                    const int32_t c = cell.tokens ? channel : token[k];
#pragma unroll
                    for (int e = 0; e < W; ++e) {
                        values[k][e] = (values[k][e] - offsets[c]) * gains[c];
                    }
                }
#pragma unroll
                for (int e = 0; e < W; ++e) pixels[to[k][e]] = values[k][e];
            }
        }
        __syncthreads();
        const In* const numbers = moved(pred, row * w.pred_sample + o * int64_t(w.pred_cell));
        In* const slopes_of = moved(grad, row * w.grad_sample + o * int64_t(w.grad_cell));
        for (int32_t i = int32_t(threadIdx.x) * V; i < w.numbers; i += threads * V) {
            bool here[V], any = place >= 0;
#pragma unroll
            for (int n = 0; n < V; ++n) here[n] = any;
            if (!FEW && cell.tokens) {
                int32_t t = i % cell.tokens;
                any = false;
#pragma unroll
                for (int n = 0; n < V; ++n) {
                    here[n] = seen[t] != 0;
                    any = any || here[n];
                    t = t + 1 == cell.tokens ? 0 : t + 1;
                }
            }
            if (!any) {
                if (grad) store_pack<In, V>(slopes_of + i, Pack<In, V>{});
                continue;
            }
            float values[V], wanted[V], slopes[V], cost = 0, gain = 1, offset = 0;
            widen_pack<In, V>(load_pack<In, V>(numbers + i), values);
#pragma unroll
            for (int n = 0; n < V; n += 4) {
                widen_pack<float, 4>(load_pack<float, 4>(pixels + i + n), wanted + n);
            }
            if (affine && cell.late) {
                gain = gains[i / (w.ph * w.ph)];
                offset = offsets[i / (w.ph * w.ph)];
            }
#pragma unroll
            for (int n = 0; n < V; ++n) {
                const float d = here[n] ? values[n] - (wanted[n] - offset) * gain : 0.0f;
                cost += Loss::value(d, w.parameter);
                slopes[n] = scaled_slope<Loss>(d, w.parameter, factor);
            }
            sum += cost;
            if (grad) store_pack<In, V>(slopes_of + i, slopes);
        }
    }
    leave_sum(sum, w.partial);
}

template <class In>
int start(const WideLoss& wide, const StagedCell& cell, int64_t blocks, const Tensor& pred,
          const Tensor& grad, const Tensor& target, LossKind kind, Stream stream) {
    const bool few = cell.few();
    return with_loss(kind, [&](auto loss) {
        using Loss = decltype(loss);
        const auto kernel = cell.pairs ? pass_staged<In, Loss, true, true>
                            : few      ? pass_staged<In, Loss, true, false>
                                       : pass_staged<In, Loss, false, false>;
        return launch(kernel, blocks, dim3(unsigned(few ? kMostThreads / 4 : kMostThreads)), stream,
                      wide, cell, pred.as<In>(), grad.as<In>(), array_of(target));
    });
}

}  // namespace loss_staged_file

int start_staged(const WideLoss& wide, const StagedCell& cell, int64_t blocks, const Tensor& pred,
                 const Tensor& grad, const Tensor& target, LossKind kind, Stream stream) {
    auto* start_in = pred.element == kFloat32    ? start<float>
                     : pred.element == kBFloat16 ? start<BFloat16>
                                                 : start<Float16>;
    return start_in(wide, cell, blocks, pred, grad, target, kind, stream);
}

SIMMIM_END

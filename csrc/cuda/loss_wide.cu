#include <type_traits>

#include "cuda/kernels.h"
#include "cuda/loss_wide.h"

SIMMIM_BEGIN

inline namespace loss_wide_file {

// The pixel value (stored / unit - mean) / std: one multiply-add for bytes. For other types the
// mean is subtracted first, because it may be far larger than the difference.
template <class T>
struct PixelValue {
    float gain = 1, offset = 0;

    __device__ __forceinline__ PixelValue(const WideLoss& w, int32_t channel) {
        const double spread = w.std.base ? w.std.load(channel) : 1.0;
        const double mean = w.std.base ? w.mean.load(channel) : 0.0;
        gain = float(1.0 / (w.unit * spread));
        offset = float(std::is_same<T, uint8_t>::value ? -mean / spread : mean);
    }
    __device__ __forceinline__ float of(float stored) const {
        return std::is_same<T, uint8_t>::value ? fmaf(stored, gain, offset)
                                               : (stored - offset) * gain;
    }
};

struct PlainValue {
    __device__ __forceinline__ PlainValue(const WideLoss&, int32_t) {}
    __device__ __forceinline__ float of(float stored) const { return stored; }
};

__device__ __forceinline__ uint32_t rotated(uint32_t word, uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __funnelshift_l(word, word, bits);
#else
    return word << bits % 32 | word >> (0u - bits) % 32;
#endif
}

// Loads eight float32 of the target for each thread. Two neighbouring lanes load their 64 bytes in
// turns of 16, so that each sector is requested once, and then exchange words: lanes of odd number
// have loaded the second and fourth of four.
template <class T, int V>
__device__ __forceinline__ void load_with_neighbour(const T* own, bool odd, Pack<T, V>* pack) {
    const T* const first = own - (odd ? V : 0) + (odd ? V / 2 : 0);
    const Pack<T, V / 2> near = load_pack<T, V / 2>(first);
    const Pack<T, V / 2> far = load_pack<T, V / 2>(first + V);
#pragma unroll
    for (int n = 0; n < V / 2; ++n) {
        pack->words[n] = near.words[n];
        pack->words[V / 2 + n] = far.words[n];
    }
}

// lanes: the active lanes of the warp, at least the two neighbours.
template <class T, int V>
__device__ __forceinline__ void exchange_with_neighbour(uint32_t lanes, bool odd,
                                                        Pack<T, V>* pack) {
#pragma unroll
    for (int n = 0; n < V / 2; ++n) {
        T &near = pack->words[n], &far = pack->words[V / 2 + n];
        const T got = __shfl_xor_sync(lanes, odd ? near : far, 1);
        near = odd ? got : near;
        far = odd ? far : got;
    }
}

// V: numbers that a thread moves at a time; T: the target's type; Value: the type it is converted
// to.
template <class In, int V, class T, class Value, class Loss>
__global__ void __launch_bounds__(kRowThreads, 1)
    pass_wide(const WideLoss w, const In* pred, In* grad, const T* target) {
    constexpr bool kMayPair = V * sizeof(T) > 16;
    const bool odd = threadIdx.x % 2;
    const uint32_t lanes = rotated(w.paired, threadIdx.x & ~1u);
    __shared__ int64_t places[kCells];
    __shared__ int32_t units[kCells];
    const RowPiece piece(w.cut, w.cells);
    const int32_t sample = piece.row / w.planes, plane = piece.row - sample * w.planes;
    const int32_t first = piece.first, padded = piece.padded;
    for (int32_t k = int32_t(threadIdx.x); k < padded; k += int32_t(blockDim.x)) {
        int32_t unit = 0;
        places[k] =
            k < piece.count ? w.place(sample, plane, first + k, sizeof(T), &unit) : kOutside;
        units[k] = unit;
    }
    const bool each = w.scaling.reduction == kEach;
    int64_t owner = sample, named;
    if (w.list.given && each) owner = w.list.sample(int64_t(sample) * w.cells, &named);
    const double found = owner < 0 ? 0.0 : w.scaling.of(owner);
    __syncthreads();
    if (threadIdx.x == 0 && first == 0 && piece.part == 0 && plane == 0 && owner >= 0 &&
        (each || sample == 0)) {
        w.scaling.leave(each ? owner : 0, found);
    }
    const float factor = w.scaled ? float(found) : kHalfSlope;

    const int32_t i = piece.group * V, down = w.cut.down;
    double sum = 0;
    if (i < w.numbers && piece.down < down) {
        const int32_t line = i / w.pw, dx = i - line * w.pw, c = line / w.ph, dy = line - c * w.ph;
        const int32_t unit = dy / w.unit_h * w.units_across + dx / w.unit_w;
        const uint8_t* mask = w.scaling.mask + sample * w.scaling.units + unit;
        const Value pixel(w, w.planes > 1 ? plane : c);
        pred = moved(pred + i,
                     sample * w.pred_sample + plane * w.pred_plane + int64_t(first) * w.pred_cell);
        if (grad) {
            grad = moved(grad + i, sample * w.grad_sample + plane * w.grad_plane +
                                       int64_t(first) * w.grad_cell);
        }
        target = moved(target + dx, c * w.target_channel + dy * w.target_y);
        for (int32_t start = piece.down; start < padded; start += piece.step) {
            int64_t place[kInFlight];
            Pack<In, V> packs[kInFlight];
            Pack<T, V> wanted[kInFlight];
#pragma unroll
            for (int k = 0; k < kInFlight; ++k) {  // all loads before the first use
                const int32_t cell = start + k * down;
                place[k] = places[cell];
                if (w.fine && place[k] >= 0 && !mask[units[cell]]) place[k] = kVisible;
                if (place[k] < 0) continue;
                packs[k] = load_pack<In, V>(moved(pred, int64_t(cell) * w.pred_cell));
                if constexpr (kMayPair) {
                    if (w.paired) {
                        load_with_neighbour<T, V>(moved(target, place[k]), odd, &wanted[k]);
                        continue;
                    }
                }
                wanted[k] = load_pack<T, V>(moved(target, place[k]));
            }
#pragma unroll
            for (int k = 0; k < kInFlight; ++k) {
                In* to = moved(grad, int64_t(start + k * down) * w.grad_cell);
                if (place[k] >= 0) {
                    if constexpr (kMayPair) {
                        if (w.paired) exchange_with_neighbour<T, V>(lanes, odd, &wanted[k]);
                    }
                    float values[V], pixels[V], slopes[V], cost = 0;
                    widen_pack<In, V>(packs[k], values);
                    widen_pack<T, V>(wanted[k], pixels);
#pragma unroll
                    for (int n = 0; n < V; ++n) {
                        const float d = values[n] - pixel.of(pixels[n]);
                        cost = n ? cost + Loss::value(d, w.parameter) : Loss::value(d, w.parameter);
                        slopes[n] = scaled_slope<Loss>(d, w.parameter, factor);
                    }
                    sum += cost;
                    if (grad) store_pack<In, V>(to, slopes);
                } else if (grad && place[k] == kVisible) {
                    store_pack<In, V>(to, Pack<In, V>{});
                }
            }
        }
    }
    leave_sum(sum, w.partial);
}

template <class In, int V, class T, class Value>
int start_of(const WideLoss& wide, int64_t blocks, const Tensor& pred, const Tensor& grad,
             const Tensor& target, LossKind kind, Stream stream) {
    return with_loss(kind, [&](auto loss) {
        return launch(pass_wide<In, V, T, Value, decltype(loss)>, blocks, wide.cut.threads(),
                      stream, wide, pred.as<In>(), grad.as<In>(), target.as<T>());
    });
}

template <class In>
auto start_in(const WideLoss& wide, int target) {
    constexpr int V = 16 / int(sizeof(In));
    if constexpr (V > 4) {
        if (wide.vector == 4) {
            return target == kFloat32 ? start_of<In, 4, float, PlainValue>
                                      : start_of<In, 4, In, PlainValue>;
        }
    }
    const bool stats = wide.std.base;
    if (target == kUInt8) return start_of<In, V, uint8_t, PixelValue<uint8_t>>;
    if (target == kFloat32) {
        return stats ? start_of<In, V, float, PixelValue<float>>
                     : start_of<In, V, float, PlainValue>;
    }
    return stats ? start_of<In, V, In, PixelValue<In>> : start_of<In, V, In, PlainValue>;
}

}  // namespace loss_wide_file

int start_wide(const WideLoss& wide, int64_t blocks, const Tensor& pred, const Tensor& grad,
               const Tensor& target, LossKind kind, Stream stream) {
    auto* start = pred.element == kFloat32    ? start_in<float>(wide, target.element)
                  : pred.element == kBFloat16 ? start_in<BFloat16>(wide, target.element)
                                              : start_in<Float16>(wide, target.element);
    return start(wide, blocks, pred, grad, target, kind, stream);
}

SIMMIM_END

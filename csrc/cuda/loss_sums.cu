#include "common/grid.h"
#include "cuda/kernels.h"
#include "cuda/loss_sums.h"

SIMMIM_BEGIN

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    count_kernel(const uint8_t* mask, int64_t n, int64_t* counts) {
    const int64_t first = blockIdx.x * kCounted;
    const int64_t last = min_of<int64_t>(n, first + kCounted);
    int64_t count = 0;
    for (int64_t i = first + threadIdx.x; i < last; i += blockDim.x) count += mask[i] != 0;
    const int64_t total = block_sum(count);
    if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

// The masked units of a result are the sum of its `n` counts, or the set ones of its `n` bytes of
// the mask, or the rows of the list that belong to it.
__global__ void __launch_bounds__(kThreads)
    scales_kernel(LossScale scaling, LossList list, const uint8_t* mask, const int64_t* counts,
                  int64_t n) {
    const int64_t result = blockIdx.x;
    int64_t count = 0;
    if (scaling.reduction != kSum) {
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
            if (list.given) {
                int64_t unit;
                const int64_t sample = list.sample(i, &unit);
                count += sample >= 0 && (scaling.reduction == kMean || sample == result);
            } else {
                count += counts ? counts[i] : int64_t(mask[result * n + i] != 0);
            }
        }
    }
    const int64_t total = block_sum(count);
    if (threadIdx.x == 0) {
        double denominator = 1.0;
        if (scaling.reduction != kSum) {
            // 0 where nothing is masked: the reciprocal of a tiny eps has no place in float32.
            denominator = total ? double(total * scaling.pixels) + scaling.eps : 0.0;
            denominator *= double(scaling.channels);
        }
        const double scale = denominator == 0.0 ? 0.0 : scaling.factor / denominator;
        scaling.scale[result] = scale;
        if (scaling.out.base) scaling.out.store(result, scale);
    }
    if (!scaling.affine || result != 0) return;
    for (int64_t c = threadIdx.x; c < scaling.channels; c += blockDim.x) {
        const double std = scaling.std.base ? scaling.std.load(c) : 1.0;
        const double mean = scaling.mean.base ? scaling.mean.load(c) : 0.0;
        scaling.affine[c] = 1.0 / (scaling.unit * std);
        scaling.affine[scaling.channels + c] = scaling.unit * mean;
    }
}

__global__ void __launch_bounds__(kThreads)
    results_kernel(LossScale scaling, LossList list, const double* partial, int64_t n,
                   int64_t tiles, double unit, Array loss) {
    const int64_t result = blockIdx.x;
    const bool flat = list.given && !list.per_sample && scaling.reduction == kEach;
    const int64_t first = flat ? 0 : result * n;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        int64_t unit;
        if (!flat || list.sample(i / tiles, &unit) == result) sum += partial[first + i];
    }
    const double total = block_sum(sum);
    if (threadIdx.x == 0) loss.store(result, total * unit * scaling.scale[result]);
}

__global__ void __launch_bounds__(kThreads) mark_kernel(LossList list, uint8_t* marks) {
    const int64_t row = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (row >= list.rows) return;
    int64_t unit;
    const int64_t sample = list.sample(row, &unit);
    if (sample >= 0) marks[sample * list.units + unit] = 1;  // whoever writes it: the same byte
}

}  // namespace

int mark_listed(const Tensor& index, const Tensor& marks, Stream stream) {
    const LossList list = list_of(index, marks.size(0), extent_from(marks, 1).cells());
    return launch(mark_kernel, ceil_div(list.rows, kThreads), dim3(kThreads), stream, list,
                  marks.as<uint8_t>());
}

int loss_scales(const LossScale& scaling, const LossList& list, const uint8_t* mask, int64_t batch,
                int64_t units, int64_t* counts, Stream stream) {
    const bool each = scaling.reduction == kEach;
    const int64_t results = each ? batch : 1;
    int64_t n = list.given ? list.rows : (each ? units : batch * units);
    const bool many = !list.given && scaling.reduction == kMean && n > kCounted;
    if (many) {
        const int64_t chunks = ceil_div(n, kCounted);
        const int code = launch(count_kernel, chunks, dim3(kThreads), stream, mask, n, counts);
        if (code != cudaSuccess) return code;
        n = chunks;
    }
    return launch(scales_kernel, results, dim3(kThreads), stream, scaling, list, mask,
                  many ? counts : nullptr, n);
}

int loss_results(const LossScale& scaling, const LossList& list, const double* partial, int64_t n,
                 int64_t tiles, double unit, int64_t batch, Array loss, Stream stream) {
    const bool each = scaling.reduction == kEach;
    const int64_t results = each ? batch : 1;
    const bool flat = list.given && !list.per_sample;
    if (each && !flat && batch) n /= batch;
    return launch(results_kernel, results, dim3(kThreads), stream, scaling, list, partial, n, tiles,
                  unit, loss);
}

SIMMIM_END

#include "common/grid.h"
#include "cuda/kernels.h"
#include "cuda/loss_sums.h"

SIMMIM_BEGIN

inline namespace loss_sums_file {

constexpr int kThreads = 256;

// Counts masked units in a part of the mask, or rows of an index list that name a unit, in a part
// of it or (with `each`) in one sample.
__global__ void __launch_bounds__(kThreads)
    count_kernel(LossList list, const uint8_t* mask, int64_t n, bool each, int64_t* counts) {
    const int64_t first = each ? 0 : blockIdx.x * kCounted;
    const int64_t last = each ? n : min_of<int64_t>(n, first + kCounted);
    int64_t count = 0;
    if (list.given) {
        for (int64_t i = first + threadIdx.x; i < last; i += blockDim.x) {
            int64_t unit;
            const int64_t sample = list.sample(i, &unit);
            count += sample >= 0 && (!each || sample == int64_t(blockIdx.x));
        }
    } else {
        count = count_bytes(mask + first, last - first);
    }
    const int64_t total = block_sum(count);
    if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads, 1)
    results_kernel(LossScale scaling, LossList list, const double* partial, int64_t n,
                   int64_t tiles, double unit, Array loss) {
    const int64_t result = blockIdx.x;
    const bool flat = list.given && !list.per_sample && scaling.reduction == kEach;
    const int64_t first = flat ? 0 : result * n;
    double sum = 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        int64_t place;
        if (!flat || list.sample(i / tiles, &place) == result) sum += partial[first + i];
    }
    const double total = block_sum(sum);
    // Without rows no block has stored a factor.
    if (threadIdx.x == 0) loss.store(result, n ? total * unit * scaling.scale[result] : 0.0);
}

__global__ void __launch_bounds__(kThreads) mark_kernel(LossList list, uint8_t* marks) {
    const int64_t row = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (row >= list.rows) return;
    int64_t unit;
    const int64_t sample = list.sample(row, &unit);
    if (sample >= 0) marks[sample * list.units + unit] = 1;  // several threads store the same byte
}

}  // namespace loss_sums_file

int mark_listed(const Tensor& index, const Tensor& marks, Stream stream) {
    const LossList list = list_of(index, marks.size(0), extent_from(marks, 1).cells());
    return launch(mark_kernel, ceil_div(list.rows, kThreads), dim3(kThreads), stream, list,
                  marks.as<uint8_t>());
}

int64_t parts_counted(const LossList& list, Reduction reduction, int64_t batch, int64_t units) {
    const bool each = reduction == kEach;
    if (reduction == kSum || (list.given && list.per_sample)) return 0;
    if (list.given) return each ? batch : ceil_div(list.rows, kCounted);
    return each || batch * units <= kCounted ? 0 : ceil_div(batch * units, kCounted);
}

int count_masked(const LossList& list, Reduction reduction, const uint8_t* mask, int64_t batch,
                 int64_t units, int64_t* counts, Stream stream) {
    return launch(count_kernel, parts_counted(list, reduction, batch, units), dim3(kThreads),
                  stream, list, mask, list.given ? list.rows : batch * units, reduction == kEach,
                  counts);
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

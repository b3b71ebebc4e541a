// Multiplies a saved gradient by the gradient of its loss, in place. Blocks read the factor from
// GPU memory, so the host need not wait for it, and return at once where it is 1, as it nearly
// always is.
#include <type_traits>

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/vector.h"

SIMMIM_BEGIN

inline namespace scale_gradient_file {

constexpr int kThreads = 256, kVector = 8, kGroups = 4;
constexpr int64_t kBlocks = 1056;  // eight for each of 132 multiprocessors, all at once

// The first `groups` groups of kVector numbers of a row are moved 16 bytes at a time.
template <class T>
__global__ void __launch_bounds__(kThreads)
    scale_rows(T* grad, Array factor, int64_t step, int64_t numbers, int64_t pieces,
               int64_t groups) {
    using C = typename std::conditional<std::is_same<T, double>::value, double, float>::type;
    const int64_t row = blockIdx.x / uint32_t(pieces), piece = blockIdx.x - row * pieces;
    const double given = factor.load(row * step);
    if (given == 1.0) return;
    const C number = C(given);
    grad += row * numbers;
    const int64_t first = piece * kThreads + threadIdx.x, all = pieces * kThreads;
    for (int64_t group = first; group < groups; group += all * kGroups) {
        Pack<T, kVector> packs[kGroups];
#pragma unroll
        for (int k = 0; k < kGroups; ++k) {  // all loads before the first use
            const int64_t at = group + k * all;
            if (at < groups) packs[k] = load_pack<T, kVector>(grad + at * kVector);
        }
#pragma unroll
        for (int k = 0; k < kGroups; ++k) {
            const int64_t at = group + k * all;
            if (at >= groups) continue;
            C values[kVector];
            widen_pack<T, kVector>(packs[k], values);
#pragma unroll
            for (int i = 0; i < kVector; ++i) values[i] *= number;
            store_pack<T, kVector>(grad + at * kVector, values);
        }
    }
    for (int64_t i = groups * kVector + first; i < numbers; i += all) {
        grad[i] = Narrow<T>::from(C(widen(grad[i])) * number);
    }
}

}  // namespace scale_gradient_file

int scale_gradient(const Tensor& grad, const Tensor& factor, Stream stream) {
    const Array factors = array_of(factor);
    const int64_t rows = factor.numel(), step = factor.dims ? factor.stride(0) : 0;
    const int64_t numbers = grad.numel() / max_of<int64_t>(rows, 1);
    const bool wide = packs(grad.data, grad.element, rows > 1 ? numbers : 0);
    const int64_t groups = wide ? numbers / kVector : 0;
    const int64_t pieces = min_of(ceil_div(numbers, kThreads * kVector * kGroups),
                                  max_of<int64_t>(kBlocks / max_of<int64_t>(rows, 1), 1));
    const auto start = [&](auto* base) {
        using T = typename std::remove_pointer<decltype(base)>::type;
        return launch(scale_rows<T>, rows * pieces, dim3(kThreads), stream, base, factors, step,
                      numbers, pieces, groups);
    };
    switch (grad.element) {
        case kFloat64:
            return start(grad.as<double>());
        case kBFloat16:
            return start(grad.as<BFloat16>());
        case kFloat16:
            return start(grad.as<Float16>());
        default:
            return start(grad.as<float>());
    }
}

SIMMIM_END

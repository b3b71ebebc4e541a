// The inner loop of the masked losses: a run of predictions that lie side by side, their targets in
// the compute type, and the place of their gradients.
#pragma once

#include "common/pixel_loss.h"
#include "cpu/rows.h"

SIMMIM_BEGIN

constexpr int64_t kLanes = 16;          // on every instruction set, so the sums have the same bits
constexpr int64_t kFold = 16 * kLanes;  // elements summed in C before they join float64 sums

template <class C>
using SpanLoop = void (*)(const char* pred, const C* target, char* grad, int64_t n, C inverse,
                          C scale, double* total);

// Adds value[0 .. n) to total[0 .. kLanes), element i to lane i % kLanes; value has room for a
// whole number of lanes. The vector type keeps the lanes in registers, which the compiler does not
// manage for an array.
template <class C>
inline void add_lanes(C* value, int64_t n, double* total) {
    typedef C Vector __attribute__((vector_size(kLanes * sizeof(C))));
    const int64_t padded = (n + kLanes - 1) / kLanes * kLanes;
    for (int64_t i = n; i < padded; ++i) value[i] = C(0);
    Vector lanes = {};
    for (int64_t i = 0; i < padded; i += kLanes) {
        Vector next;
        std::memcpy(&next, value + i, sizeof(next));
        lanes += next;
    }
    C lane[kLanes];
    std::memcpy(lane, &lanes, sizeof(lanes));
    for (int64_t j = 0; j < kLanes; ++j) total[j] += double(lane[j]);
}

// total[i % kLanes] += the loss of element i; grad[i] = slope * scale where kGrad. The gradient may
// be written over the prediction.
template <class C, class P, class LossKind, bool kGrad>
void span(const char* pred_bytes, const C* target, char* grad_bytes, int64_t n, C inverse, C scale,
          double* total) {
    const P* pred = reinterpret_cast<const P*>(pred_bytes);
    P* grad = reinterpret_cast<P*>(grad_bytes);
    for (int64_t start = 0; start < n; start += kFold) {
        const int64_t m = min_of(kFold, n - start);
        C value[kFold];
#pragma GCC ivdep
        for (int64_t i = 0; i < m; ++i) {
            const C d = C(widen(pred[start + i])) - target[start + i];
            value[i] = LossKind::value(d, inverse);
            if (kGrad) grad[start + i] = Narrow<P>::from(LossKind::slope(d, inverse) * scale);
        }
        add_lanes(value, m, total);
    }
}

template <class C, class P, class LossKind>
SpanLoop<C> span_with(bool grad) {
    return grad ? span<C, P, LossKind, true> : span<C, P, LossKind, false>;
}

template <class C, class P>
SpanLoop<C> span_of(int loss, bool grad) {
    switch (loss) {
        case kL1:
            return span_with<C, P, L1>(grad);
        case kMSE:
            return span_with<C, P, SquaredError>(grad);
        default:
            return span_with<C, P, SmoothL1>(grad);
    }
}

template <class C>
SpanLoop<C> span_for(int element, int loss, bool grad) {
    switch (element) {
        case kFloat32:
            return span_of<C, float>(loss, grad);
        case kFloat64:
            return span_of<C, double>(loss, grad);
        case kBFloat16:
            return span_of<C, BFloat16>(loss, grad);
        default:
            return span_of<C, Float16>(loss, grad);
    }
}

SIMMIM_END

// The inner loop of the masked losses, over rows of pixels that have the same masked runs, with
// contiguous predictions, targets in the compute type, and gradients.
#pragma once

#include "common/loss_spec.h"
#include "cpu/rows.h"
#include "cpu/vectors.h"

SIMMIM_BEGIN

constexpr int64_t kLanes = 16;  // on every instruction set, so the sums have the same bits
constexpr int64_t kFold = 16;   // vectors summed in C before they join float64 sums

// Pixels [x, x + n) of a row, all masked or all visible.
struct Run {
    int64_t x, n;
    bool masked;
};

// Prefetches go to the L2 cache. The processor's own prefetcher fetches the gaps between masked
// runs too, and prefetching into the L1 cache was slower than none.
constexpr int kL2 = 2;

// Pointers to the first row of one channel at its first run, and the steps from row to row. `grad`
// is null where no gradient is wanted; it may equal `pred`.
template <class C>
struct Rows {
    const char* pred;
    const C* target;
    char* grad;
    int64_t pred_step, target_step, grad_step;
    int64_t count;
    int64_t ahead;                   // how many rows ahead numbers are prefetched
    int64_t pred_next, target_next;  // offsets from the first row to the rows that are scored next
    bool stream;                     // whether the gradient is stored past the caches
};

template <class C>
using SpanLoop = void (*)(const Rows<C>& rows, const Run* runs, int64_t run_count, C parameter,
                          C scale, double* total);

// Sums losses, kLanes pixels at a time: up to kFold vectors in C, then in float64.
template <class C, class P, class Loss, bool kGrad>
class Span {
  public:
    Span(C parameter, C scale) : parameter_(V{} + parameter), scale_(V{} + scale) {}

    void add(const P* pred, const C* target, P* grad) {
        for (int64_t k = 0; k < kParts; ++k) sum_[k] += part(k, pred, target, grad);
        if (++unfolded_ == kFold) fold();
    }

    // The last n < kLanes pixels of a run, by a whole vector that ends where the run does: pixels
    // before them are read, and their gradient written, a second time but not added again.
    void add_last(const P* pred, const C* target, P* grad, int64_t n) {
        C first[kLanes];
        for (int64_t j = 0; j < kLanes; ++j) first[j] = C(j >= kLanes - n);
        for (int64_t k = 0; k < kParts; ++k) {
            const V value = part(k, pred - kLanes, target - kLanes, grad - kLanes);
            sum_[k] += load_vector<C, kWidth>(first + k * kWidth) != V{} ? value : V{};
        }
        if (++unfolded_ == kFold) fold();
    }

    // Fewer than kLanes pixels; the difference is 0 in the remaining lanes.
    void add_few(const P* pred, const C* target, P* grad, int64_t n) {
        P some[kLanes] = {}, slope[kLanes];
        C goal[kLanes] = {};
        for (int64_t i = 0; i < n; ++i) {
            some[i] = pred[i];
            goal[i] = target[i];
        }
        add(some, goal, slope);
        for (int64_t i = 0; kGrad && i < n; ++i) grad[i] = slope[i];
    }

    void finish(double* total) {
        fold();
        for (int64_t i = 0; i < kLanes / kDoubles; ++i) {
            const Double sum = read<Double>(total + i * kDoubles) + folded_[i];
            std::memcpy(total + i * kDoubles, &sum, sizeof(sum));
        }
    }

  private:
    static constexpr int64_t kWidth = kVectorBytes / int64_t(sizeof(C)), kParts = kLanes / kWidth;
    static constexpr int64_t kDoubles = kVectorBytes / 8;
    typedef Vector<C, kWidth> V;
    typedef Vector<double, kDoubles> Double;

    V part(int64_t k, const P* pred, const C* target, P* grad) const {
        const V d =
            load_vector<C, kWidth>(pred + k * kWidth) - load_vector<C, kWidth>(target + k * kWidth);
        if (kGrad) {
            const V slope = Loss::template slope<V>(d, parameter_);
            store_vector<C, kWidth>(slope * scale_, grad + k * kWidth);
        }
        return Loss::template value<V>(d, parameter_);
    }

    void fold() {
        C lane[kLanes];
        std::memcpy(lane, sum_, sizeof(sum_));
        for (int64_t i = 0; i < kLanes / kDoubles; ++i)
            folded_[i] += load_vector<double, kDoubles>(lane + i * kDoubles);
        for (V& sum : sum_) sum = V{};
        unfolded_ = 0;
    }

    V sum_[kParts] = {};
    const V parameter_, scale_;
    Double folded_[kLanes / kDoubles] = {};
    int64_t unfolded_ = 0;
};

// total[j] += the losses of masked pixels. With kGrad, their gradient becomes slope * scale and
// that of visible pixels 0. Runs are short (16 or 32 pixels), so nothing is decided inside them.
template <class C, class P, class Loss, bool kGrad>
void span(const Rows<C>& rows, const Run* runs, int64_t run_count, C parameter, C scale,
          double* total) {
    Span<C, P, Loss, kGrad> sum(parameter, scale);
    const bool in_place = rows.grad == rows.pred;
    // Whole rows are streamed: streaming single vectors between loads was half as fast.
    const Run& last = runs[run_count - 1];
    const int64_t length = (last.x + last.n - runs[0].x) * int64_t(sizeof(P));
    const bool stream = kGrad && rows.stream && length <= kLineBytes;
    alignas(64) char line[kGrad ? kLineBytes : 1];
    for (int64_t row = 0; row < rows.count; ++row) {
        const P* pred_row = reinterpret_cast<const P*>(rows.pred) + row * rows.pred_step;
        P* const to = reinterpret_cast<P*>(rows.grad) + row * rows.grad_step;
        P* const grad_row = stream ? reinterpret_cast<P*>(line) : to;
        const C* target_row = rows.target + row * rows.target_step;
        int64_t pred_ahead = rows.ahead * rows.pred_step;
        int64_t target_ahead = rows.ahead * rows.target_step;
        if (row + rows.ahead >= rows.count) {
            pred_ahead += rows.pred_next - rows.count * rows.pred_step;
            target_ahead += rows.target_next - rows.count * rows.target_step;
        }
        for (int64_t r = 0; r < run_count; ++r) {
            const int64_t x = runs[r].x - runs[0].x, n = runs[r].n;
            const P* pred = pred_row + x;
            P* grad = grad_row + x;
            const C* target = target_row + x;
            if (!runs[r].masked) {
                if (kGrad) zero_run(grad, n);
                continue;
            }
            int64_t i = 0;
            for (; i + kLanes <= n; i += kLanes) {
                __builtin_prefetch(pred + i + pred_ahead, 0, kL2);
                __builtin_prefetch(target + i + target_ahead, 0, kL2);
                sum.add(pred + i, target + i, grad + i);
            }
            if (i == n) continue;
            __builtin_prefetch(pred + n - 1 + pred_ahead, 0, kL2);
            __builtin_prefetch(target + n - 1 + target_ahead, 0, kL2);
            if (n > kLanes && !in_place) {
                sum.add_last(pred + n, target + n, grad + n, n - i);
            } else {
                sum.add_few(pred + i, target + i, grad + i, n - i);
            }
        }
        if (stream) stream_copy(reinterpret_cast<char*>(to), line, length);
    }
    sum.finish(total);
}

template <class C, class P>
SpanLoop<C> span_of(LossKind kind, bool grad) {
    return with_loss(kind, [&](auto loss) -> SpanLoop<C> {
        using Loss = decltype(loss);
        return grad ? span<C, P, Loss, true> : span<C, P, Loss, false>;
    });
}

// The loop that reads predictions in place; null where they are converted first. That is done for
// float64 sums of predictions of another type, a rare case that would double the loops to compile.
template <class C>
SpanLoop<C> span_for(int element, LossKind loss, bool grad) {
    if constexpr (kSame<C, double>) {
        return element == kFloat64 ? span_of<double, double>(loss, grad) : nullptr;
    } else {
        switch (element) {
            case kFloat32:
                return span_of<C, float>(loss, grad);
            case kBFloat16:
                return span_of<C, BFloat16>(loss, grad);
            default:
                return span_of<C, Float16>(loss, grad);
        }
    }
}

SIMMIM_END

// The losses: name, value of one pixel as a function of d = prediction - target, and derivative by
// d.
#pragma once

// Every loss: its name, in the order of Python's backends/_pixel_loss.py, and its struct below.
#define SIMMIM_LOSSES(X)   \
    X(l1, L1)              \
    X(mse, SquaredError)   \
    X(smooth_l1, SmoothL1) \
    X(huber, Huber)

namespace simmim {

#define X(name, Loss) k##Loss,
enum LossKind : int { SIMMIM_LOSSES(X) };
#undef X
#define X(name, Loss) #name,
constexpr const char* kLossKinds[] = {SIMMIM_LOSSES(X)};
#undef X

}  // namespace simmim

#ifdef SIMMIM_ISA  // the bindings, which need the names alone, are compiled for no instruction set

#include "common/types.h"

SIMMIM_BEGIN

// Float16 gradients are kept times this before they are divided by the pixels: no slope of a
// difference of two numbers of 16 bits is then beyond float16.
constexpr float kHalfSlope = 0.25f;

// A loss has `value` and its derivative `slope`, both of d and of `parameter(beta)`. The sum of the
// values is multiplied by `unit(beta)`, the slopes are not. Both are 0 at d = 0, which is what
// lanes without a masked pixel compute. C is a float type or, on the CPU, a vector of one, which
// has arithmetic, comparisons and `?:` but no functions of <math.h>.
struct PixelLoss {
    static double parameter(double) { return 0.0; }
    static double unit(double) { return 1.0; }
};

template <class C>
SIMMIM_HD C magnitude(const C& d) {
#ifdef __CUDA_ARCH__
    return fabs(d);
#else
    return d < C{} ? -d : d;
#endif
}

struct L1 : PixelLoss {
    template <class C>
    SIMMIM_HD static C value(const C& d, const C&) {
        return magnitude(d);
    }
    // As torch.sign: 0 at 0 and at NaN.
    template <class C>
    SIMMIM_HD static C slope(const C& d, const C&) {
        const C one = C{} + 1.0f, negative = d < C{} ? -one : C{};
        return d > C{} ? one : negative;
    }
};

struct SquaredError : PixelLoss {
    template <class C>
    SIMMIM_HD static C value(const C& d, const C&) {
        return d * d;
    }
    template <class C>
    SIMMIM_HD static C slope(const C& d, const C&) {
        return d + d;
    }
};

struct SmoothL1 : PixelLoss {
    static double parameter(double beta) { return 1.0 / beta; }
    static double unit(double beta) { return beta; }
    template <class C>
    SIMMIM_HD static C value(const C& d, const C& inverse) {
        const C size = magnitude(d), u = size * inverse;
        const C inner = 0.5f * u * u, outer = u - 0.5f;
        return u < C{} + 1.0f ? inner : outer;
    }
    template <class C>
    SIMMIM_HD static C slope(const C& d, const C& inverse) {
        const C one = C{} + 1.0f, u = d * inverse, least = u < -one ? -one : u;
        return u > one ? one : least;
    }
};

struct Huber : PixelLoss {
    static double parameter(double delta) { return delta; }
    // Both branches in one: near is |d| or delta.
    template <class C>
    SIMMIM_HD static C value(const C& d, const C& delta) {
        const C size = magnitude(d), near = size < delta ? size : delta;
        return near * (size - 0.5f * near);
    }
    template <class C>
    SIMMIM_HD static C slope(const C& d, const C& delta) {
        const C least = d < -delta ? -delta : d;
        return least > delta ? delta : least;
    }
};

// What `use`, of the host or the device as its caller is, makes of the loss of that kind.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Use>
SIMMIM_HD auto with_loss(LossKind kind, const Use& use) {
    switch (kind) {
#define X(name, Loss) \
    case k##Loss:     \
        return use(Loss());
        SIMMIM_LOSSES(X)
#undef X
    }
    __builtin_unreachable();  // a LossSpec has one of these kinds
}

SIMMIM_END

#endif

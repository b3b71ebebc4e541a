// What one pixel costs, as a function of d = prediction - target, and the derivative by d. C is a
// float type or a vector of one.
#pragma once

#include "common/loss_spec.h"
#include "common/types.h"

SIMMIM_BEGIN

struct L1 {
    template <class C>
    SIMMIM_HD static C value(const C& d, const C&) {
        return d < C{} ? -d : d;
    }
    // As torch.sign: 0 at 0 and at NaN.
    template <class C>
    SIMMIM_HD static C slope(const C& d, const C&) {
        const C one = C{} + 1.0f, negative = d < C{} ? -one : C{};
        return d > C{} ? one : negative;
    }
};

struct SquaredError {
    template <class C>
    SIMMIM_HD static C value(const C& d, const C&) {
        return d * d;
    }
    template <class C>
    SIMMIM_HD static C slope(const C& d, const C&) {
        return d + d;
    }
};

// In units of beta, so that sums are multiplied by it once: `inverse` is 1 / beta, beta > 0.
struct SmoothL1 {
    template <class C>
    SIMMIM_HD static C value(const C& d, const C& inverse) {
        const C size = d < C{} ? -d : d, u = size * inverse;
        const C inner = 0.5f * u * u, outer = u - 0.5f;
        return u < C{} + 1.0f ? inner : outer;
    }
    template <class C>
    SIMMIM_HD static C slope(const C& d, const C& inverse) {
        const C one = C{} + 1.0f, u = d * inverse, least = u < -one ? -one : u;
        return u > one ? one : least;
    }
};

SIMMIM_END

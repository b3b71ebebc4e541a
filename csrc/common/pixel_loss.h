// What one pixel costs, as a function of d = prediction - target, and the derivative by d.
#pragma once

#include "common/types.h"

SIMMIM_BEGIN

// Codes of `KINDS` in simmim_kernels/ops/masked_loss.py.
enum Loss : int { kL1 = 0, kMSE = 1, kSmoothL1 = 2 };

struct L1 {
    template <class C>
    SIMMIM_HD static C value(C d, C) {
        return d < C(0) ? -d : d;
    }
    // As torch.sign: 0 at 0 and at NaN.
    template <class C>
    SIMMIM_HD static C slope(C d, C) {
        return d > C(0) ? C(1) : (d < C(0) ? C(-1) : C(0));
    }
};

struct SquaredError {
    template <class C>
    SIMMIM_HD static C value(C d, C) {
        return d * d;
    }
    template <class C>
    SIMMIM_HD static C slope(C d, C) {
        return d + d;
    }
};

// In units of beta, so that sums are multiplied by it once: `inverse` is 1 / beta, beta > 0.
struct SmoothL1 {
    template <class C>
    SIMMIM_HD static C value(C d, C inverse) {
        const C u = (d < C(0) ? -d : d) * inverse;
        return u < C(1) ? C(0.5) * u * u : u - C(0.5);
    }
    template <class C>
    SIMMIM_HD static C slope(C d, C inverse) {
        const C u = d * inverse;
        return u > C(1) ? C(1) : (u < C(-1) ? C(-1) : u);
    }
};

SIMMIM_END

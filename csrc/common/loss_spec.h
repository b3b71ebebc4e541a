// The options of a masked loss, with the codes of their names.
#pragma once

#include <cstdint>

#include "common/pixel_loss.h"

namespace simmim {

// How a token's numbers follow each other: (channel, dy, dx) or (dy, dx, channel).
enum Order : int { kPlanar, kInterleaved };
constexpr const char* kOrders[] = {"cyx", "yxc"};

enum Reduction : int { kMean, kSum, kEach };
constexpr const char* kReductions[] = {"mean", "sum", "none"};

// How the target is normalised.
enum Norm : int { kNoNorm, kWindowNorm, kPatchNorm };
constexpr const char* kNorms[] = {"none", "window", "patch"};

// The fields of the NamedTuple of that name in Python, in its order.
struct LossSpec {
    LossKind kind;
    double beta;
    Order order;
    double eps;  // added to the number of masked pixels
    Reduction reduction;
    Norm norm;
    int64_t norm_side;  // of the window or patch, in pixels
    double norm_eps;    // added to the variance
    double factor;      // what the loss is multiplied by
};

}  // namespace simmim

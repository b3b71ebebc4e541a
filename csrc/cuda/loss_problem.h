// The problem of the narrow loss kernel: layouts of prediction and target, and the loss of a
// number.
#pragma once

#include "common/grid.h"
#include "common/loss_spec.h"
#include "cuda/loss_sums.h"

SIMMIM_BEGIN

constexpr int kLossAxes = 5;

// One axis of a prediction (channel, token row, row in the token, token column or column in the
// token): its length, and what one step adds to each offset and to the pixel's position.
struct Axis {
    int64_t size, pred, grad, target;
    int32_t y, x, channel;
};

struct Place {
    int64_t pred, grad, target;
    int32_t y, x, channel;
};

struct Problem {
    Axis axis[kLossAxes];  // in descending order of the prediction's stride
    int64_t numbers, pred_batch, grad_batch, target_batch, target_y, target_x;
    MaskGrid grid;
    LossList list;
    int64_t patch, units_in_row;
    LossScale scaling;
    Array mean, std;
    double unit;  // divisor of the target's stored numbers: 255 for bytes
    double* partial;
    double parameter;  // of the loss
    int64_t tiles;
    LossKind kind;
    bool scaled;  // whether gradients are multiplied by the factor

    __device__ __forceinline__ void move(Place& p, int axis_number, int64_t steps) const {
        const Axis& a = axis[axis_number];
        p.pred += steps * a.pred;
        p.grad += steps * a.grad;
        p.target += steps * a.target;
        p.y += int32_t(steps) * a.y;
        p.x += int32_t(steps) * a.x;
        p.channel += int32_t(steps) * a.channel;
    }

    // The place of number i, given the place of number 0.
    __device__ __forceinline__ Place place(Place p, int64_t i) const {
#pragma unroll
        for (int a = kLossAxes - 1; a >= 0; --a) {
            const int64_t rest = a ? quotient(i, axis[a].size) : 0;
            move(p, a, i - rest * axis[a].size);
            i = rest;
        }
        return p;
    }

    // The place at which row `row` of the prediction begins, and its sample, -1 for padding rows.
    __device__ __forceinline__ Place begin(int64_t row, int64_t* sample) const {
        Place p{};
        p.pred = row * pred_batch;
        p.grad = row * grad_batch;
        *sample = row;
        if (list.given) {
            int64_t unit;
            *sample = list.sample(row, &unit);
            if (*sample >= 0) {
                const int64_t y = unit / units_in_row;
                p.y = int32_t(y * patch);
                p.x = int32_t((unit - y * units_in_row) * patch);
            }
        }
        p.target = max_of<int64_t>(*sample, 0) * target_batch + p.y * target_y + p.x * target_x;
        return p;
    }

    __device__ __forceinline__ bool masked(int64_t sample, int32_t y, int32_t x) const {
        if (list.given) return sample >= 0;
        return grid.sample(sample)[grid.unit32(0, y, x)];
    }

    __device__ __forceinline__ double value(double d) const {
        return with_loss(kind, [&](auto loss) { return loss.value(d, parameter); });
    }
    __device__ __forceinline__ double slope(double d) const {
        return with_loss(kind, [&](auto loss) { return loss.slope(d, parameter); });
    }

    __device__ __forceinline__ double wanted(double stored, int32_t channel) const {
        const double value = stored / unit;
        return std.base ? (value - mean.load(channel)) / std.load(channel) : value;
    }
};

SIMMIM_END

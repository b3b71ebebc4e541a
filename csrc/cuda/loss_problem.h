// Where the numbers of a prediction lie, what they are compared with, and what each costs.
#pragma once

#include "common/grid.h"
#include "common/loss_spec.h"
#include "cuda/loss_sums.h"

SIMMIM_BEGIN

constexpr int kLossAxes = 5;

// One of channel, token row, row in the token, token column, column in the token: its length, and
// what a step along it adds to each offset and to the pixel's place.
struct Axis {
    int64_t size, pred, grad, target;
    int32_t y, x, channel;
};

struct Place {
    int64_t pred, grad, target;
    int32_t y, x, channel;
};

struct Problem {
    Axis axis[kLossAxes];  // by falling stride of the prediction
    int64_t numbers, pred_batch, grad_batch, target_batch, target_y, target_x;
    MaskGrid grid;
    LossList list;
    int64_t patch, units_in_row;
    LossScale scaling;
    Array mean, std;
    double unit;  // what numbers of the target are divided by first
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

    // The place of number i, from the place of number 0.
    __device__ __forceinline__ Place place(Place p, int64_t i) const {
#pragma unroll
        for (int a = kLossAxes - 1; a >= 0; --a) {
            const int64_t rest = a ? quotient(i, axis[a].size) : 0;
            move(p, a, i - rest * axis[a].size);
            i = rest;
        }
        return p;
    }

    // Where row `row` of the prediction begins, and its sample; -1 where it belongs to none.
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

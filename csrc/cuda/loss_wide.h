// The pass of the masked losses where prediction, gradient and target are rows of 16-byte words.
//
// A row of the prediction (a sample's tokens, a list of units, a channel of an image) is a sequence
// of cells: tokens, or lines of an image. The numbers of a cell are contiguous. Each thread keeps
// one position within a cell, whose channel and offset it computes once, and goes from cell to
// cell. The cells' offsets in the target and masks are looked up once for a block.
#pragma once

#include <type_traits>

#include "common/grid.h"
#include "common/loss_spec.h"
#include "cuda/loss_sums.h"
#include "cuda/rows.h"

SIMMIM_BEGIN

constexpr int64_t kVisible = -1, kOutside = -2;

// Strides in bytes: of prediction and gradient by (sample, plane, cell), of the target by (sample,
// channel, line).
struct WideLoss {
    int64_t pred_sample, pred_plane, grad_sample, grad_plane;
    int64_t target_sample, target_channel, target_y;
    int32_t pred_cell, grad_cell;
    int32_t planes;                // rows of a sample: 1, or the channels of an image
    int32_t cells;                 // in a row
    int32_t numbers;               // in a cell
    int32_t vector;                // numbers that a thread moves at a time
    int32_t cells_across, ph, pw;  // cells in a line; lines and columns of a cell
    int32_t unit_h, unit_w, units_across;
    RowCut cut;
    bool fine;  // units are smaller than cells
    // Mask of the lanes that take part in the exchange of lanes 0 and 1: all lanes where a warp is
    // in one cell and unit, else these two; 0 where lanes 2k and 2k + 1 may differ in line or unit.
    uint32_t paired;
    bool scaled;      // whether gradients are multiplied by the factor
    float parameter;  // of the loss
    double unit;      // divisor of the target's stored numbers: 255 for bytes
    Array mean, std;
    double* partial;
    LossScale scaling;
    LossList list;

    // The offset of cell `cell` in the target, or a code for why it is not read. `unit` is set to
    // the mask unit of its first pixel.
    __device__ __forceinline__ int64_t place(int32_t sample, int32_t plane, int32_t cell, int size,
                                             int32_t* unit) const {
        int64_t of = sample;
        if (list.given) {
            int64_t named;
            of = list.sample(int64_t(sample) * cells + cell, &named);
            if (of < 0) return kVisible;
            cell = int32_t(named);
        }
        const int32_t line = cell / cells_across;
        const int32_t y = line * ph, x = (cell - line * cells_across) * pw;
        *unit = y / unit_h * units_across + x / unit_w;
        if (!list.given && !fine && !scaling.mask[of * scaling.units + *unit]) return kVisible;
        return of * target_sample + plane * target_channel + y * target_y + int64_t(x) * size;
    }
};

// The slope of a loss times the factor; for L1 the factor with the sign of d, 0 where d is 0 or
// NaN.
template <class Loss>
__device__ __forceinline__ float scaled_slope(float d, float parameter, float factor) {
#ifdef __CUDA_ARCH__
    if constexpr (std::is_same<Loss, L1>::value) {
        float with_sign;
        asm("lop3.b32 %0, %1, 0x80000000, %2, 0x6A;" : "=f"(with_sign) : "f"(d), "f"(factor));
        return fabsf(d) > 0.0f ? with_sign : 0.0f;
    }
#endif
    return Loss::slope(d, parameter) * factor;
}

constexpr int kStagedNumbers = 4096, kStagedTokens = 4096, kStagedChannels = 128;

// How a cell's pixels are reordered: the target has `lines` lines of `line` contiguous numbers,
// line l being number l % inner_lines of group l / inner_lines. Number b of a line goes to place b
// / run * run_place + b % run * number_place, counted from the line's first place.
struct StagedCell {
    int32_t lines, inner_lines, line;
    int32_t size, column;  // bytes of a number of the target, and of a pixel
    int64_t outer_bytes, inner_bytes;
    int32_t outer_place, inner_place, run, run_place, number_place;
    int32_t channels;
    int32_t tokens, tokens_across, p;  // for a map, else 0
    bool late;   // a line mixes channels: statistics are applied after the reordering
    bool pairs;  // lines are multiples of two numbers, but not of four

    bool few() const { return !tokens && lines * line <= kStagedNumbers / 4; }
};

// Plans the kernel's loops over prediction, gradient (where present) and target; false where the
// kernel does not support these layouts.
bool plan_wide(const Tensor& pred, const Tensor& grad, const Tensor& target, const Tensor& mask,
               const Tensor& index, const Tensor& std, const LossSpec& spec, WideLoss* wide);
bool plan_staged(const Tensor& pred, const Tensor& grad, const Tensor& target, const Tensor& mask,
                 const Tensor& index, const LossSpec& spec, WideLoss* wide, StagedCell* cell);
int start_wide(const WideLoss& wide, int64_t blocks, const Tensor& pred, const Tensor& grad,
               const Tensor& target, LossKind kind, Stream stream);
int start_staged(const WideLoss& wide, const StagedCell& cell, int64_t blocks, const Tensor& pred,
                 const Tensor& grad, const Tensor& target, LossKind kind, Stream stream);

SIMMIM_END

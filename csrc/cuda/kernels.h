// The CUDA entry points. Addresses, sizes and a stream; strides and offsets count elements.
#pragma once

#include <cuda_runtime.h>

#include "common/types.h"
#include "cpu/address.h"

#define SIMMIM_CUDA_KERNELS(X) \
    X(random_mask)             \
    X(mask_tokens_forward)     \
    X(mask_tokens_backward)    \
    X(masked_loss)             \
    X(mark_listed)             \
    X(scale_gradient)          \
    X(normalize_patches)       \
    X(normalize_targets)

SIMMIM_BEGIN

// cudaSuccess where the current device can run this build's machine code.
int probe();

int random_mask(Address ids, int64_t batch, int64_t units, int64_t count, uint64_t seed,
                uint32_t epoch, Address mask, Address masked, Address visible, Address stream);

int mask_tokens_forward(Address x, int x_element, int64_t x_sb, int64_t x_sy, int64_t x_sx,
                        int64_t x_sd, Address mask, int64_t grid_h, int64_t grid_w, Address token,
                        int token_element, Address pos, int pos_element, int64_t pos_skip,
                        Address out, int out_element, int64_t batch, int64_t prefix, int64_t h,
                        int64_t w, int64_t width, Address stream);

// `token_sums` and `pos_sums` are scratch for sums over `run` samples each: a row of `width` for
// each run and each 32 tokens, and a row for each run and position, all doubles.
int mask_tokens_backward(Address grad, int grad_element, int64_t g_sb, int64_t g_sy, int64_t g_sx,
                         int64_t g_sd, Address mask, int64_t grid_h, int64_t grid_w, Address x,
                         int x_element, Address token, int token_element, Address token_sums,
                         Address pos, int pos_element, Address pos_sums, int64_t pos_rows,
                         int64_t run, int64_t batch, int64_t prefix, int64_t h, int64_t w,
                         int64_t width, Address stream);

// Strides of prediction and gradient: sample, channel, token row, row in the token, token column,
// column in the token. With `index`, `per_sample` rows a sample or, where that is 0, flat
// positions. Scratch: `scale` a double for each result, `affine` two for each channel (bytes, or
// with `std`), `counts` an int64 for each 2^15 units, `partial` a double for each of `tiles` pieces
// of a row, which `threads` threads handle, 32 numbers each.
int masked_loss(Address pred, int pred_element, int64_t p_b, int64_t p_c, int64_t p_ty, int64_t p_y,
                int64_t p_tx, int64_t p_x, Address grad, int64_t g_b, int64_t g_c, int64_t g_ty,
                int64_t g_y, int64_t g_tx, int64_t g_x, Address target, int target_element,
                int64_t t_b, int64_t t_c, int64_t t_y, int64_t t_x, Address mean, int mean_element,
                Address std, int std_element, Address mask, int64_t grid_h, int64_t grid_w,
                Address index, int64_t rows, int64_t per_sample, int kind, double beta, double eps,
                int reduction, Address loss, int loss_element, Address scale_out, Address scale,
                Address affine, Address counts, Address partial, int64_t batch, int64_t channels,
                int64_t height, int64_t width, int64_t patch, int64_t threads, int64_t tiles,
                Address stream);

// Sets the marks, bytes of `batch` samples of `units`, of what the rows of masked_loss's list name.
int mark_listed(Address index, int64_t rows, int64_t per_sample, int64_t batch, int64_t units,
                Address marks, Address stream);

// In place, row by row; `step` from a row's factor to the next one's. Rows follow each other.
int scale_gradient(Address grad, int grad_element, Address factor, int factor_element, int64_t step,
                   int64_t rows, int64_t numbers, Address stream);

// With `mask`, only masked pixels are written. Fewer than 2^32 numbers in a patch.
int normalize_patches(Address image, int image_element, int64_t i_b, int64_t i_c, int64_t i_y,
                      int64_t i_x, Address out, int out_element, int64_t o_b, int64_t o_c,
                      int64_t o_y, int64_t o_x, int64_t batch, int64_t channels, int64_t height,
                      int64_t width, int64_t side, double eps, Address mean, int mean_element,
                      Address std, int std_element, Address mask, int64_t grid_h, int64_t grid_w,
                      Address stream);

// A block takes `band` rows by `strip` columns. Without `scratch` at most 292 columns may lie in
// the windows of a strip; with it, all columns are one strip, and it holds 6 * (width + 1) doubles
// for each block. Numbers beyond `limit` are added to windows one by one.
int normalize_targets(Address image, int image_element, int64_t i_b, int64_t i_c, int64_t i_y,
                      int64_t i_x, Address out, int out_element, int64_t o_b, int64_t o_c,
                      int64_t o_y, int64_t o_x, int64_t batch, int64_t channels, int64_t height,
                      int64_t width, int64_t radius_y, int64_t radius_x, double eps, double limit,
                      Address std, int std_element, Address mask, int64_t grid_h, int64_t grid_w,
                      int64_t band, int64_t strip, Address scratch, Address stream);

SIMMIM_END

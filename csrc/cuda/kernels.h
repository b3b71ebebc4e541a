// The CUDA entry points. Addresses, sizes and a stream; strides and offsets count elements.
#pragma once

#include <cuda_runtime.h>

#include "common/loss_spec.h"
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

// Bytes or numbers of scratch that a launcher needs, which PyTorch's allocator gives.
#define SIMMIM_CUDA_SIZES(X) \
    X(mask_tokens_scratch)   \
    X(masked_loss_scratch)

SIMMIM_BEGIN

// cudaSuccess where the current device can run this build's machine code.
int probe();

int random_mask(const Tensor& ids, uint64_t seed, uint32_t epoch, const Tensor& mask,
                const Tensor& masked, const Tensor& visible, Address stream);

int mask_tokens_forward(const Tensor& x, const Tensor& mask, const Tensor& token,
                        const Tensor& pos_embed, const Tensor& out, int64_t prefix_tokens,
                        Address stream);

// `x`, `token` and `pos_embed` are the gradients that are wanted; doubles of scratch.
int64_t mask_tokens_scratch(const Tensor& grad, const Tensor& mask, const Tensor& token,
                            const Tensor& pos_embed, int64_t prefix_tokens);
int mask_tokens_backward(const Tensor& grad, const Tensor& mask, const Tensor& x,
                         const Tensor& token, const Tensor& pos_embed, int64_t prefix_tokens,
                         const Tensor& scratch, Address stream);

// `grad` and `scale` are written where they are present; doubles of scratch.
int64_t masked_loss_scratch(const Tensor& pred, const Tensor& target, const Tensor& mask,
                            const Tensor& index, const LossSpec& spec);
int masked_loss(const Tensor& pred, const Tensor& target, const Tensor& mask, const Tensor& index,
                const Tensor& mean, const Tensor& std, const LossSpec& spec, const Tensor& loss,
                const Tensor& grad, const Tensor& scale, const Tensor& scratch, Address stream);

// Sets the marks (B, h, w) of what the rows of masked_loss's list name.
int mark_listed(const Tensor& index, const Tensor& marks, Address stream);

// In place, row by row: a factor for each. Rows follow each other.
int scale_gradient(const Tensor& grad, const Tensor& factor, Address stream);

// With `mask`, only masked pixels are written. Fewer than 2^32 numbers in a patch.
int normalize_patches(const Tensor& image, const Tensor& mean, const Tensor& std,
                      const Tensor& mask, const Tensor& out, int64_t patch, double eps,
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

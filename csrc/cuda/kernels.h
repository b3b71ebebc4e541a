// Entry points of the CUDA kernels. The caller allocates results and scratch; masks, tokens,
// statistics and index lists are contiguous.
#pragma once

#include "common/loss_spec.h"
#include "common/types.h"
#include "cuda/launch.h"

#define SIMMIM_CUDA_KERNELS(X) \
    X(random_mask)             \
    X(mask_tokens_forward)     \
    X(mask_tokens_backward)    \
    X(masked_loss)             \
    X(mark_listed)             \
    X(scale_gradient)          \
    X(normalize_patches)       \
    X(normalize_targets)

// Bytes or numbers of scratch that a launcher needs; the caller takes it from PyTorch's allocator.
#define SIMMIM_CUDA_SIZES(X) \
    X(mask_tokens_scratch)   \
    X(masked_loss_scratch)   \
    X(normalize_targets_scratch)

SIMMIM_BEGIN

// cudaSuccess where the current device can run this build's machine code.
int probe();

int random_mask(const Tensor& ids, uint64_t seed, uint32_t epoch, const Tensor& mask,
                const Tensor& masked, const Tensor& visible, Stream stream);

int mask_tokens_forward(const Tensor& x, const Tensor& mask, const Tensor& token,
                        const Tensor& pos_embed, const Tensor& out, int64_t prefix_tokens,
                        Stream stream);

// `x`, `token` and `pos_embed` are gradients to be written, where present. Scratch is doubles.
int64_t mask_tokens_scratch(const Tensor& grad, const Tensor& mask, const Tensor& token,
                            const Tensor& pos_embed, int64_t prefix_tokens);
int mask_tokens_backward(const Tensor& grad, const Tensor& mask, const Tensor& x,
                         const Tensor& token, const Tensor& pos_embed, int64_t prefix_tokens,
                         const Tensor& scratch, Stream stream);

// `grad` and `scale` are optional outputs. Scratch is doubles.
int64_t masked_loss_scratch(const Tensor& pred, const Tensor& grad, const Tensor& target,
                            const Tensor& mask, const Tensor& index, const Tensor& std,
                            const LossSpec& spec);
int masked_loss(const Tensor& pred, const Tensor& target, const Tensor& mask, const Tensor& index,
                const Tensor& mean, const Tensor& std, const LossSpec& spec, const Tensor& loss,
                const Tensor& grad, const Tensor& scale, const Tensor& scratch, Stream stream);

// Sets the marks (B, h, w) of all units that masked_loss's index list names.
int mark_listed(const Tensor& index, const Tensor& marks, Stream stream);

// Multiplies each row by its factor, in place. Rows are contiguous.
int scale_gradient(const Tensor& grad, const Tensor& factor, Stream stream);

// With `mask`, only masked pixels are written. Fewer than 2^32 numbers in a patch.
int normalize_patches(const Tensor& image, const Tensor& mean, const Tensor& std,
                      const Tensor& mask, const Tensor& out, int64_t patch, double eps,
                      Stream stream);

// Numbers beyond `limit` are added to each window that holds them one by one. Scratch is doubles.
int64_t normalize_targets_scratch(const Tensor& image, int64_t window);
int normalize_targets(const Tensor& image, const Tensor& std, const Tensor& mask, const Tensor& out,
                      int64_t window, double eps, double limit, const Tensor& scratch,
                      Stream stream);

SIMMIM_END

// Entry points of the CPU kernels, declared once for each instruction set (so without an include
// guard). The caller allocates results; masks, tokens, statistics and index lists are contiguous.
#include "common/loss_spec.h"
#include "tensor.h"

#undef SIMMIM_CPU_KERNELS
#define SIMMIM_CPU_KERNELS(X)   \
    X(random_mask)              \
    X(block_mask)               \
    X(box_mask)                 \
    X(uniform_mask)             \
    X(avg_dist)                 \
    X(random_crops)             \
    X(crop_resize)              \
    X(mask_tokens_forward)      \
    X(mask_tokens_backward)     \
    X(normalize_targets)        \
    X(normalize_patches)        \
    X(mask_image)               \
    X(mask_image_fill_gradient) \
    X(gather_patches)           \
    X(gather_patches_backward)  \
    X(place_tokens)             \
    X(take_tokens)              \
    X(masked_loss)              \
    X(masked_tokens)

namespace simmim {
namespace SIMMIM_ISA {

void random_mask(const Tensor& ids, uint64_t seed, uint32_t epoch, const Tensor& mask,
                 const Tensor& masked, const Tensor& visible, int threads);

void block_mask(const Tensor& ids, const Tensor& root_aspect, int64_t least, int64_t widest,
                uint64_t seed, uint32_t epoch, const Tensor& mask, const Tensor& masked,
                const Tensor& visible, int threads);

void box_mask(const Tensor& ids, int64_t box_h, int64_t box_w, bool center, uint64_t seed,
              uint32_t epoch, const Tensor& mask, const Tensor& masked, const Tensor& visible,
              int threads);

// Masks `hidden` units of every block of 2 x 2.
void uniform_mask(const Tensor& ids, int64_t hidden, uint64_t seed, uint32_t epoch,
                  const Tensor& mask, const Tensor& masked, const Tensor& visible, int threads);

double avg_dist(const Tensor& mask, int64_t unit, int threads);

// Draws boxes (top, left, height, width) and flips for samples whose images have `sizes`.
void random_crops(const Tensor& ids, const Tensor& sizes, double least_scale, double most_scale,
                  double least_ratio, double most_ratio, double log_span, double flip,
                  uint64_t seed, uint32_t epoch, const Tensor& boxes, const Tensor& flips);

// `images`: one batch, or one image for each sample. Every box must lie within its image.
void crop_resize(const TensorList& images, const Tensor& boxes, const Tensor& flip, bool cubic,
                 bool antialias, const Tensor& out, int threads);

void mask_image(const Tensor& image, const Tensor& mask, const Tensor& fill, double value,
                const Tensor& mean, const Tensor& std, const Tensor& out, int threads);

void mask_image_fill_gradient(const Tensor& grad, const Tensor& mask, const Tensor& fill,
                              int threads);

void mask_tokens_forward(const Tensor& x, const Tensor& mask, const Tensor& token,
                         const Tensor& pos_embed, const Tensor& out, int64_t prefix_tokens,
                         int threads);

void mask_tokens_backward(const Tensor& grad, const Tensor& mask, const Tensor& x,
                          const Tensor& token, const Tensor& pos_embed, int64_t prefix_tokens,
                          int threads);

void normalize_targets(const Tensor& image, const Tensor& std, const Tensor& out, int64_t window,
                       double eps, int threads);

// The next four return the number of visible tokens of the mask, and do nothing else where it
// exceeds the rows that the caller has room for.
int64_t gather_patches(const Tensor& image, const Tensor& mask, const Tensor& mean,
                       const Tensor& std, const Tensor& out, int64_t patch_h, int64_t patch_w,
                       int threads);

int64_t gather_patches_backward(const Tensor& grad, const Tensor& mask, const Tensor& std,
                                const Tensor& image, int64_t patch_h, int64_t patch_w, int threads);

int64_t place_tokens(const Tensor& rows, const Tensor& mask, const Tensor& token,
                     const Tensor& pos_embed, const Tensor& out, int64_t prefix_tokens,
                     bool prefixed, int64_t h, int64_t w, int threads);

int64_t take_tokens(const Tensor& x, const Tensor& mask, const Tensor& rows, const Tensor& token,
                    const Tensor& pos_embed, int64_t prefix_tokens, bool prefixed, int64_t h,
                    int64_t w, int64_t count, int threads);

void normalize_patches(const Tensor& image, const Tensor& mean, const Tensor& std,
                       const Tensor& out, int64_t patch, double eps, int threads);
// `grad` and `scale` are optional outputs. Returns the first row of `index` with an invalid or
// repeated token, or -1.
int64_t masked_loss(const Tensor& pred, const Tensor& target, const Tensor& mask,
                    const Tensor& index, const Tensor& mean, const Tensor& std,
                    const LossSpec& spec, const Tensor& loss, const Tensor& grad,
                    const Tensor& scale, int threads);

// Returns the number of masked tokens, and does nothing else where it exceeds `count`.
int64_t masked_tokens(const Tensor& mask, int64_t h, int64_t w, const Tensor& positions);

}  // namespace SIMMIM_ISA
}  // namespace simmim

// The CUDA entry points. Addresses, sizes and a stream; strides and offsets count elements.
#pragma once

#include <cuda_runtime.h>

#include "common/types.h"
#include "cpu/address.h"

#define SIMMIM_CUDA_KERNELS(X) \
    X(random_mask)             \
    X(mask_tokens_forward)     \
    X(mask_tokens_backward)

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

SIMMIM_END

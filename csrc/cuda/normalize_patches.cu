// Per-patch normalisation: one block a patch, which it reads three times, from memory once.
#include <cmath>

#include "cuda/kernels.h"
#include "cuda/loss_sums.h"

SIMMIM_BEGIN

namespace {

constexpr int kMostThreads = 256;

struct Patches {
    Array image, out, mean, std;
    int64_t i_b, i_c, i_y, i_x, o_b, o_c, o_y, o_x;
    const uint8_t* mask;  // of units, where only masked pixels are wanted
    int64_t units;
    uint32_t grid_w, unit_h, unit_w;
    uint32_t h, w, channels, side;
    double eps;
};

// Six blocks of a multiprocessor have 40 registers a thread; with the 32 of eight it would spill.
__global__ void __launch_bounds__(kMostThreads, 6) normalize_patch(Patches p) {
    const uint32_t image = blockIdx.x / (p.h * p.w), cell = blockIdx.x - image * (p.h * p.w);
    const uint32_t top = cell / p.w * p.side, left = cell % p.w * p.side;
    const int64_t sample = image;
    const uint8_t* units = p.mask ? p.mask + sample * p.units : nullptr;
    const auto masked = [&](uint32_t y, uint32_t x) {
        return units[int64_t(y / p.unit_h) * p.grid_w + x / p.unit_w] != 0;
    };
    const bool whole = p.unit_h % p.side == 0 && p.unit_w % p.side == 0;
    if (units && whole && !masked(top, left)) return;
    const uint32_t area = p.side * p.side, n = p.channels * area;
    const auto pixel = [&](uint32_t k, uint32_t* c, uint32_t* y, uint32_t* x) {
        *c = k / area;
        *y = top + k % area / p.side;
        *x = left + k % p.side;
        double value = p.image.load(sample * p.i_b + *c * p.i_c + *y * p.i_y + *x * p.i_x);
        if (p.image.element == kUInt8) value /= 255.0;
        if (p.std.base) value = (value - p.mean.load(*c)) / p.std.load(*c);
        return value;
    };
    uint32_t c, y, x;
    double sum = 0, squares = 0;
    for (uint32_t k = threadIdx.x; k < n; k += blockDim.x) sum += pixel(k, &c, &y, &x);
    const double mean = block_sum(sum) / n;
    for (uint32_t k = threadIdx.x; k < n; k += blockDim.x) {
        const double d = pixel(k, &c, &y, &x) - mean;
        squares += d * d;
    }
    __syncthreads();  // the first sum has been read by all
    const double spread = sqrt(block_sum(squares) / (n > 1 ? n - 1 : 1) + p.eps);
    for (uint32_t k = threadIdx.x; k < n; k += blockDim.x) {
        const double value = pixel(k, &c, &y, &x);
        if (units && !whole && !masked(y, x)) continue;
        p.out.store(sample * p.o_b + c * p.o_c + y * p.o_y + x * p.o_x, (value - mean) / spread);
    }
}

}  // namespace

int normalize_patches(Address image, int image_element, int64_t i_b, int64_t i_c, int64_t i_y,
                      int64_t i_x, Address out, int out_element, int64_t o_b, int64_t o_c,
                      int64_t o_y, int64_t o_x, int64_t batch, int64_t channels, int64_t height,
                      int64_t width, int64_t side, double eps, Address mean, int mean_element,
                      Address std, int std_element, Address mask, int64_t grid_h, int64_t grid_w,
                      Address stream) {
    const Patches patches{{image.as<void>(), image_element},
                          {out.as<void>(), out_element},
                          {mean.as<void>(), mean_element},
                          {std.as<void>(), std_element},
                          i_b,
                          i_c,
                          i_y,
                          i_x,
                          o_b,
                          o_c,
                          o_y,
                          o_x,
                          mask.as<uint8_t>(),
                          grid_h * grid_w,
                          uint32_t(grid_w),
                          uint32_t(height / grid_h),
                          uint32_t(width / grid_w),
                          uint32_t(height / side),
                          uint32_t(width / side),
                          uint32_t(channels),
                          uint32_t(side),
                          eps};
    const int threads = max_of(kWarp, power_of_two(channels * side * side, kMostThreads));
    return launch(normalize_patch, batch * patches.h * patches.w, dim3(unsigned(threads)), stream,
                  patches);
}

SIMMIM_END

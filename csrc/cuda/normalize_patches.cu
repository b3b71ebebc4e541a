// Per-patch normalisation for any type and stride, in double. One block handles a patch and reads
// it three times, twice of these from the caches. Patches of whole words take patches_wide.cu
// instead.
#include <cmath>

#include "common/grid.h"
#include "cuda/kernels.h"
#include "cuda/loss_sums.h"
#include "cuda/patches.h"

SIMMIM_BEGIN

inline namespace normalize_patches_file {

constexpr int kMostThreads = 256;

// Six blocks of a multiprocessor have 40 registers a thread; with the 32 of eight it would spill.
__global__ void __launch_bounds__(kMostThreads, 4) normalize_patch(Patches p) {
    const uint32_t image = blockIdx.x / (p.h * p.w), cell = blockIdx.x - image * (p.h * p.w);
    const uint32_t top = cell / p.w * p.side, left = cell % p.w * p.side;
    const int64_t sample = image;
    const uint8_t* units = p.grid.mask ? p.grid.sample(sample) : nullptr;
    const auto masked = [&](uint32_t y, uint32_t x) {
        return units[p.grid.unit32(0, int32_t(y), int32_t(x))] != 0;
    };
    const Extent& unit = p.grid.scale;
    const bool whole = unit.height % p.side == 0 && unit.width % p.side == 0;
    if (units && whole && !masked(top, left)) return;
    const uint32_t area = p.side * p.side, n = p.channels * area;
    const auto pixel = [&](uint32_t k, uint32_t* c, uint32_t* y, uint32_t* x) {
        *c = k / area;
        *y = top + k % area / p.side;
        *x = left + k % p.side;
        double value = p.image.load(p.from.at(sample, *c, *y, *x));
        if (p.unit != 1.0) value /= p.unit;
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
    __syncthreads();  // all threads have read the first sum
    const double spread = sqrt(block_sum(squares) / (n > 1 ? n - 1 : 1) + p.eps);
    for (uint32_t k = threadIdx.x; k < n; k += blockDim.x) {
        const double value = pixel(k, &c, &y, &x);
        if (units && !whole && !masked(y, x)) continue;
        p.out.store(p.to.at(sample, c, y, x), (value - mean) / spread);
    }
}

}  // namespace normalize_patches_file

int normalize_patches(const Tensor& image, const Tensor& mean, const Tensor& std,
                      const Tensor& mask, const Tensor& out, int64_t patch, double eps,
                      Stream stream) {
    const ImageLayout from = image_layout(image);
    const Extent cells = scale_of(from.size, {1, patch, patch});
    const MaskGrid grid = mask ? mask_over(mask, from.size) : MaskGrid{nullptr, {}, {1, 1, 1}};
    const Patches patches{array_of(image),
                          array_of(out),
                          array_of(mean),
                          array_of(std),
                          from,
                          image_layout(out),
                          grid,
                          uint32_t(cells.height),
                          uint32_t(cells.width),
                          uint32_t(from.channels),
                          uint32_t(patch),
                          eps,
                          image.element == kUInt8 ? 255.0 : 1.0,
                          uint32_t(from.channels)};
    const bool nested = grid.scale.height % patch == 0 && grid.scale.width % patch == 0;
    int code = cudaSuccess;
    if (from.elements() && (!mask || nested) && hold_patches(patches, stream, &code)) return code;
    const int threads = max_of(kWarp, power_of_two(from.channels * patch * patch, kMostThreads));
    return launch(normalize_patch, from.batch * cells.cells(), dim3(unsigned(threads)), stream,
                  patches);
}

SIMMIM_END

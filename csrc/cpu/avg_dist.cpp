// The mean distance from a masked pixel to the nearest visible one, by an exact distance transform
// in two passes: the vertical distance to the nearest visible pixel in each column, then the
// minimum over columns. All columns of a unit have the same vertical distance, so the second pass
// runs over units.
#include "common/grid.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

SIMMIM_BEGIN

namespace {

constexpr int64_t kFar = int64_t(1) << 30;  // beyond any image side

struct Grid {
    const uint8_t* mask;
    int64_t h, w, unit;
};

// Finds the nearest visible units above and below each unit of row `row`.
void nearest_rows(const Grid& grid, const uint8_t* sample, int64_t row, int64_t* above,
                  int64_t* below) {
    for (int64_t column = 0; column < grid.w; ++column) {
        int64_t up = row, down = row;
        while (up >= 0 && sample[up * grid.w + column]) --up;
        while (down < grid.h && sample[down * grid.w + column]) ++down;
        above[column] = up;
        below[column] = down < grid.h ? down : -1;
    }
}

// Vertical distance of pixel row y to the nearest visible pixel of a unit column.
int64_t vertical(const Grid& grid, int64_t y, int64_t above, int64_t below) {
    if (above >= 0 && above == below) return 0;
    const int64_t up = above < 0 ? kFar : y - (above * grid.unit + grid.unit - 1);
    const int64_t down = below < 0 ? kFar : below * grid.unit - y;
    return min_of(up, down);
}

// The sum of the distances of the masked pixels in one row of units.
double band_sum(const Grid& grid, const uint8_t* sample, int64_t row, int64_t* scratch) {
    const int64_t width = grid.w * grid.unit;
    int64_t *nearest = scratch, *above = scratch + width, *below = above + grid.w;
    nearest_rows(grid, sample, row, above, below);
    double sum = 0;
    for (int64_t y = row * grid.unit; y < (row + 1) * grid.unit; ++y) {
        for (int64_t x = 0; x < width; ++x) nearest[x] = kFar * kFar;
        for (int64_t column = 0; column < grid.w; ++column) {
            const int64_t down = vertical(grid, y, above[column], below[column]);
            const int64_t first = column * grid.unit, last = first + grid.unit - 1;
            for (int64_t x = 0; x < width; ++x) {
                const int64_t left = first - x, right = x - last;
                int64_t across = left > right ? left : right;
                across = across > 0 ? across : 0;
                nearest[x] = min_of(nearest[x], across * across + down * down);
            }
        }
        for (int64_t column = 0; column < grid.w; ++column) {
            if (!sample[row * grid.w + column]) continue;
            for (int64_t x = column * grid.unit; x < (column + 1) * grid.unit; ++x) {
                sum +=
                    nearest[x] < kFar * kFar ? __builtin_sqrt(double(nearest[x])) : __builtin_inf();
            }
        }
    }
    return sum;
}

}  // namespace

double avg_dist(const Tensor& mask, int64_t unit, int threads) {
    const Extent units = extent_from(mask, 1);
    const Grid grid{mask.as<uint8_t>(), units.height, units.width, unit};
    const int64_t batch = mask.size(0), bands = batch * units.height, cells = units.cells();
    const int64_t own_numbers = (unit + 2) * units.width;
    const Scratch sums(bands * int64_t(sizeof(double)));
    const Scratch scratch(threads * own_numbers * int64_t(sizeof(int64_t)));
    double* sum = sums.as<double>();
    // One slice of scratch for each of `threads` contiguous ranges of bands.
    parallel_for(threads, batch * cells * unit * unit * units.width, threads, [&](int64_t part) {
        int64_t* own = scratch.as<int64_t>() + part * own_numbers;
        for (int64_t band = bands * part / threads; band < bands * (part + 1) / threads; ++band) {
            const uint8_t* sample = grid.mask + band / units.height * cells;
            sum[band] = band_sum(grid, sample, band % units.height, own);
        }
    });
    int64_t masked = 0;
    for (int64_t i = 0; i < batch * cells; ++i) masked += grid.mask[i] != 0;
    double total = 0;
    for (int64_t band = 0; band < bands; ++band) total += sum[band];  // always in this order
    return masked ? total / double(masked * unit * unit) : 0.0;
}

SIMMIM_END

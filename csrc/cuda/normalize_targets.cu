// Sliding-window normalisation. A block goes down a band of rows of one channel, eight at a time:
// every thread keeps, for its columns, the sums of x and x^2 over the window's rows, and leaves
// them for each of the eight rows; then a warp takes a row, makes prefix sums along it, and from
// their differences the sums over the windows. A pixel is read from memory once and again from the
// caches, when it leaves the window and when it is normalised.
//
// Numbers stay as they are stored: (x / 255 - mean) / std cancels but for its effect on eps.
// Running sums never lose a NaN or Inf, and keep the rounding of large numbers after they have
// left: such numbers are left out of them, and added one by one to the windows that hold them, at a
// cost that grows with the window. Of a float64 image no type of a GPU is wide enough for running
// sums: its sums are made anew for every row and every window.
#include <cmath>
#include <type_traits>

#include "common/grid.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/vector.h"

SIMMIM_BEGIN

namespace {

constexpr int kThreads = 256;
template <class T>
constexpr bool kAnew = std::is_same<T, double>::value;

constexpr int kMostColumns = 292;  // of the fast kernel, whose rows of sums fit into shared memory

struct Window {
    Array out, std;
    int64_t i_b, i_c, i_y, i_x, o_b, o_c, o_y, o_x;  // strides of image and result
    const uint8_t* mask;  // of units, where only masked pixels are wanted
    int64_t units;
    int32_t unit_h, unit_w, grid_w;
    int32_t channels, height, width, band, strip, radius_y, radius_x;
    double eps, limit;
    double* scratch;
};

__device__ __forceinline__ bool fits(double limit, double x) { return x <= limit && x >= -limit; }

// A row of column sums: of x and x^2 of the numbers that running sums can take; of `bad` ones, how
// many the windows' rows hold.
struct Row {
    double *sums, *squares;
    int32_t* bad;
};

// The sum of all lanes before this one; adds the sum of all to `total`.
template <class T>
__device__ __forceinline__ T before(T value, uint32_t lane, T* total) {
    T running = value;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
        const T other = __shfl_up_sync(kAllLanes, running, step);
        if (lane >= uint32_t(step)) running += other;
    }
    const T base = *total;
    *total += __shfl_sync(kAllLanes, running, kWarp - 1);
    return base + running - value;
}

// The row's sums become sums of everything before each column, and the whole sum behind the last.
__device__ __forceinline__ void prefix(const Row& row, int32_t width, uint32_t lane) {
    const int32_t each = (width + kWarp - 1) / kWarp;
    const int32_t first = min_of<int32_t>(width, int32_t(lane) * each);
    const int32_t last = min_of<int32_t>(width, first + each);
    double s = 0, q = 0, all_s = 0, all_q = 0;
    int32_t n = 0, all_n = 0;
    for (int32_t x = first; x < last; ++x) {
        s += row.sums[x];
        q += row.squares[x];
        n += row.bad[x];
    }
    s = before(s, lane, &all_s);
    q = before(q, lane, &all_q);
    n = before(n, lane, &all_n);
    for (int32_t x = first; x < last; ++x) {
        const double ds = row.sums[x], dq = row.squares[x];
        const int32_t dn = row.bad[x];
        row.sums[x] = s;
        row.squares[x] = q;
        row.bad[x] = n;
        s += ds;
        q += dq;
        n += dn;
    }
    if (lane == 0) {
        row.sums[width] = all_s;
        row.squares[width] = all_q;
        row.bad[width] = all_n;
    }
    __syncwarp();
}

// The sums of a column over the rows of the window that now lies on it.
struct Column {
    double sum, square;
    int32_t bad;

    __device__ __forceinline__ void add(double limit, double value, int sign) {
        const bool taken = fits(limit, value);
        const double kept = taken ? value : 0.0;
        sum += sign * kept;
        square += sign * (kept * kept);
        bad += taken ? 0 : sign;
    }
    __device__ __forceinline__ void take(double value) {
        sum += value;
        square += value * value;
    }
};

// ROWS rows of sums at a time. One: everything lies in scratch memory, for any width and window.
template <class T, int ROWS>
struct Sums {
    static constexpr int kColumns = (kMostColumns + kThreads - 1) / kThreads;
    Column own[kColumns];

    __device__ __forceinline__ Sums(double*, int32_t) : own{} {}
    __device__ __forceinline__ Row row(int32_t r, int32_t) {
        __shared__ double sums[ROWS][2][kMostColumns + 1];
        __shared__ int32_t bad[ROWS][kMostColumns + 1];
        return {sums[r][0], sums[r][1], bad[r]};
    }
    template <class Body>
    __device__ __forceinline__ void each(int32_t columns, const Body& body) {
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
            const int32_t x = int32_t(threadIdx.x) + k * kThreads;
            if (x < columns) body(x, own[k]);
        }
    }
};

template <class T>
struct Sums<T, 1> {
    double* base;
    Column* own;

    __device__ __forceinline__ Sums(double* scratch, int32_t columns) {
        base = scratch + int64_t(blockIdx.x) * 6 * (columns + 1);
        own = reinterpret_cast<Column*>(base + 3 * (columns + 1));
        each(columns, [](int32_t, Column& column) { column = {}; });
    }
    __device__ __forceinline__ Row row(int32_t, int32_t columns) {
        double* squares = base + columns + 1;
        return {base, squares, reinterpret_cast<int32_t*>(squares + columns + 1)};
    }
    template <class Body>
    __device__ __forceinline__ void each(int32_t columns, const Body& body) {
        for (int32_t x = int32_t(threadIdx.x); x < columns; x += kThreads) body(x, own[x]);
    }
};

// One row of a band, its sums made, normalised by the lanes of a warp.
template <class T>
__device__ __forceinline__ void write_row(const Window& w, const T* image, int64_t b, int64_t to,
                                          int32_t y, int32_t left_column, int32_t x0, int32_t x1,
                                          const Row& row, double eps, double limit, uint32_t lane) {
    const int32_t begin = max_of(0, y - w.radius_y), end = min_of(w.height, y + w.radius_y + 1);
    const uint8_t* units =
        w.mask ? w.mask + b * w.units + int64_t(y / w.unit_h) * w.grid_w : nullptr;
    for (int32_t x = x0 + int32_t(lane); x < x1; x += kWarp) {
        if (units && !units[x / w.unit_w]) continue;
        const int32_t left = max_of(0, x - w.radius_x) - left_column;
        const int32_t right = min_of(w.width, x + w.radius_x + 1) - left_column;
        double s = 0, q = 0;
        if (kAnew<T>) {
            for (int32_t u = left; u < right; ++u) {
                s += row.sums[u];
                q += row.squares[u];
            }
        } else {
            s = row.sums[right] - row.sums[left];
            q = row.squares[right] - row.squares[left];
        }
        if (!kAnew<T> && row.bad[right] != row.bad[left]) {
#pragma unroll 1
            for (int32_t v = begin; v < end; ++v) {
#pragma unroll 1
                for (int32_t u = left_column + left; u < left_column + right; ++u) {
                    const double value = double(widen(image[v * w.i_y + u * w.i_x]));
                    if (fits(limit, value)) continue;
                    s += value;
                    q += value * value;
                }
            }
        }
        // Everything times n and m = n - 1: (n x - s) m / sqrt(m n (n q - s^2 + eps n m)). For one
        // pixel n q - s^2 is 0 (or NaN), whatever m is.
        const double n = double(end - begin) * double(right - left), m = max_of(n - 1, 1.0);
        double v = n * q - s * s;
        v = v < 0 ? 0.0 : v;  // a NaN stays
        const double centre = double(widen(image[y * w.i_y + x * w.i_x]));
        w.out.store(to + y * w.o_y + x * w.o_x,
                    (n * centre - s) * m * rsqrt(m * n * (v + eps * n * m)));
    }
}

// Three blocks of a multiprocessor have 80 registers a thread, which is what nothing spills with;
// two have enough for sums in memory.
template <class T, int ROWS>
__global__ void __launch_bounds__(kThreads, ROWS > 1 ? 3 : 2)
    normalize_window(Window w, const T* base) {
    const uint32_t bands = uint32_t((w.height + w.band - 1) / w.band);
    const uint32_t strips = uint32_t((w.width + w.strip - 1) / w.strip);
    const uint32_t strip = blockIdx.x % strips, band = blockIdx.x / strips % bands;
    const uint32_t plane = blockIdx.x / strips / bands, image_of = plane / uint32_t(w.channels);
    const int32_t top = int32_t(band) * w.band, bottom = min_of(w.height, top + w.band);
    const int32_t x0 = int32_t(strip) * w.strip, x1 = min_of(w.width, x0 + w.strip);
    const int32_t left = max_of(0, x0 - w.radius_x);
    const int32_t columns = min_of(w.width, x1 + w.radius_x) - left;
    const int64_t b = image_of, c = plane - image_of * uint32_t(w.channels);
    const int64_t to = b * w.o_b + c * w.o_c;
    const T* image = base + b * w.i_b + c * w.i_c;
    const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    double unit = std::is_same<T, uint8_t>::value ? 255.0 : 1.0;
    if (w.std.base) unit *= w.std.load(c);
    const double eps = w.eps * unit * unit;
    // `limit` of whole numbers is that of a stored one, that of others holds for a deviation of 1.
    const double limit = std::is_integral<T>::value ? w.limit : w.limit * unit;

    Sums<T, ROWS> sums(w.scratch, columns);
    const int32_t first = max_of(0, top - w.radius_y), last = min_of(w.height, top + w.radius_y);
    if constexpr (!kAnew<T>) {
        sums.each(columns, [&](int32_t x, Column& column) {
#pragma unroll 4
            for (int32_t y = first; y < last; ++y) {
                column.add(limit, double(widen(image[y * w.i_y + (left + x) * w.i_x])), 1);
            }
        });
    }
    for (int32_t start = top; start < bottom; start += ROWS) {
        const int32_t rows = min_of(ROWS, bottom - start);
        sums.each(columns, [&](int32_t x, Column& column) {
            const T* down = image + (left + x) * w.i_x;
            if constexpr (kAnew<T>) {
                for (int32_t r = 0; r < rows; ++r) {
                    const int32_t y = start + r, end = min_of(w.height, y + w.radius_y + 1);
                    column = {};
                    for (int32_t v = max_of(0, y - w.radius_y); v < end; ++v) {
                        column.take(double(widen(down[v * w.i_y])));
                    }
                    const Row row = sums.row(r, columns);
                    row.sums[x] = column.sum;
                    row.squares[x] = column.square;
                }
            } else {
                T enters[ROWS], leaves[ROWS];
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {  // all loads before the first use
                    const int32_t y = start + r;
                    enters[r] = leaves[r] = T{};
                    if (r < rows && y + w.radius_y < w.height) {
                        enters[r] = down[(y + w.radius_y) * w.i_y];
                    }
                    if (r < rows && y > top && y - 1 - w.radius_y >= 0) {
                        leaves[r] = down[(y - 1 - w.radius_y) * w.i_y];
                    }
                }
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    column.add(limit, double(widen(leaves[r])), -1);
                    column.add(limit, double(widen(enters[r])), 1);
                    const Row row = sums.row(r, columns);
                    row.sums[x] = column.sum;
                    row.squares[x] = column.square;
                    row.bad[x] = column.bad;
                }
            }
        });
        __syncthreads();
        if (int32_t(warp) < rows) {
            const Row row = sums.row(int32_t(warp), columns);
            if (!kAnew<T>) prefix(row, columns, lane);
            write_row(w, image, b, to, start + int32_t(warp), left, x0, x1, row, eps, limit, lane);
        }
        __syncthreads();
    }
}

template <class T>
int start(const Window& window, const void* image, int64_t planes, Stream stream) {
    const int64_t bands = ceil_div(window.height, window.band);
    const int64_t blocks = planes * bands * ceil_div(window.width, window.strip);
    const T* base = static_cast<const T*>(image);
    auto* kernel = window.scratch ? normalize_window<T, 1> : normalize_window<T, kThreads / kWarp>;
    return launch(kernel, blocks, dim3(kThreads), stream, window, base);
}

constexpr int64_t kStrip = 64;      // at least as many columns a block, else sums lie in memory
constexpr int64_t kBlocks = 528;    // four for each of 132 multiprocessors: how high a band is
constexpr int64_t kLeastRows = 32;  // of a band, which begins by adding up a window

// How an image is cut into bands and strips, and the doubles of scratch that takes.
struct Cut {
    int64_t radius_y, radius_x, band, strip, scratch;
};

Cut cut_of(const ImageLayout& image, int64_t window) {
    const int64_t height = image.size.height, width = image.size.width;
    Cut cut{min_of(window / 2, height - 1), min_of(window / 2, width - 1), 0, width, 0};
    if (width > kMostColumns) cut.strip = kMostColumns - 2 * cut.radius_x;
    const bool wide = cut.strip < min_of(width, kStrip);
    if (wide) cut.strip = width;
    const int64_t columns = image.batch * image.channels * ceil_div(width, cut.strip);
    cut.band =
        max_of(ceil_div(height, max_of<int64_t>(kBlocks / columns, 1)), min_of(height, kLeastRows));
    if (wide) cut.scratch = columns * ceil_div(height, cut.band) * 6 * (width + 1);
    return cut;
}

}  // namespace

int64_t normalize_targets_scratch(const Tensor& image, int64_t window) {
    return cut_of(image_layout(image), window).scratch;
}

int normalize_targets(const Tensor& image, const Tensor& std, const Tensor& mask, const Tensor& out,
                      int64_t window, double eps, double limit, const Tensor& scratch,
                      Stream stream) {
    const ImageLayout from = image_layout(image), to = image_layout(out);
    const Cut cut = cut_of(from, window);
    const Extent units = mask ? extent_from(mask, 1) : Extent{1, 1, 1};
    const Extent unit = scale_of(from.size, units);
    const Window problem{array_of(out),
                         array_of(std),
                         from.sb,
                         from.sc,
                         from.sy,
                         from.sx,
                         to.sb,
                         to.sc,
                         to.sy,
                         to.sx,
                         mask.as<uint8_t>(),
                         units.cells(),
                         int32_t(unit.height),
                         int32_t(unit.width),
                         int32_t(units.width),
                         int32_t(from.channels),
                         int32_t(from.size.height),
                         int32_t(from.size.width),
                         int32_t(cut.band),
                         int32_t(cut.strip),
                         int32_t(cut.radius_y),
                         int32_t(cut.radius_x),
                         eps,
                         limit,
                         cut.scratch ? scratch.as<double>() : nullptr};
    const int64_t planes = from.batch * from.channels;
    switch (image.element) {
        case kFloat32:
            return start<float>(problem, image.data, planes, stream);
        case kFloat64:
            return start<double>(problem, image.data, planes, stream);
        case kBFloat16:
            return start<BFloat16>(problem, image.data, planes, stream);
        case kFloat16:
            return start<Float16>(problem, image.data, planes, stream);
        case kUInt16:
            return start<uint16_t>(problem, image.data, planes, stream);
        case kInt16:
            return start<int16_t>(problem, image.data, planes, stream);
        default:
            return start<uint8_t>(problem, image.data, planes, stream);
    }
}

SIMMIM_END

// Sliding-window normalisation. A block goes down a band of rows of one channel, eight at a time:
// every thread keeps, for its columns, the sums of x and x^2 over the window's rows, and leaves
// them for each of the eight rows; then a warp takes a row, makes prefix sums along it, and from
// their differences the sums over the windows. A pixel is read from memory once and again from the
// caches, when it leaves the window and when it is normalised.
//
// Stored numbers are normalised directly: the affine map (x / 255 - mean) / std changes nothing but
// the units of eps. A running sum would never recover from a NaN or an infinity, and would keep the
// rounding of large numbers after they have left the window. Such numbers are therefore left out of
// running sums and added one by one to the windows that hold them, at a cost that grows with the
// window. Rows before the first of them, nearly always all rows, are handled by window_plain.h. For
// float64 images no type of a GPU is wide enough for running sums: their sums are computed from
// scratch for every window.
#include <type_traits>

#include "common/grid.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/window_plain.h"
#include "cuda/window_sums.h"

SIMMIM_BEGIN

using namespace window_sums;

inline namespace normalize_targets_file {

constexpr int kMostThreads = (kMostColumns + kWarp - 1) / kWarp * kWarp;

struct Window {
    Array out, std;
    int64_t i_b, i_c, i_y, i_x, o_b, o_c, o_y, o_x;  // strides of image and result
    MaskGrid grid;                                   // without a mask every pixel is written
    int32_t channels, height, width, band, strip, radius_y, radius_x;
    double eps, limit;
    double* scratch;
};

// Normalises one row of a band, whose sums are ready, by the lanes of a warp.
template <class T>
__device__ __forceinline__ void write_row(const Window& w, const T* image, int64_t b, int64_t to,
                                          int32_t y, int32_t left_column, int32_t x0, int32_t x1,
                                          const Row& row, double eps, double limit, uint32_t lane) {
    const int32_t begin = max_of(0, y - w.radius_y), end = min_of(w.height, y + w.radius_y + 1);
    const uint8_t* units = w.grid.mask ? w.grid.sample(b) : nullptr;
    for (int32_t x = x0 + int32_t(lane); x < x1; x += kWarp) {
        if (units && !units[w.grid.unit32(0, y, x)]) continue;
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
        // Both sides of the fraction times n and m = n - 1: (n x - s) m / sqrt(m n (n q - s^2 +
        // eps n m)). For a window of one pixel n q - s^2 is 0 (or NaN), so any m will do.
        const double n = double(end - begin) * double(right - left), m = max_of(n - 1, 1.0);
        double v = n * q - s * s;
        v = v < 0 ? 0.0 : v;  // a NaN stays
        const double centre = double(widen(image[y * w.i_y + x * w.i_x]));
        w.out.store(to + y * w.o_y + x * w.o_x,
                    (n * centre - s) * m * rsqrt(m * n * (v + eps * n * m)));
    }
}

// Writes rows from `top` on until one holds too large a number; returns the first row not written.
template <class T, class Out>
__device__ __forceinline__ int32_t plain_rows(const Window& w, const T* image, int64_t b,
                                              int64_t to, int32_t top, int32_t bottom, int32_t x0,
                                              int32_t x1, int32_t left, int32_t columns, double eps,
                                              double limit) {
    // Sums of whole numbers are exact up to 2^53; for others a column's sum may be at most that of
    // half a window of the largest numbers.
    const bool whole = std::is_integral<T>::value;
    const double most = whole ? 9007199254740992.0 / columns : (w.radius_y + 1) * limit * limit;
    // In float32 eps times the square of a window must neither vanish nor overflow.
    bool able = w.out.element != kFloat64 && eps < 1e6 && (whole || eps > 1e-30);
    if (std::is_same<T, uint8_t>::value) {
        const int64_t window = (2 * int64_t(w.radius_y) + 1) * (2 * w.radius_x + 1);
        able = able && window <= kMostBytes;
    } else {  // a number that enters must stay in the window for kRows rows
        able = able && w.radius_y >= kRows / 2;
    }
    if (!able) return top;
    const Band<T> band{image,
                       w.i_y,
                       w.i_x,
                       w.height,
                       w.width,
                       bottom,
                       w.radius_y,
                       w.radius_x,
                       left,
                       columns,
                       x0,
                       x1,
                       most,
                       float(eps),
                       static_cast<char*>(w.out.base) + to * int64_t(sizeof(Out)),
                       w.o_y * int64_t(sizeof(Out)),
                       w.o_x * int64_t(sizeof(Out)),
                       w.grid.mask ? w.grid.sample(b) : nullptr,
                       int32_t(w.grid.scale.height),
                       int32_t(w.grid.scale.width),
                       int32_t(w.grid.units.width)};
    auto* const sums = reinterpret_cast<Both<T>(*)[kPitch]>(shared_sums<kRows>());
    return write_plain<T, Out>(band, top, sums);
}

// Out: the output's type, except that a float64 output is stored through w.out.
template <class T, class Out, int ROWS>
__global__ void __launch_bounds__(ROWS > 1 ? kMostThreads : 256, 2)
    normalize_window(Window w, const T* base) {
    const uint32_t bands = uint32_t((w.height + w.band - 1) / w.band);
    const uint32_t strips = uint32_t((w.width + w.strip - 1) / w.strip);
    const uint32_t strip = blockIdx.x % strips, band = blockIdx.x / strips % bands;
    const uint32_t plane = blockIdx.x / strips / bands, image_of = plane / uint32_t(w.channels);
    int32_t top = int32_t(band) * w.band;
    const int32_t bottom = min_of(w.height, top + w.band);
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
    // For integer types `limit` is one of stored numbers; for others it is for a deviation of 1.
    const double limit = std::is_integral<T>::value ? w.limit : w.limit * unit;

    int32_t start = top;
    if constexpr (ROWS > 1 && !kAnew<T>) {
        start = plain_rows<T, Out>(w, image, b, to, top, bottom, x0, x1, left, columns, eps, limit);
        if (start >= bottom) return;
        __syncthreads();
    }
    Sums<T, ROWS> sums(w.scratch, columns);
    const int32_t first = max_of(0, start - w.radius_y);
    const int32_t last = min_of(w.height, start + w.radius_y);
    if constexpr (!kAnew<T>) {
        sums.each(columns, [&](int32_t x, Column& column) {
#pragma unroll 4
            for (int32_t y = first; y < last; ++y) {
                column.add(limit, double(widen(image[y * w.i_y + (left + x) * w.i_x])), 1);
            }
        });
    }
    for (top = start; start < bottom; start += ROWS) {
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
#pragma unroll 2
                for (int32_t r = 0; r < rows; ++r) {
                    const int32_t y = start + r, enters = y + w.radius_y;
                    const int32_t leaves = y - 1 - w.radius_y;
                    if (y > top && leaves >= 0) {
                        column.add(limit, double(widen(down[leaves * w.i_y])), -1);
                    }
                    if (enters < w.height) {
                        column.add(limit, double(widen(down[enters * w.i_y])), 1);
                    }
                    const Row row = sums.row(r, columns);
                    row.sums[x] = column.sum;
                    row.squares[x] = column.square;
                    row.bad[x] = column.bad;
                }
            }
        });
        __syncthreads();
        for (int32_t r = int32_t(warp); r < rows; r += int32_t(blockDim.x) / kWarp) {
            const Row row = sums.row(r, columns);
            if (!kAnew<T>) prefix(row, columns, lane);
            write_row(w, image, b, to, start + r, left, x0, x1, row, eps, limit, lane);
        }
        __syncthreads();
    }
}

template <class T>
int start(const Window& window, const void* image, int64_t planes, Stream stream) {
    const int64_t bands = ceil_div(window.height, window.band);
    const int64_t blocks = planes * bands * ceil_div(window.width, window.strip);
    const T* base = static_cast<const T*>(image);
    if (window.scratch) {
        return launch(normalize_window<T, float, 1>, blocks, dim3(256), stream, window, base);
    }
    const int64_t columns = min_of(window.width, window.strip + 2 * window.radius_x);
    const dim3 threads(unsigned(ceil_div(columns, kWarp) * kWarp));
    const auto kernel = window.out.element == kFloat32 ? normalize_window<T, float, kRows>
                                                       : normalize_window<T, Small<T>, kRows>;
    return launch(kernel, blocks, threads, stream, window, base);
}

constexpr int64_t kStrip = 64;      // fewest columns of a block; with fewer, sums are in memory
constexpr int64_t kBlocks = 528;    // four for each of 132 multiprocessors; gives a band's height
constexpr int64_t kLeastRows = 48;  // fewest rows of a band, which begins by adding up a window

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
    const int64_t bands =
        max_of<int64_t>(min_of(kBlocks / max_of<int64_t>(columns, 1), height / kLeastRows), 1);
    cut.band = ceil_div(height, bands);
    if (wide) cut.scratch = columns * ceil_div(height, cut.band) * 6 * (width + 1);
    return cut;
}

}  // namespace normalize_targets_file

int64_t normalize_targets_scratch(const Tensor& image, int64_t window) {
    return cut_of(image_layout(image), window).scratch;
}

int normalize_targets(const Tensor& image, const Tensor& std, const Tensor& mask, const Tensor& out,
                      int64_t window, double eps, double limit, const Tensor& scratch,
                      Stream stream) {
    const ImageLayout from = image_layout(image), to = image_layout(out);
    const Cut cut = cut_of(from, window);
    const MaskGrid grid = mask ? mask_over(mask, from.size) : MaskGrid{nullptr, {}, {1, 1, 1}};
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
                         grid,
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

// Sliding-window normalisation of one channel of an image, row by row; for normalize_targets and
// for the losses that normalise their target. How to call it:
//
//     WindowRows<C> rows(plane, window, eps, scratch);   // C: float, or double for float64 images
//     for (y : the rows wanted, ascending) {
//         rows.seek(y);
//         rows.write(x0, x1, out);                       // out[0 .. x1 - x0) = normalised pixels
//     }
//
// `scratch` holds WindowRows<C>::scratch_bytes(width, window) bytes, aligned to 16, and serves one
// plane at a time; nothing else is written. `eps` is in the units of the numbers as they are stored
// (`stored_eps`): the mean of the channel cancels. A row costs the same for any window. The first
// row of a caller, and a row further down than a window, costs about a third of a row for every row
// of the window, so one WindowRows should walk down a plane as far as it can. Rows in between that
// are not written cost two thirds. A caller that wants a few columns only passes a plane that
// begins window / 2 columns before them and ends as far behind them, cut at the image's own border.
#pragma once

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "cpu/rows.h"

SIMMIM_BEGIN

// One channel of one image: pixel (y, x) lies at offset + y * sy + x * sx.
struct Plane {
    Memory memory;
    int64_t offset, sy, sx, height, width;
};

// `eps`, for a target that is (x / 255 - mean) / std where the image is uint8, in the units of the
// stored numbers. `std` may be absent.
inline double stored_eps(double eps, int element, const Memory& std, int64_t channel) {
    double scale = 1.0;
    if (std.base) std.load(channel, 1, 1, &scale);
    if (element == kUInt8) scale *= 255.0;
    return eps * scale * scale;
}

// Prefix sums of n numbers, n a multiple of 4; returns the last. Four numbers are added up among
// themselves before they meet the sum of all numbers before, which is what the next four wait for;
// compilers make no vector code of it (measured: 1 ns less a pixel than one chain of additions).
inline double prefix_of_fours(const double* row, int64_t n, double* sums) {
#ifdef __AVX2__
    const __m256d zero = _mm256_setzero_pd();
    __m256d total = zero;
    for (int64_t x = 0; x < n; x += 4) {
        const __m256d one = _mm256_loadu_pd(row + x);
        const __m256d two =
            _mm256_add_pd(one, _mm256_blend_pd(_mm256_permute4x64_pd(one, 0x90), zero, 1));
        const __m256d four = _mm256_add_pd(two, _mm256_permute2f128_pd(two, two, 0x08));
        _mm256_storeu_pd(sums + x, _mm256_add_pd(total, four));
        total = _mm256_add_pd(total, _mm256_permute4x64_pd(four, 0xFF));
    }
    return _mm256_cvtsd_f64(total);
#else
    double total = 0.0;
    for (int64_t x = 0; x < n; x += 4) {
        const double* v = row + x;
        const double two[] = {v[0] + 0.0, v[1] + v[0], v[2] + v[1], v[3] + v[2]};
        const double four[] = {two[0] + 0.0, two[1] + 0.0, two[2] + two[0], two[3] + two[1]};
        for (int i = 0; i < 4; ++i) sums[x + i] = total + four[i];
        total += four[3];
    }
    return total;
#endif
}

// What sums of squares of C are held in: wide enough that E[x^2] - m^2 may cancel.
template <class C>
struct Wider {
    using Type = double;
};
template <>
struct Wider<double> {
    using Type = long double;
};

// Column sums of x and x^2 over the window's rows run down the image, prefix sums along the row
// turn them into window sums. All sums are made in one order on every instruction set.
//
// A running sum never recovers from a NaN or Inf, and keeps the rounding of large numbers after
// they have left. Rows that hold a NaN, an Inf, or a number so large that its rounding would show
// next to `eps` are therefore summed directly while they are in the window, at a cost that grows
// with it.
template <class C>
class WindowRows {
    using Sum = typename Wider<C>::Type;

  public:
    static int64_t scratch_bytes(int64_t width, int64_t window) {
        const int64_t padded = width + 2 * radius(width, window) + 1;
        return int64_t(sizeof(Sum)) * (4 * width + 2 * padded) +
               int64_t(sizeof(double) + 6 * sizeof(C)) * width;
    }

    WindowRows(const Plane& plane, int64_t window, double eps, char* scratch)
        : plane_(plane),
          ry_(radius(plane.height, window)),
          rx_(radius(plane.width, window)),
          eps_(eps) {
        const int64_t width = plane.width, padded = width + 2 * rx_ + 1;
        column_s_ = reinterpret_cast<Sum*>(scratch);
        column_q_ = column_s_ + width;
        direct_s_ = column_q_ + width;
        direct_q_ = direct_s_ + width;
        prefix_s_ = direct_q_ + width;
        prefix_q_ = prefix_s_ + padded;
        count_ = reinterpret_cast<double*>(prefix_q_ + padded);
        C* rows = reinterpret_cast<C*>(count_ + width);
        bessel_ = rows;
        eps_n2_ = rows + width;
        zeros_ = rows + 2 * width;
        entering_row_ = rows + 3 * width;
        leaving_row_ = rows + 4 * width;
        centre_row_ = rows + 5 * width;
        for (int64_t x = 0; x < width; ++x) zeros_[x] = C(0);
        for (int64_t x = 0; x <= rx_; ++x) prefix_s_[x] = prefix_q_[x] = Sum(0);
        // What x leaves behind in a variance is below 2^-51 x^2 for float: at most 2 eps here, and
        // nothing in images of bytes or of 16-bit numbers, whose sums are exact.
        limit_ = plane.memory.element == kUInt8 ? C(255) : C(67108864.0 * __builtin_sqrt(eps));
    }

    // Makes row `y` the current one.
    void seek(int64_t y) {
        if (y_ >= 0 && y > y_ && y - y_ <= 2 * ry_) {
            while (y_ < y - 1) advance();
            advance();
        } else if (y != y_) {
            start(y);
        }
        centre_ = row(y, centre_row_);
        count(min_of(plane_.height - 1, y + ry_) - max_of<int64_t>(0, y - ry_) + 1);
        if (direct()) sum_directly();
    }

    // The normalised pixels [first, last) of the current row.
    void write(int64_t first, int64_t last, C* out) const {
        if (direct()) {
            for (int64_t x = first; x < last; ++x) {
                const Sum n = count_[x], s = direct_s_[x], v = n * direct_q_[x] - s * s;
                const double bessel = n > 1 ? count_[x] / (count_[x] - 1.0) : 0.0;
                const double scaled = double(v < 0 ? Sum(0) : v) * bessel + eps_ * double(n * n);
                out[x - first] = C(double(n * Sum(centre_[x]) - s) / __builtin_sqrt(scaled));
            }
            return;
        }
        // Everything times n: out = (n x - s) / sqrt((n q - s^2) n / (n - 1) + eps n^2).
        const Sum *s0 = prefix_s_, *s1 = s0 + 2 * rx_ + 1;
        const Sum *q0 = prefix_q_, *q1 = q0 + 2 * rx_ + 1;
        for (int64_t x = first; x < last; ++x) {
            const Sum n = count_[x], s = s1[x] - s0[x], q = q1[x] - q0[x];
            const Sum v = n * q - s * s;
            const C scaled = C(v < 0 ? Sum(0) : v) * bessel_[x] + eps_n2_[x];
            out[x - first] = C(n * Sum(centre_[x]) - s) / root(scaled);
        }
    }

  private:
    // Past the image's other end a window gains nothing.
    static int64_t radius(int64_t size, int64_t window) { return min_of(window / 2, size - 1); }
    static float root(float v) { return __builtin_sqrtf(v); }
    static double root(double v) { return __builtin_sqrt(v); }

    bool direct() const { return bad_ >= y_ - ry_; }

    const C* row(int64_t y, C* buffer) const {
        const int64_t offset = plane_.offset + y * plane_.sy;
        if (plane_.sx == 1 && plane_.memory.element == kElement<C>)
            return reinterpret_cast<const C*>(plane_.memory.at(offset));
        plane_.memory.load(offset, plane_.sx, plane_.width, buffer);
        return buffer;
    }

    // The row that enters the window, marked where a running sum can't take it.
    const C* entering(int64_t y) {
        const C* x = row(y, entering_row_);
        int beyond = 0;
        for (int64_t i = 0; i < plane_.width; ++i) beyond |= !(x[i] <= limit_ && x[i] >= -limit_);
        if (beyond) bad_ = y;
        return x;
    }

    // Sums for row `y` from nothing but the rows of its window.
    void start(int64_t y) {
        y_ = y;
        bad_ = -1 - plane_.height;
        for (int64_t x = 0; x < plane_.width; ++x) column_s_[x] = column_q_[x] = Sum(0);
        const int64_t last = min_of(plane_.height - 1, y + ry_);
        for (int64_t i = max_of<int64_t>(0, y - ry_); i <= last; ++i) {
            const C* x = entering(i);
            for (int64_t j = 0; j < plane_.width; ++j) {
                column_s_[j] += Sum(x[j]);
                column_q_[j] += Sum(x[j]) * Sum(x[j]);
            }
        }
        run(zeros_, zeros_);
    }

    void advance() {
        const bool was_direct = direct();
        const int64_t enters = y_ + 1 + ry_, leaves = y_ - ry_;
        ++y_;
        const C* in = enters < plane_.height ? entering(enters) : zeros_;
        if (was_direct || direct()) return start(y_);
        const C* out = leaves >= 0 ? row(leaves, leaving_row_) : zeros_;
        if (in != out) run(in, out);
    }

    // Column sums with row `in` added and row `out` taken away, and their prefix sums.
    void run(const C* __restrict in, const C* __restrict out) {
        Sum* __restrict s = column_s_, * __restrict q = column_q_;
        for (int64_t x = 0; x < plane_.width; ++x) {
            const Sum a = in[x], b = out[x];
            s[x] += a - b;
            q[x] += (a - b) * (a + b);
        }
        sum_along(s, prefix_s_ + rx_ + 1);
        sum_along(q, prefix_q_ + rx_ + 1);
    }

    // Prefix sums of a row, and the last one again for the windows that the border cuts.
    void sum_along(const double* row, double* sums) const {
        const int64_t fours = plane_.width / 4 * 4;
        finish_sums(row, fours, prefix_of_fours(row, fours, sums), sums);
    }
    void sum_along(const long double* row, long double* sums) const {
        finish_sums(row, 0, 0.0L, sums);
    }
    void finish_sums(const Sum* row, int64_t x, Sum sum, Sum* sums) const {
        for (; x < plane_.width; ++x) sums[x] = sum += row[x];
        for (; x < plane_.width + rx_; ++x) sums[x] = sum;
    }

    // The numbers of pixels in the windows of a row whose windows have `rows` rows.
    void count(int64_t rows) {
        if (rows == rows_) return;
        rows_ = rows;
        for (int64_t x = 0; x < plane_.width; ++x) {
            const int64_t columns =
                min_of(plane_.width - 1, x + rx_) - max_of<int64_t>(0, x - rx_) + 1;
            const double n = double(rows * columns);
            count_[x] = n;
            bessel_[x] = n > 1.0 ? C(n / (n - 1.0)) : C(0);
            eps_n2_[x] = C(eps_ * n * n);
        }
    }

    void sum_directly() {
        for (int64_t x = 0; x < plane_.width; ++x) {
            const int64_t last = min_of(plane_.width - 1, x + rx_);
            Sum s = 0, q = 0;
            for (int64_t i = max_of<int64_t>(0, x - rx_); i <= last; ++i) {
                s += column_s_[i];
                q += column_q_[i];
            }
            direct_s_[x] = s;
            direct_q_[x] = q;
        }
    }

    Plane plane_;
    int64_t ry_, rx_;
    double eps_;
    C limit_;
    int64_t y_ = -1;    // the current row
    int64_t rows_ = 0;  // rows in its windows
    int64_t bad_ = -1;  // the last row taken in that no running sum can hold
    const C* centre_ = nullptr;
    Sum *column_s_, *column_q_, *direct_s_, *direct_q_, *prefix_s_, *prefix_q_;
    double* count_;
    C *bessel_, *eps_n2_, *zeros_, *entering_row_, *leaving_row_, *centre_row_;
};

SIMMIM_END

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
// plane at a time; nothing else is written. `eps` is in the units of stored numbers (`stored_eps`);
// the mean of the channel cancels. A caller that needs a few columns only passes a plane that
// begins window / 2 columns before them and ends as far after them, cut at the image's border.
//
// Cost: a row takes the same time for any window. Starting (the first row, or a jump by more than a
// window) takes a third of a row's time for each row of the window, so one WindowRows should go
// down a plane as far as it can. Rows that are skipped take two thirds.
#pragma once

#include "cpu/rows.h"
#include "cpu/sums.h"

SIMMIM_BEGIN

// One channel of one image: pixel (y, x) lies at offset + y * sy + x * sx.
struct Plane {
    Memory memory;
    int64_t offset, sy, sx, height, width;
};

// `eps` in the units of stored numbers x, for a target of (x - mean) / std, or (x / 255 - mean) /
// std of uint8. `std` may be absent.
inline double stored_eps(double eps, int element, const Memory& std, int64_t channel) {
    double scale = 1.0;
    if (std.base) std.load(channel, 1, 1, &scale);
    if (element == kUInt8) scale *= 255.0;
    return eps * scale * scale;
}

// The type for sums of squares of C, wide enough for the cancellation in E[x^2] - m^2.
template <class C>
struct Wider {
    using Type = double;
};
template <>
struct Wider<double> {
    using Type = long double;
};

// Running column sums of x and x^2 over the window's rows, and prefix sums of these along the row,
// give window sums. The order of additions is the same everywhere. Three cases of numbers:
// - ordinary ones, and whole numbers such as sensor counts, whose sums are exact: as above.
// - numbers so large that the rounding of their squares, which stays in a running sum after they
// have
//   left the window, would show next to `eps`: column sums carry their rounding errors beside them,
//   and sums along the row use numbers of the window only. Three to four times the cost.
// - NaN, infinity, and numbers too large for that: a running sum never recovers from them, so rows
//   are summed from scratch while such a number is in the window, at a cost that grows with it.
template <class C>
class WindowRows {
    using Sum = typename Wider<C>::Type;

  public:
    static int64_t scratch_bytes(int64_t width, int64_t window) {
        const int64_t padded = width + 2 * radius(width, window) + 1;
        return int64_t(sizeof(Sum)) * (6 * width + 2 * padded) +
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
        rest_s_ = column_q_ + width;
        rest_q_ = rest_s_ + width;
        direct_s_ = rest_q_ + width;
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
        // A running sum over an image with `side` columns or rows leaves an error of about
        // 2^-53 * side * x^2 in a window's mean square. Up to this limit that is below eps / 1000
        // (measured up to a side of 4096). Twin: running_limit in
        // simmim_kernels/backends/_window.py.
        const double side = double(max_of(plane.width, plane.height));
        limit_ = C(33554432.0 * __builtin_sqrt(eps / side));
        const double tall = double(min_of(2 * ry_ + 1, plane.height));
        whole_limit_ =
            C(min_of(4194304.0, __builtin_sqrt(9007199254740992.0 / (tall * double(plane.width)))));
        if (is_integer(plane.memory.element)) limit_ = max_of(limit_, whole_limit_);
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
        // With n pixels, their sum s and sum of squares q, both sides of the fraction times n:
        // out = (n x - s) / sqrt((n q - s^2) n / (n - 1) + eps n^2).
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
    // A window that covers the whole image needs no larger radius.
    static int64_t radius(int64_t size, int64_t window) { return min_of(window / 2, size - 1); }
    static float root(float v) { return __builtin_sqrtf(v); }
    static double root(double v) { return __builtin_sqrt(v); }

    // Whether sums along the row use numbers of the window only (the second and third case), ...
    bool direct() const { return max_of(large_, bad_) >= y_ - ry_; }
    // ... and whether sums over rows do as well (the third case).
    bool anew() const { return bad_ >= y_ - ry_; }

    const C* row(int64_t y, C* buffer) const {
        const int64_t offset = plane_.offset + y * plane_.sy;
        if (plane_.sx == 1 && plane_.memory.element == kElement<C>)
            return reinterpret_cast<const C*>(plane_.memory.at(offset));
        plane_.memory.load(offset, plane_.sx, plane_.width, buffer);
        return buffer;
    }

    // Reads row `y`, which enters the window that begins with row `first`, and records in `large_`
    // and `bad_` whether a plain running sum can take it.
    const C* entering(int64_t first, int64_t y) {
        const C* x = row(y, entering_row_);
        if (!counts_ && is_within(x, limit_)) return x;
        bool exact = is_whole(x);
        for (int64_t i = y - 1; exact && !counts_ && i >= first; --i)
            exact = is_whole(row(i, leaving_row_));
        counts_ = true;
        if (exact) return x;
        large_ = y;
        if (!is_within(x, max_of(limit_ * C(67108864), C(1073741824)))) bad_ = y;
        return x;
    }

    bool is_within(const C* x, C limit) const {
        int beyond = 0;
        for (int64_t i = 0; i < plane_.width; ++i) beyond |= !(x[i] <= limit && x[i] >= -limit);
        return !beyond;
    }

    // Whether all sums of these numbers and of their squares are exact.
    bool is_whole(const C* x) const {
        constexpr C rounder = sizeof(C) == 4 ? C(12582912.0) : C(6755399441055744.0);
        int other = 0;
        for (int64_t i = 0; i < plane_.width; ++i) {
            const C whole = (x[i] + rounder) - rounder;
            other |= !(x[i] == whole && x[i] <= whole_limit_ && x[i] >= -whole_limit_);
        }
        return !other;
    }

    // Sums for row `y` from scratch.
    void start(int64_t y) {
        y_ = y;
        large_ = bad_ = -1 - plane_.height;
        counts_ = false;
        for (int64_t x = 0; x < plane_.width; ++x)
            column_s_[x] = column_q_[x] = rest_s_[x] = rest_q_[x] = Sum(0);
        const int64_t first = max_of<int64_t>(0, y - ry_);
        const int64_t last = min_of(plane_.height - 1, y + ry_);
        for (int64_t i = first; i <= last; ++i) {
            const C* x = entering(first, i);
            if (direct()) {
                run_in_parts(x, Sum(1));
                continue;
            }
            for (int64_t j = 0; j < plane_.width; ++j) {
                column_s_[j] += Sum(x[j]);
                column_q_[j] += Sum(x[j]) * Sum(x[j]);
            }
        }
        if (!direct()) run(zeros_, zeros_);
    }

    void advance() {
        const bool was_anew = anew(), was_direct = direct();
        const int64_t enters = y_ + 1 + ry_, leaves = y_ - ry_;
        ++y_;
        const int64_t first = max_of<int64_t>(0, leaves + 1);
        const C* in = enters < plane_.height ? entering(first, enters) : zeros_;
        if (was_anew || anew() || (was_direct && !direct())) return start(y_);
        const C* out = leaves >= 0 ? row(leaves, leaving_row_) : zeros_;
        if (in == out) return;
        if (!direct()) return run(in, out);
        run_in_parts(in, Sum(1));
        run_in_parts(out, Sum(-1));
    }

    // Adds a row to the column sums (`sign` 1) or takes it away (-1), with the rounding errors kept
    // in rest_s_ and rest_q_ (Knuth's two-sum).
    void run_in_parts(const C* __restrict row, Sum sign) {
        for (int64_t x = 0; x < plane_.width; ++x) {
            const Sum v = row[x];
            add_in_parts(sign * v, column_s_[x], rest_s_[x]);
            add_in_parts(sign * v * v, column_q_[x], rest_q_[x]);
        }
    }

    // Adds row `in` to the column sums, takes row `out` away, and makes their prefix sums.
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

    // Makes the prefix sums of a row and repeats the last one for windows cut by the border.
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

    // Sets the number of pixels in each window of a row whose windows have `rows` rows.
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
        sum_windows(column_s_, rest_s_, plane_.width, rx_, direct_s_);
        sum_windows(column_q_, rest_q_, plane_.width, rx_, direct_q_);
    }

    Plane plane_;
    int64_t ry_, rx_;
    double eps_;
    C limit_, whole_limit_;
    bool counts_ = false;  // whether the sums hold numbers beyond the limit, whole ones or not
    int64_t y_ = -1;       // the current row
    int64_t rows_ = 0;     // rows in its windows
    int64_t large_ = -1;   // the last row read that is of the second case
    int64_t bad_ = -1;     // the last row read that is of the third case
    const C* centre_ = nullptr;
    Sum *column_s_, *column_q_, *rest_s_, *rest_q_;  // column sums and their rounding errors
    Sum *direct_s_, *direct_q_, *prefix_s_, *prefix_q_;
    double* count_;
    C *bessel_, *eps_n2_, *zeros_, *entering_row_, *leaving_row_, *centre_row_;
};

SIMMIM_END

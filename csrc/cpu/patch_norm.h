// Per-patch normalisation, over the pixels and channels of a patch; for normalize_patches and for
// the losses that normalise their target. How to call it, for `count` patches side by side:
//
//     PatchRows<C> rows(image, patch, eps, scratch);   // C: float, or double for float64 images
//     rows.measure(y, x, count);                       // top left pixel of the first patch
//     rows.write(channel, dy, out);                    // out[0 .. count * patch) = row dy of them
//
// `scratch` holds PatchRows<C>::scratch_bytes(count * patch) bytes for the largest count, and
// serves one caller at a time; nothing else is written.
#pragma once

#include "common/grid.h"
#include "cpu/rows.h"

SIMMIM_BEGIN

// One image: pixel (c, y, x) lies at offset + c * sc + y * sy + x * sx. The numbers that are
// normalised are (x - mean) / std, of x / 255 for uint8; `mean` and `std` may be absent.
struct Channels {
    Memory memory;
    int64_t offset, sc, sy, sx, count;
    Memory mean, std;
};

// The channels of sample 0 of an image.
inline Channels channels_of(const Tensor& image, const Tensor& mean, const Tensor& std) {
    const ImageLayout of = image_layout(image);
    return {memory_of(image), 0, of.sc, of.sy, of.sx, of.channels, memory_of(mean), memory_of(std)};
}

// The sum of term(row[i]), in lanes, so that it has the same bits on every instruction set.
template <class C, class Term>
double sum_of_row(const C* row, int64_t n, const Term& term) {
    constexpr int64_t kSums = 16;
    double sums[kSums] = {}, total = 0.0;
    int64_t i = 0;
    for (; i + kSums <= n; i += kSums) {
        for (int64_t j = 0; j < kSums; ++j) sums[j] += term(double(row[i + j]));
    }
    for (int64_t j = 0; i < n; ++i, ++j) sums[j] += term(double(row[i]));
    for (const double sum : sums) total += sum;
    return total;
}

// Normalises a patch of one pixel with n contiguous numbers, in place.
template <class C>
void normalize_token(C* row, int64_t n, double eps) {
    const double mean = sum_of_row(row, n, [](double value) { return value; }) / double(n);
    const double squares =
        sum_of_row(row, n, [mean](double value) { return (value - mean) * (value - mean); });
    const double rstd = 1.0 / __builtin_sqrt((n > 1 ? squares / double(n - 1) : 0.0) + eps);
    for (int64_t i = 0; i < n; ++i) row[i] = C((double(row[i]) - mean) * rstd);
}

// Two passes, the second over deviations from the mean, so that nothing cancels. Sums are made for
// each column of a patch, in vectors, and then added over the columns.
template <class C>
class PatchRows {
  public:
    static int64_t scratch_bytes(int64_t width) {
        return (2 * int64_t(sizeof(double)) + int64_t(sizeof(C))) * width;
    }

    PatchRows(const Channels& image, int64_t patch, double eps, char* scratch)
        : image_(image), patch_(patch), eps_(eps), scratch_(scratch) {}

    void measure(int64_t y, int64_t x, int64_t count) {
        y_ = y;
        x_ = x;
        width_ = count * patch_;
        mean_ = reinterpret_cast<double*>(scratch_);
        rstd_ = mean_ + width_;
        row_ = reinterpret_cast<C*>(rstd_ + width_);
        const double n = double(image_.count * patch_ * patch_);
        for (int64_t i = 0; i < width_; ++i) mean_[i] = rstd_[i] = 0.0;
        add_columns(mean_, [](double value, int64_t) { return value; });
        spread(mean_, [n](double sum) { return sum / n; });
        const double* mean = mean_;
        add_columns(rstd_, [mean](double value, int64_t i) {
            const double d = value - mean[i];
            return d * d;
        });
        const double eps = eps_;
        spread(rstd_, [n, eps](double sum) {
            return 1.0 / __builtin_sqrt((n > 1.0 ? sum / (n - 1.0) : 0.0) + eps);
        });
    }

    void write(int64_t channel, int64_t dy, C* out) const {
        const Line line = at(channel, dy);
        for (int64_t i = 0; i < width_; ++i)
            out[i] = C((double(line.x[i]) * line.scale + line.shift - mean_[i]) * rstd_[i]);
    }

  private:
    struct Line {
        const C* x;
        double scale, shift;  // (stored number) * scale + shift is the value that is normalised
    };

    Line at(int64_t channel, int64_t dy) const {
        const int64_t offset =
            image_.offset + channel * image_.sc + (y_ + dy) * image_.sy + x_ * image_.sx;
        double scale = image_.memory.element == kUInt8 ? 1.0 / 255.0 : 1.0, mean = 0.0, std = 1.0;
        if (image_.mean.base) image_.mean.load(channel, 1, 1, &mean);
        if (image_.std.base) image_.std.load(channel, 1, 1, &std);
        const C* x = reinterpret_cast<const C*>(image_.memory.at(offset));
        if (image_.sx != 1 || image_.memory.element != kElement<C>) {
            image_.memory.load(offset, image_.sx, width_, row_);
            x = row_;
        }
        return {x, scale / std, -mean / std};
    }

    template <class Term>
    void add_columns(double* sums, const Term& term) const {
        for (int64_t channel = 0; channel < image_.count; ++channel) {
            for (int64_t dy = 0; dy < patch_; ++dy) {
                const Line line = at(channel, dy);
                for (int64_t i = 0; i < width_; ++i)
                    sums[i] += term(double(line.x[i]) * line.scale + line.shift, i);
            }
        }
    }

    // Adds up the columns of each patch and sets all of them to `result` of that sum.
    template <class Result>
    void spread(double* columns, const Result& result) const {
        for (int64_t first = 0; first < width_; first += patch_) {
            double sum = 0.0;
            for (int64_t i = first; i < first + patch_; ++i) sum += columns[i];
            const double value = result(sum);
            for (int64_t i = first; i < first + patch_; ++i) columns[i] = value;
        }
    }

    Channels image_;
    int64_t patch_;
    double eps_;
    char* scratch_;
    int64_t y_ = 0, x_ = 0, width_ = 0;
    double *mean_ = nullptr, *rstd_ = nullptr;
    C* row_ = nullptr;
};

SIMMIM_END

// Random crop boxes (the Inception crop): ten draws, then a central box. Only float64 operations
// that round the same way on every backend are used: +, -, *, / and square root.
#include <cmath>

#include "common/philox.h"

SIMMIM_BEGIN

namespace {

constexpr uint32_t kCropAttempts = 10;  // twin: CROP_ATTEMPTS in backends/_crops.py
constexpr double kWord = 1.0 / 4294967296.0;

// Rounds a number below 2^52 to the nearest whole one, ties to even.
double whole(double x) { return (x + 4503599627370496.0) - 4503599627370496.0; }

// Twin: EXP_TERMS in backends/_crops.py.
double exponential(double x) {
    constexpr double kTerms[] = {1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2, 1.0, 1.0};
    const double part = x * (1.0 / 256);
    double value = 0;
    for (const double term : kTerms) value = value * part + term;
    for (int i = 0; i < 8; ++i) value = value * value;
    return value;
}

}  // namespace

void random_crops(const Tensor& ids, const Tensor& sizes, double least_scale, double most_scale,
                  double least_ratio, double most_ratio, double log_span, double flip,
                  uint64_t seed, uint32_t epoch, const Tensor& boxes, const Tensor& flips) {
    for (int64_t b = 0; b < ids.numel(); ++b) {
        const uint64_t id = uint64_t(ids.as<int64_t>()[b]);
        const auto words = [&](uint32_t attempt) {
            return philox(kCropStream + attempt, epoch, uint32_t(id), uint32_t(id >> 32),
                          uint32_t(seed), uint32_t(seed >> 32));
        };
        const int64_t rows = sizes.as<int64_t>()[2 * b], columns = sizes.as<int64_t>()[2 * b + 1];
        const double height = double(rows), width = double(columns), ratio = width / height;
        double h = ratio < least_ratio ? max_of(whole(width / least_ratio), 1.0) : height;
        double w = ratio > most_ratio ? max_of(whole(height * most_ratio), 1.0) : width;
        int64_t* box = boxes.as<int64_t>() + 4 * b;
        box[0] = (rows - int64_t(h)) / 2;
        box[1] = (columns - int64_t(w)) / 2;
        for (uint32_t attempt = 0; attempt < kCropAttempts; ++attempt) {
            const PhiloxBlock random = words(attempt);
            const double area =
                height * width *
                (least_scale + double(random.word[0]) * kWord * (most_scale - least_scale));
            const double aspect =
                least_ratio * exponential(double(random.word[1]) * kWord * log_span);
            const double across = whole(std::sqrt(area * aspect));
            const double down = whole(std::sqrt(area / aspect));
            if (across > 0 && across <= width && down > 0 && down <= height) {
                h = down;
                w = across;
                box[0] = uniform(random.word[2], rows - int64_t(h) + 1);
                box[1] = uniform(random.word[3], columns - int64_t(w) + 1);
                break;
            }
        }
        box[2] = int64_t(h);
        box[3] = int64_t(w);
        flips.as<uint8_t>()[b] = double(words(kCropAttempts).word[0]) * kWord < flip;
    }
}

SIMMIM_END

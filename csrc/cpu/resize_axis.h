// The filter of a resize along one axis: which pixels each output depends on, with which weights.
#pragma once

#include <cmath>

#include "common/types.h"

SIMMIM_BEGIN

// A resize of one axis from `extent` pixels to `out`.
struct Resize {
    int64_t extent, out;
    bool cubic, antialias;

    double scale() const { return double(extent) / double(out); }
    double stretch() const { return antialias ? max_of(scale(), 1.0) : 1.0; }
    int64_t radius() const { return cubic ? 2 : 1; }
    // The largest number of taps of an output.
    int64_t most() const { return min_of(int64_t(2 * double(radius()) * stretch()) + 1, extent); }

    // The filter at distance t: the triangle, or the cubic convolution kernel, with Pillow's a =
    // -0.5 when antialiasing and PyTorch's a = -0.75 otherwise.
    double kernel(double t) const {
        t = std::fabs(t);
        if (!cubic) return max_of(1 - t, 0.0);
        const double a = antialias ? -0.5 : -0.75;
        if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
        return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0.0;
    }
};

// Output i is the sum over k < taps of weights[i * taps + k] * pixel[first[i] + k]. All these
// pixels lie within the box; some weights may be 0.
struct Axis {
    int64_t taps;
    int32_t* first;
    double* weights;

    static int64_t bytes(const Resize& resize) {
        return whole_lines(resize.out * 4) + whole_lines(resize.out * resize.most() * 8);
    }

    Axis(const Resize& resize, char* memory)
        : taps(resize.most()),
          first(reinterpret_cast<int32_t*>(memory)),
          weights(reinterpret_cast<double*>(memory + whole_lines(resize.out * 4))) {
        const double scale = resize.scale(), inverse = 1 / resize.stretch();
        const double reach = double(resize.radius()) * resize.stretch();
        const int64_t last = resize.extent - 1;
        for (int64_t i = 0; i < resize.out; ++i) {
            const double center = (double(i) + 0.5) * scale - 0.5;
            const int64_t from = int64_t(std::ceil(center - reach));
            const int64_t begin = min_of(max_of<int64_t>(from, 0), resize.extent - taps);
            const auto weight = [&](int64_t j) {
                return resize.kernel((double(j) - center) * inverse);
            };
            double* row = weights + i * taps;
            if (resize.antialias) {  // pixels outside the box have no weight
                double sum = 0;
                for (int64_t k = 0; k < taps; ++k) sum += row[k] = weight(begin + k);
                const double factor = 1 / sum;
                for (int64_t k = 0; k < taps; ++k) row[k] *= factor;
            } else {  // the box's border pixels are repeated
                for (int64_t k = 0; k < taps; ++k) row[k] = 0;
                for (int64_t j = from; j <= from + 2 * resize.radius(); ++j)
                    row[min_of(max_of<int64_t>(j, 0), last) - begin] += weight(j);
            }
            first[i] = int32_t(begin);
        }
    }
};

SIMMIM_END

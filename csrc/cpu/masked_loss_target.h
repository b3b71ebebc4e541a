// Memory layouts of predictions and targets of the masked losses, and reading of targets.
#pragma once

#include "common/grid.h"
#include "cpu/rows.h"

SIMMIM_BEGIN

constexpr int64_t kLine = 8;  // pixels of a short line that are copied at once

template <class C>
const C* numbers(const Memory& memory, int64_t offset) {
    return reinterpret_cast<const C*>(memory.at(offset));
}

// A prediction or its gradient. Pixel (y, x) is pixel (dy, dx) of token (ty, tx), y = ty * p + dy.
struct Prediction : PredictionLayout {
    Memory memory;

    // Whether a token's numbers are contiguous, in order "cyx" or "yxc".
    bool is_planar(int64_t p) const { return sdx == 1 && sdy == p && sc == p * p; }
    bool is_interleaved(int64_t p, int64_t channels) const {
        return sc == 1 && sdx == channels && sdy == p * channels;
    }
};

// A pixel's value is (stored number - offset) * scale; subtracting first keeps the digits of large
// numbers.
template <class C>
struct Affine {
    C offset, scale;

    C operator()(C stored) const { return (stored - offset) * scale; }
};

// to[i * channels + c] = planes[c * n + i]; GCC makes shuffles of the three stores of colours.
template <class C>
inline void interleave_planes(const C* __restrict__ planes, int64_t channels, int64_t n,
                              C* __restrict__ to) {
    if (channels == 3) {
        for (int64_t i = 0; i < n; ++i) {
            to[3 * i] = planes[i];
            to[3 * i + 1] = planes[n + i];
            to[3 * i + 2] = planes[2 * n + i];
        }
        return;
    }
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < n; ++i) to[i * channels + c] = planes[c * n + i];
}

// The target image; pixels u become (u - mean) / std, those of uint8 (u / 255 - mean) / std.
struct Target : ImageLayout {
    Memory memory;
    const double *mean, *std;  // null: 0 and 1

    // Whether pixels can be used in place, without conversion.
    template <class C>
    bool in_place() const {
        return memory.element == kElement<C> && sx == 1 && !std;
    }

    template <class C>
    Affine<C> affine(int64_t c) const {
        const double unit = memory.element == kUInt8 ? 255.0 : 1.0;
        return {C(mean ? unit * mean[c] : 0.0), C(1.0 / (unit * (std ? std[c] : 1.0)))};
    }

    // Reads n pixels from `offset` on.
    template <class C>
    void load(int64_t offset, const Affine<C>& of, int64_t n, C* row) const {
        if (memory.element == kUInt8) {
            load_affine(numbers<uint8_t>(memory, offset), of, n, row);
        } else if (memory.element == kUInt16) {
            load_affine(numbers<uint16_t>(memory, offset), of, n, row);
        } else if (memory.element == kInt16) {
            load_affine(numbers<int16_t>(memory, offset), of, n, row);
        } else if (std && memory.element == kElement<C>) {
            load_affine(numbers<C>(memory, offset), of, n, row);
        } else {
            memory.load(offset, sx, n, row);
            for (int64_t i = 0; std && i < n; ++i) row[i] = of(row[i]);
        }
    }

    template <class T, class C>
    void load_affine(const T* __restrict__ from, const Affine<C>& of, int64_t n,
                     C* __restrict__ row) const {
        const Affine<C> own = of;  // a copy: what is stored in `row` might be its numbers
        if (sx == 1) {
            for (int64_t i = 0; i < n; ++i) row[i] = own(C(from[i]));
        } else {
            for (int64_t i = 0; i < n; ++i) row[i] = own(C(from[i * sx]));
        }
    }

    // Reads `lines` lines of n contiguous pixels, the first at `offset`.
    template <class C>
    void load_lines(int64_t offset, const Affine<C>& of, int64_t lines, int64_t n, C* out) const {
        if (in_place<C>() && n >= kLine) {  // pieces of fixed size, the last one overlapping
            const C* p = numbers<C>(memory, offset);
            for (int64_t k = 0; k < lines; ++k, p += sy, out += n) {
                for (int64_t i = 0; i + kLine <= n; i += kLine)
                    std::memcpy(out + i, p + i, kLine * sizeof(C));
                std::memcpy(out + n - kLine, p + n - kLine, kLine * sizeof(C));
            }
        } else if (n == 16 && sx == 1 && memory.element == kUInt8) {  // a ViT's patch: one vector
            const uint8_t* p = reinterpret_cast<const uint8_t*>(memory.at(offset));
            for (int64_t k = 0; k < lines; ++k) {
                for (int64_t i = 0; i < 16; ++i) out[16 * k + i] = of(C(p[k * sy + i]));
            }
        } else {
            for (int64_t k = 0; k < lines; ++k) load(offset + k * sy, of, n, out + k * n);
        }
    }
};

SIMMIM_END

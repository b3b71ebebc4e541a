// Gathers the visible patches of an image as rows of a matrix, in the layout of convolution weights
// (channel, dy, dx), normalised on the way; and scatters the gradient back.
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/scratch.h"
#include "cpu/visible_rows.h"

SIMMIM_BEGIN

namespace {

struct Image : ImageLayout {
    Memory memory;

    explicit Image(const Tensor& image)
        : ImageLayout(image_layout(image)), memory(memory_of(image)) {}
};

struct Patches {
    Memory memory;
    int64_t channels, h, w;  // h x w pixels

    int64_t width() const { return channels * h * w; }
};

// Copies whose size is a constant become one or two moves; a call of memcpy takes longer than a
// patch line of Swin.
inline void copy_line(char* target, const char* source, int64_t bytes) {
    switch (bytes) {
        case 8:
            std::memcpy(target, source, 8);
            return;
        case 16:
            std::memcpy(target, source, 16);
            return;
        case 32:
            std::memcpy(target, source, 32);
            return;
        case 64:
            std::memcpy(target, source, 64);
            return;
        default:
            std::memcpy(target, source, size_t(bytes));
    }
}

// The published (x - mean) / std; the scale of its gradient is 1 / std.
template <class C>
struct Statistics {
    const C *mean, *std;  // null where pixels are not normalised

    Statistics(const Tensor& mean_of, const Tensor& std_of, int64_t channels, C* numbers)
        : mean(std_of ? numbers : nullptr), std(std_of ? numbers + channels : nullptr) {
        if (mean_of) memory_of(mean_of).load(0, 1, channels, numbers);
        if (std_of) memory_of(std_of).load(0, 1, channels, numbers + channels);
    }
};

// table[256 * channel + byte]: the value of a uint8 pixel, from the published (u / 255 - mean) /
// std.
template <class C>
void fill_table(const Statistics<C>& by, int64_t channels, C* table) {
    for (int64_t c = 0; c < channels; ++c) {
        for (int64_t u = 0; u < 256; ++u) {
            const C pixel = C(u) / C(255);
            table[c * 256 + u] = by.mean ? (pixel - by.mean[c]) / by.std[c] : pixel;
        }
    }
}

// Copies one pixel line of `n` neighbouring patches: patch k's part goes to target + k * (numbers
// in a patch).
template <class C>
void gather_line(const Image& image, int64_t offset, const C* table, const Statistics<C>& by,
                 int64_t c, const Patches& patches, int64_t target, int64_t n) {
    const Memory& out = patches.memory;
    const int64_t size = element_size(out.element), bytes = patches.w * size;
    const int64_t step = patches.width();
    if (!table && !by.mean && image.sx == 1 && image.memory.element == out.element) {
        for (int64_t k = 0; k < n; ++k) {
            copy_line(out.at(target + k * step), image.memory.at(offset + k * patches.w), bytes);
        }
        return;
    }
    C row[kRow];
    alignas(8) char packed[kRow * 8];
    const int64_t whole = patches.w <= kRow ? kRow / patches.w : 1;  // patches converted at a time
    for (int64_t k = 0; k < n; k += whole) {
        const int64_t group = min_of(whole, n - k);
        for (int64_t i = 0; i < group * patches.w; i += kRow) {
            const int64_t m = min_of(kRow, group * patches.w - i);
            const int64_t from = offset + (k * patches.w + i) * image.sx;
            if (table) {
                const uint8_t* pixels = reinterpret_cast<const uint8_t*>(image.memory.at(from));
                for (int64_t j = 0; j < m; ++j) row[j] = table[pixels[j * image.sx]];
            } else {
                image.memory.load(from, image.sx, m, row);
                for (int64_t j = 0; by.mean && j < m; ++j)
                    row[j] = (row[j] - by.mean[c]) / by.std[c];
            }
            Memory{packed, out.element}.store(row, m, 0, 1);
            if (patches.w > kRow) {
                std::memcpy(out.at(target + k * step + i), packed, size_t(m * size));
                continue;
            }
            for (int64_t j = 0; j < group; ++j) {
                copy_line(out.at(target + (k + j) * step), packed + j * bytes, bytes);
            }
        }
    }
}

template <class C>
void scatter_line(const Patches& patches, int64_t source, const C* std, const Image& image,
                  int64_t offset, int64_t n) {
    C row[kRow];
    for (int64_t k = 0; k < n; ++k) {
        for (int64_t i = 0; i < patches.w; i += kRow) {
            const int64_t m = min_of(kRow, patches.w - i);
            patches.memory.load(source + k * patches.width() + i, 1, m, row);
            for (int64_t j = 0; std && j < m; ++j) row[j] /= *std;
            image.memory.store(row, m, offset + (k * patches.w + i) * image.sx, image.sx);
        }
    }
}

// Calls line(image offset, channel, patches offset, n) for every pixel line of every run of
// neighbouring visible patches in token row y of sample b.
template <class Line>
void each_line(const Image& image, const VisibleRows& visible, const Patches& patches, int64_t b,
               int64_t y, const Line& line) {
    const uint8_t* units = visible.units(b, y);
    int64_t row = visible.first(b, y);
    for (int64_t unit = 0; unit < visible.mask.units.width; ++unit) {
        const int64_t start = unit;
        while (unit < visible.mask.units.width && !units[unit]) ++unit;
        const int64_t n = (unit - start) * visible.mask.scale.width;
        if (n == 0) continue;
        for (int64_t c = 0; c < patches.channels; ++c) {
            for (int64_t dy = 0; dy < patches.h; ++dy) {
                line(b * image.sb + c * image.sc + (y * patches.h + dy) * image.sy +
                         start * visible.mask.scale.width * patches.w * image.sx,
                     c, row * patches.width() + (c * patches.h + dy) * patches.w, n);
            }
        }
        row += n;
    }
}

template <class C>
void gather(const Image& image, const VisibleRows& visible, const Tensor& mean, const Tensor& std,
            const Patches& patches, const Extent& tokens, int threads) {
    const bool bytes = image.memory.element == kUInt8;
    const int64_t channels = image.channels;
    const Scratch numbers((2 + (bytes ? 256 : 0)) * channels * int64_t(sizeof(C)));
    const Statistics<C> by(mean, std, channels, numbers.as<C>());
    // A byte has only 256 values: each is normalised once.
    C* values = bytes ? numbers.as<C>() + 2 * channels : nullptr;
    if (values) fill_table(by, channels, values);
    parallel_for(image.batch * tokens.height, image.batch * tokens.cells() * patches.width(),
                 threads, [&](int64_t piece) {
                     each_line(
                         image, visible, patches, piece / tokens.height, piece % tokens.height,
                         [&](int64_t offset, int64_t c, int64_t target, int64_t n) {
                             gather_line<C>(image, offset, values ? values + c * 256 : nullptr, by,
                                            c, patches, target, n);
                         });
                 });
}

template <class C>
void scatter(const Patches& patches, const VisibleRows& visible, const Tensor& std,
             const Image& image, const Extent& tokens, int threads) {
    const Scratch numbers(2 * image.channels * int64_t(sizeof(C)));
    const Statistics<C> by(Tensor{}, std, image.channels, numbers.as<C>());
    parallel_for(image.batch * tokens.height, image.batch * tokens.cells() * patches.width(),
                 threads, [&](int64_t piece) {
                     each_line(image, visible, patches, piece / tokens.height,
                               piece % tokens.height,
                               [&](int64_t offset, int64_t c, int64_t source, int64_t n) {
                                   scatter_line<C>(patches, source, by.std ? by.std + c : nullptr,
                                                   image, offset, n);
                               });
                 });
}

}  // namespace

int64_t gather_patches(const Tensor& image, const Tensor& mask, const Tensor& mean,
                       const Tensor& std, const Tensor& out, int64_t patch_h, int64_t patch_w,
                       int threads) {
    const Image source(image);
    const Extent tokens = scale_of(source.size, {1, patch_h, patch_w});
    const Scratch starts(VisibleRows::scratch_bytes(mask));
    const VisibleRows visible{mask_over(mask, tokens), starts.as<int64_t>()};
    const int64_t found = visible.count(source.batch), count = out.size(0);
    if (found > count) return found;
    const Patches patches{memory_of(out), source.channels, patch_h, patch_w};
    const auto run = out.element == kFloat64 ? gather<double> : gather<float>;
    run(source, visible, mean, std, patches, tokens, threads);
    patches.memory.zero(found * patches.width(), 1, (count - found) * patches.width());
    return found;
}

int64_t gather_patches_backward(const Tensor& grad, const Tensor& mask, const Tensor& std,
                                const Tensor& image, int64_t patch_h, int64_t patch_w,
                                int threads) {
    const Image target(image);
    const Extent tokens = scale_of(target.size, {1, patch_h, patch_w});
    const Scratch starts(VisibleRows::scratch_bytes(mask));
    const VisibleRows visible{mask_over(mask, tokens), starts.as<int64_t>()};
    const int64_t found = visible.count(target.batch);
    if (found > grad.size(0)) return found;
    const Patches patches{memory_of(grad), target.channels, patch_h, patch_w};
    const auto run = image.element == kFloat64 ? scatter<double> : scatter<float>;
    run(patches, visible, std, target, tokens, threads);
    return found;
}

SIMMIM_END

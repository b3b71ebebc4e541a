// Fills the masked units of an image: out = where(masked, fill, image). A uint8 image is divided by
// 255, and any image can be normalised on the way. Also the gradient of the fill.
#include <type_traits>

#include "common/grid.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/runs.h"
#include "cpu/scratch.h"

SIMMIM_BEGIN

namespace {

// Units narrower than this many elements are selected element by element; wider ones are written a
// run at a time, and their masked pixels are not read.
constexpr int64_t kNarrow = 16;

// The pixels of an image, cut into bands (the pixel rows of one row of mask units of one sample).
struct Bands {
    ImageLayout image;  // the input
    MaskGrid mask;

    Bands(const Tensor& image, const Tensor& mask)
        : image(image_layout(image)), mask(mask_over(mask, this->image.size)) {}

    int64_t count() const { return image.batch * mask.units.rows(); }
    int64_t unit_h() const { return mask.scale.height; }
    int64_t unit_w() const { return mask.scale.width; }
    int64_t width() const { return image.size.width; }
    const uint8_t* cells(int64_t band) const { return mask.mask + band * mask.units.width; }
    int64_t sample(int64_t band) const { return band / mask.units.height; }
    int64_t top(int64_t band) const { return band % mask.units.height * unit_h(); }
};

// Expands the mask to pixels [x0, x1) of a band, `repeat` bytes a pixel, for units narrower than
// kNarrow bytes. Each unit is written as kNarrow bytes and the next one overwrites the excess, so
// `masked` needs room for kNarrow more.
void spread(const uint8_t* cells, int64_t unit_w, int64_t x0, int64_t x1, int64_t repeat,
            uint8_t* masked) {
    if (unit_w == 1 && repeat == 1) {
        std::memcpy(masked, cells + x0, size_t(x1 - x0));
        return;
    }
    const uint8_t* cell = cells + x0 / unit_w;
    int64_t pixels = unit_w - x0 % unit_w;  // left in the first unit
    for (int64_t x = x0; x < x1; x += pixels, pixels = unit_w) {
        pixels = min_of(pixels, x1 - x);
        std::memset(masked, *cell++, kNarrow);
        masked += pixels * repeat;
    }
}

// Fill and normalisation of one plane: the same constants for all elements.
template <class C, class Out>
struct Plane {
    C offset, scale;
    Out fill;
    bool scaled;  // whether offset and scale differ from 0 and 1

    static constexpr int64_t period = INT64_MAX;
    Plane from(int64_t) const { return *this; }
    C offset_at(int64_t) const { return offset; }
    C scale_at(int64_t) const { return scale; }
    Out fill_at(int64_t) const { return fill; }
};

// The same for interleaved channels: arrays in which the channels' constants repeat.
template <class C, class Out>
struct Interleaved {
    C *offset, *scale;
    Out* fill;
    bool scaled;
    int64_t period;  // elements of each array, a whole number of pixels

    Interleaved from(int64_t i) const {
        return {offset + i, scale + i, fill + i, scaled, period - i};
    }
    C offset_at(int64_t i) const { return offset[i]; }
    C scale_at(int64_t i) const { return scale[i]; }
    Out fill_at(int64_t i) const { return fill[i]; }
};

// Converts a row of numbers to C and normalises it.
template <class C, class In, class Out, class Constants>
inline void show(const In* row, Out* out, int64_t n, const Constants constants) {
    if (constants.scaled) {
        for (int64_t i = 0; i < n; ++i) {
            const C value = (C(widen(row[i])) - constants.offset_at(i)) * constants.scale_at(i);
            out[i] = Narrow<Out>::from(value);
        }
    } else {
        for (int64_t i = 0; i < n; ++i) out[i] = Narrow<Out>::from(C(widen(row[i])));
    }
}

template <class Out, class Constants>
inline void fill(Out* out, int64_t n, const Constants constants) {
    for (int64_t i = 0; i < n; ++i) out[i] = constants.fill_at(i);
}

// GCC vectorises a selection between 16-bit integers, but not between structs that hold one.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, T>;

// Replaces the masked ones of `n` numbers by the fill.
template <class Out, class Constants>
inline void hide(const uint8_t* __restrict__ masked, Out* out, int64_t n,
                 const Constants constants) {
    auto* __restrict__ bits = reinterpret_cast<Bits<Out>*>(out);
    for (int64_t i = 0; i < n; ++i) {
        const Out fill = constants.fill_at(i);
        Bits<Out> hidden;
        std::memcpy(&hidden, &fill, sizeof(Out));
        const Bits<Out> value = bits[i];
        bits[i] = masked[i] ? hidden : value;
    }
}

// As `show`, for numbers of another type than C or with gaps: copied first, kRow at a time.
template <class C, class Out, class Constants>
__attribute__((noinline)) void show_copied(const Memory& image, int64_t at, int64_t step, Out* out,
                                           int64_t n, const Constants constants) {
    C row[kRow];
    for (int64_t i = 0; i < n; i += kRow) {
        const int64_t m = min_of(kRow, n - i);
        image.load(at + i * step, step, m, row);
        show<C>(row, out + i, m, constants.from(i));
    }
}

// Writes one plane of a band, whose pixels have `pixel` contiguous elements. Input elements begin
// at offset `in` of the image and are `in_step` apart; output rows are `out_row` elements apart.
template <class C, class In, class Out, class Constants>
void write_plane(const Bands& bands, int64_t band, int64_t pixel, const Memory& image, int64_t in,
                 int64_t in_step, Out* out, int64_t out_row, bool stream,
                 const Constants constants) {
    const uint8_t* cells = bands.cells(band);
    const int64_t width = bands.width();
    const bool copied = std::is_same_v<C, In> && (in_step != 1 || image.element != kElement<C>);
    const auto show_row = [&](int64_t at, Out* to, int64_t n) {
        if (copied)
            show_copied<C>(image, at, in_step, to, n, constants);
        else
            show<C>(reinterpret_cast<const In*>(image.at(at)), to, n, constants);
    };
    if (bands.unit_w() * pixel < kNarrow) {
        uint8_t masked[kRow + kNarrow];
        const int64_t most = min_of(constants.period, kRow) / pixel;
        for (int64_t x = 0; x < width; x += most) {
            const int64_t stop = min_of(width, x + most), n = (stop - x) * pixel;
            spread(cells, bands.unit_w(), x, stop, pixel, masked);
            for (int64_t y = 0; y < bands.unit_h(); ++y) {
                Out* to = out + y * out_row + x * pixel;
                show_row(in + y * bands.image.sy + x * bands.image.sx, to, n);
                hide(masked, to, n, constants);
            }
        }
        return;
    }
    const int64_t bytes = width * pixel * int64_t(sizeof(Out));
    const bool by_line = stream && bytes <= kLineBytes;
    alignas(64) char line[kLineBytes];
    for (int64_t y = 0; y < bands.unit_h(); ++y) {
        const int64_t source = in + y * bands.image.sy;
        Out* target = by_line ? reinterpret_cast<Out*>(line) : out + y * out_row;
        for_each_run(cells, bands.mask.units.width, bands.unit_w(),
                     [&](int64_t x0, int64_t x1, bool masked) {
                         const int64_t most =
                             constants.period == INT64_MAX ? x1 - x0 : constants.period / pixel;
                         for (int64_t x = x0; x < x1; x += most) {
                             const int64_t n = min_of(most, x1 - x) * pixel;
                             Out* to = target + x * pixel;
                             if (masked)
                                 fill(to, n, constants);
                             else
                                 show_row(source + x * bands.image.sx, to, n);
                         }
                     });
        if (by_line) stream_copy(reinterpret_cast<char*>(out + y * out_row), line, bytes);
    }
}

struct Colours {
    Memory fill, mean, std;  // one number a channel, or absent
    double value;            // the fill where `fill` is absent
    double unit;             // divisor of stored numbers: 255 for bytes

    static double at(const Memory& memory, int64_t channel, double absent) {
        double number = absent;
        if (memory.base) memory.load(channel, 1, 1, &number);
        return number;
    }

    bool scaled() const { return unit != 1.0 || std.base; }

    // (v / unit - mean) / std = (v - unit * mean) * (1 / (unit * std))
    template <class C, class Out>
    Plane<C, Out> channel(int64_t c) const {
        return {C(unit * at(mean, c, 0)), C(1 / (unit * at(std, c, 1))),
                Narrow<Out>::from(C(at(fill, c, value))), scaled()};
    }
};

template <class C, class In, class Out>
void write_image(const Bands& bands, const Memory& image, Out* out, bool channels_last,
                 const Colours& colours, int threads) {
    const int64_t channels = bands.image.channels, height = bands.image.size.height,
                  width = bands.width();
    const bool stream = is_streamed(bands.image.elements() * int64_t(sizeof(Out)));
    const auto origin = [&](int64_t band) {
        return bands.image.at(bands.sample(band), 0, bands.top(band), 0);
    };
    if (!channels_last) {
        parallel_for(bands.count(), bands.image.elements(), threads, [&](int64_t band) {
            for (int64_t c = 0; c < channels; ++c) {
                const int64_t plane = bands.sample(band) * channels + c;
                write_plane<C, In>(bands, band, 1, image, origin(band) + c * bands.image.sc,
                                   bands.image.sx, out + (plane * height + bands.top(band)) * width,
                                   width, stream, colours.channel<C, Out>(c));
            }
            if (stream) finish_streams();
        });
        return;
    }
    const int64_t period = max_of<int64_t>(kRow / channels, 1) * channels;
    const Scratch arrays(period * int64_t(2 * sizeof(C) + sizeof(Out)));
    C* numbers = arrays.as<C>();
    const Interleaved<C, Out> constants{numbers, numbers + period,
                                        reinterpret_cast<Out*>(numbers + 2 * period),
                                        colours.scaled(), period};
    for (int64_t i = 0; i < period; ++i) {
        const auto one = colours.channel<C, Out>(i % channels);
        constants.offset[i] = one.offset;
        constants.scale[i] = one.scale;
        constants.fill[i] = one.fill;
    }
    parallel_for(bands.count(), bands.image.elements(), threads, [&](int64_t band) {
        write_plane<C, In>(bands, band, channels, image, origin(band), 1,
                           out + band * bands.unit_h() * width * channels, width * channels, stream,
                           constants);
        if (stream) finish_streams();
    });
}

// Contiguous numbers of 8 and 16 bits are read in place; all others, and all of float64, are first
// copied into a row of the compute type.
template <class Out>
void write_as(const Bands& bands, const Memory& image, void* out, bool channels_last,
              const Colours& colours, int threads) {
    Out* to = static_cast<Out*>(out);
    const auto write = [&](auto computed, auto read) {
        write_image<decltype(computed), decltype(read)>(bands, image, to, channels_last, colours,
                                                        threads);
    };
    if constexpr (sizeof(Out) == 8) {
        return write(double(), double());
    } else {
        const int element = channels_last || bands.image.sx == 1 ? image.element : kFloat32;
        if (image.element == kFloat64) return write(double(), double());
        if (element == kUInt8) return write(float(), uint8_t());
        if (element == kUInt16) return write(float(), uint16_t());
        if (element == kInt16) return write(float(), int16_t());
        if (element == kBFloat16) return write(float(), BFloat16());
        if (element == kFloat16) return write(float(), Float16());
        return write(float(), float());
    }
}

constexpr int kLanes = 8;  // partial sums, added up in a fixed order

// The sum of the masked elements of one channel of a band.
template <class T>
double masked_sum(const Bands& bands, int64_t band, const T* grad) {
    double lanes[kLanes] = {};
    const uint8_t* cells = bands.cells(band);
    uint8_t masked[kRow + kNarrow];
    const auto add = [&](const T* row, int64_t n, const uint8_t* where) {
        for (int64_t i = 0; i < n; i += kLanes) {
            const int64_t m = min_of<int64_t>(kLanes, n - i);
            for (int64_t j = 0; j < m; ++j) {
                const double value = double(widen(row[(i + j) * bands.image.sx]));
                lanes[j] += !where || where[i + j] ? value : 0.0;
            }
        }
    };
    for (int64_t y = 0; y < bands.unit_h(); ++y) {
        const T* row = grad + y * bands.image.sy;
        if (bands.unit_w() >= kNarrow) {
            for_each_run(cells, bands.mask.units.width, bands.unit_w(),
                         [&](int64_t x0, int64_t x1, bool on) {
                             if (on) add(row + x0 * bands.image.sx, x1 - x0, nullptr);
                         });
            continue;
        }
        for (int64_t x = 0; x < bands.width(); x += kRow) {
            const int64_t stop = min_of(bands.width(), x + kRow);
            spread(cells, bands.unit_w(), x, stop, 1, masked);
            add(row + x * bands.image.sx, stop - x, masked);
        }
    }
    double sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += lanes[i];
    return sum;
}

template <class T>
void sum_fill(const Bands& bands, const void* grad, double* sums, int threads) {
    const int64_t all = bands.count();
    parallel_for(all, bands.image.elements(), threads, [&](int64_t band) {
        const T* origin =
            static_cast<const T*>(grad) + bands.image.at(bands.sample(band), 0, bands.top(band), 0);
        for (int64_t c = 0; c < bands.image.channels; ++c) {
            sums[band * bands.image.channels + c] =
                masked_sum(bands, band, origin + c * bands.image.sc);
        }
    });
    for (int64_t band = 1; band < all; ++band) {  // always in this order
        for (int64_t c = 0; c < bands.image.channels; ++c)
            sums[c] += sums[band * bands.image.channels + c];
    }
}

}  // namespace

void mask_image(const Tensor& image, const Tensor& mask, const Tensor& fill, double value,
                const Tensor& mean, const Tensor& std, const Tensor& out, int threads) {
    const Bands bands(image, mask);
    const Colours colours{memory_of(fill), memory_of(mean), memory_of(std), value,
                          image.element == kUInt8 ? 255.0 : 1.0};
    const int64_t channels = bands.image.channels;
    const bool channels_last = channels > 1 && out.stride(3) == channels;
    const auto run = out.element == kFloat32    ? write_as<float>
                     : out.element == kFloat64  ? write_as<double>
                     : out.element == kBFloat16 ? write_as<BFloat16>
                                                : write_as<Float16>;
    run(bands, memory_of(image), out.data, channels_last, colours, threads);
}

void mask_image_fill_gradient(const Tensor& grad, const Tensor& mask, const Tensor& fill,
                              int threads) {
    const Bands bands(grad, mask);
    const int64_t channels = bands.image.channels;
    const int64_t numbers = max_of<int64_t>(bands.count(), 1) * channels;
    const Scratch sums(numbers * int64_t(sizeof(double)));
    for (int64_t i = 0; i < numbers; ++i) sums.as<double>()[i] = 0.0;
    const auto run = grad.element == kFloat32    ? sum_fill<float>
                     : grad.element == kFloat64  ? sum_fill<double>
                     : grad.element == kBFloat16 ? sum_fill<BFloat16>
                                                 : sum_fill<Float16>;
    run(bands, grad.data, sums.as<double>(), threads);
    memory_of(fill).store(sums.as<double>(), channels, 0, 1);
}

SIMMIM_END

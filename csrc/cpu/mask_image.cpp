// Masked units of an image become one colour: out = where(masked, fill, image), where a uint8 image
// is divided by 255 and any image is normalised on the way; and the gradient of the colour.
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
    ImageLayout image;  // that is read
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

// The mask of the pixels [x0, x1) of a band, `repeat` bytes a pixel, for units below kNarrow bytes.
// Each unit is written as kNarrow bytes, of which the next one overwrites what is too much; so
// `masked` has room for kNarrow more.
void spread(const uint8_t* cells, int64_t unit_w, int64_t x0, int64_t x1, int64_t repeat,
            uint8_t* masked) {
    if (unit_w == 1 && repeat == 1) {
        std::memcpy(masked, cells + x0, size_t(x1 - x0));
        return;
    }
    const uint8_t* cell = cells + x0 / unit_w;
    int64_t pixels = unit_w - x0 % unit_w;  // that the first unit still has
    for (int64_t x = x0; x < x1; x += pixels, pixels = unit_w) {
        pixels = min_of(pixels, x1 - x);
        std::memset(masked, *cell++, kNarrow);
        masked += pixels * repeat;
    }
}

// Whether the numbers of an image are never taken as they are stored: bytes.
template <class In>
constexpr bool kAlwaysScaled = false;
template <>
constexpr bool kAlwaysScaled<uint8_t> = true;

// What is done to the elements of one plane of the output: constants, the same for all of them.
template <class C, class Out>
struct Plane {
    C offset, scale;
    Out fill;
    bool scaled;  // offset and scale are not 0 and 1

    static constexpr int64_t period = INT64_MAX;
    C offset_at(int64_t) const { return offset; }
    C scale_at(int64_t) const { return scale; }
    Out fill_at(int64_t) const { return fill; }
};

// The same for pixels whose channels lie side by side: the channels' constants over and over.
template <class C, class Out>
struct Interleaved {
    C offset[kRow], scale[kRow];
    Out fill[kRow];
    bool scaled;
    int64_t period;  // how many elements of the arrays are in use: whole pixels

    C offset_at(int64_t i) const { return offset[i]; }
    C scale_at(int64_t i) const { return scale[i]; }
    Out fill_at(int64_t i) const { return fill[i]; }
};

template <bool kScaled, class C, class In, class Out, class Constants>
inline Out shown(In value, const Constants& constants, int64_t i) {
    C v = C(widen(value));
    if (kScaled) v = (v - constants.offset_at(i)) * constants.scale_at(i);
    return Narrow<Out>::from(v);
}

template <bool kScaled, class C, class In, class Out, class Constants>
void show_as(const In* in, int64_t in_step, Out* out, int64_t out_step, int64_t n,
             const Constants& constants) {
    if (in_step == 1 && out_step == 1) {
        for (int64_t i = 0; i < n; ++i) out[i] = shown<kScaled, C, In, Out>(in[i], constants, i);
    } else {
        for (int64_t i = 0; i < n; ++i)
            out[i * out_step] = shown<kScaled, C, In, Out>(in[i * in_step], constants, i);
    }
}

template <class C, class In, class Out, class Constants>
void show(const In* in, int64_t in_step, Out* out, int64_t out_step, int64_t n,
          const Constants& constants) {
    if (kAlwaysScaled<In> || constants.scaled) {
        show_as<true, C>(in, in_step, out, out_step, n, constants);
    } else {
        show_as<kAlwaysScaled<In>, C>(in, in_step, out, out_step, n, constants);
    }
}

template <class Out, class Constants>
void hide(Out* out, int64_t out_step, int64_t n, const Constants& constants) {
    if (out_step == 1) {
        for (int64_t i = 0; i < n; ++i) out[i] = constants.fill_at(i);
    } else {
        for (int64_t i = 0; i < n; ++i) out[i * out_step] = constants.fill_at(i);
    }
}

template <bool kScaled, class C, class In, class Out, class Constants>
void select_as(const uint8_t* __restrict__ masked, const In* __restrict__ in, int64_t in_step,
               Out* __restrict__ out, int64_t out_step, int64_t n, const Constants& constants) {
    if (in_step == 1 && out_step == 1) {
        for (int64_t i = 0; i < n; ++i) {
            const Out value = shown<kScaled, C, In, Out>(in[i], constants, i);
            const Out fill = constants.fill_at(i);
            out[i] = masked[i] ? fill : value;
        }
    } else {
        for (int64_t i = 0; i < n; ++i) {
            const Out value = shown<kScaled, C, In, Out>(in[i * in_step], constants, i);
            const Out fill = constants.fill_at(i);
            out[i * out_step] = masked[i] ? fill : value;
        }
    }
}

template <class C, class In, class Out, class Constants>
void select(const uint8_t* masked, const In* in, int64_t in_step, Out* out, int64_t out_step,
            int64_t n, const Constants& constants) {
    if (kAlwaysScaled<In> || constants.scaled) {
        select_as<true, C>(masked, in, in_step, out, out_step, n, constants);
    } else {
        select_as<kAlwaysScaled<In>, C>(masked, in, in_step, out, out_step, n, constants);
    }
}

// One plane of a band: `pixel` elements side by side make a pixel of it.
template <class C, class In, class Out, class Constants>
void write_plane(const Bands& bands, int64_t band, int64_t pixel, const In* in, int64_t in_step,
                 Out* out, int64_t out_row, int64_t out_step, bool stream,
                 const Constants& constants) {
    const uint8_t* cells = bands.cells(band);
    const int64_t width = bands.width();
    if (bands.unit_w() * pixel < kNarrow) {
        uint8_t masked[kRow + kNarrow];
        const int64_t most = min_of<int64_t>(constants.period, kRow) / pixel;
        for (int64_t x = 0; x < width; x += most) {
            const int64_t stop = min_of(width, x + most);
            spread(cells, bands.unit_w(), x, stop, pixel, masked);
            for (int64_t y = 0; y < bands.unit_h(); ++y) {
                select<C>(masked, in + y * bands.image.sy + x * bands.image.sx, in_step,
                          out + y * out_row + x * pixel * out_step, out_step, (stop - x) * pixel,
                          constants);
            }
        }
        return;
    }
    const int64_t bytes = width * pixel * int64_t(sizeof(Out));
    const bool by_line = stream && bytes <= kLineBytes;
    alignas(64) char line[kLineBytes];
    for (int64_t y = 0; y < bands.unit_h(); ++y) {
        const In* source = in + y * bands.image.sy;
        Out* target = by_line ? reinterpret_cast<Out*>(line) : out + y * out_row;
        for_each_run(cells, bands.mask.units.width, bands.unit_w(),
                     [&](int64_t x0, int64_t x1, bool masked) {
                         const int64_t most =
                             constants.period == INT64_MAX ? x1 - x0 : constants.period / pixel;
                         for (int64_t x = x0; x < x1; x += most) {
                             const int64_t n = min_of(most, x1 - x) * pixel;
                             Out* to = target + x * pixel * out_step;
                             if (masked) hide(to, out_step, n, constants);
                             if (!masked)
                                 show<C>(source + x * bands.image.sx, in_step, to, out_step, n,
                                         constants);
                         }
                     });
        if (by_line) stream_copy(reinterpret_cast<char*>(out + y * out_row), line, bytes);
    }
}

struct Colours {
    Memory fill, mean, std;  // one number a channel each, or absent
    double value;            // the fill where there is no tensor of it
    double unit;             // what a stored number is divided by: 255 for bytes

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
void write_image(const Bands& bands, const In* image, Out* out, bool channels_last,
                 const Colours& colours, int threads) {
    const int64_t channels = bands.image.channels, height = bands.image.size.height,
                  width = bands.width();
    const int64_t all = bands.count();
    const bool stream = is_streamed(bands.image.elements() * int64_t(sizeof(Out)));
    const auto origin = [&](int64_t band) {
        return image + bands.image.at(bands.sample(band), 0, bands.top(band), 0);
    };
    if (channels_last && channels <= kRow) {
        Interleaved<C, Out> constants;
        constants.scaled = colours.scaled();
        constants.period = kRow / channels * channels;
        for (int64_t i = 0; i < constants.period; ++i) {
            const auto one = colours.channel<C, Out>(i % channels);
            constants.offset[i] = one.offset;
            constants.scale[i] = one.scale;
            constants.fill[i] = one.fill;
        }
        parallel_for(all, bands.image.elements(), threads, [&](int64_t band) {
            write_plane<C>(bands, band, channels, origin(band), 1,
                           out + band * bands.unit_h() * width * channels, width * channels, 1,
                           stream, constants);
            if (stream) finish_streams();
        });
        return;
    }
    const int64_t step = channels_last ? channels : 1;
    parallel_for(all, bands.image.elements(), threads, [&](int64_t band) {
        const int64_t b = bands.sample(band), y = bands.top(band);
        for (int64_t c = 0; c < channels; ++c) {
            const int64_t place = channels_last ? (b * height + y) * width * channels + c
                                                : ((b * channels + c) * height + y) * width;
            write_plane<C>(bands, band, 1, origin(band) + c * bands.image.sc, bands.image.sx,
                           out + place, width * step, step, stream && step == 1,
                           colours.channel<C, Out>(c));
        }
        if (stream) finish_streams();
    });
}

template <class In, class Out>
void write_as(const Bands& bands, const void* image, void* out, bool channels_last,
              const Colours& colours, int threads) {
    const In* in = static_cast<const In*>(image);
    Out* to = static_cast<Out*>(out);
    if constexpr (sizeof(In) == 8 || sizeof(Out) == 8)
        write_image<double, In, Out>(bands, in, to, channels_last, colours, threads);
    else
        write_image<float, In, Out>(bands, in, to, channels_last, colours, threads);
}

template <class In>
void write_from(const Bands& bands, const void* image, void* out, int out_element,
                bool channels_last, const Colours& colours, int threads) {
    switch (out_element) {
        case kFloat32:
            return write_as<In, float>(bands, image, out, channels_last, colours, threads);
        case kFloat64:
            return write_as<In, double>(bands, image, out, channels_last, colours, threads);
        case kBFloat16:
            return write_as<In, BFloat16>(bands, image, out, channels_last, colours, threads);
        default:
            return write_as<In, Float16>(bands, image, out, channels_last, colours, threads);
    }
}

constexpr int kLanes = 8;  // partial sums side by side, in a fixed order

// Adds the masked elements of one channel of a band.
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
    const auto run = image.element == kFloat32    ? write_from<float>
                     : image.element == kFloat64  ? write_from<double>
                     : image.element == kBFloat16 ? write_from<BFloat16>
                     : image.element == kFloat16  ? write_from<Float16>
                     : image.element == kUInt16   ? write_from<uint16_t>
                     : image.element == kInt16    ? write_from<int16_t>
                                                  : write_from<uint8_t>;
    run(bands, image.data, out.data, out.element, channels_last, colours, threads);
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

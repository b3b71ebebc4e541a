// A box of every image resized to one size, in one pass over a batch: rows first, so that nothing
// but the box is read, then columns. Bytes have a path of their own (resize_bytes.h).
#include "cpu/parallel.h"
#include "cpu/resize_axis.h"
#include "cpu/resize_bytes.h"
#include "cpu/rows.h"
#include "cpu/scratch.h"

SIMMIM_BEGIN

namespace {

// What becomes of the numbers of one row of one channel, `width` of them.
template <class C>
struct Sink {
    Memory out;
    bool divided;  // bytes become numbers from 0 to 1

    template <class T>
    void store_whole(const C* row, int64_t n, int64_t at, C least, C most) const {
        // Added to a number of less than half its size and taken away again, it rounds a half to
        // the even number.
        constexpr C kWhole = C(sizeof(C) == 4 ? 12582912.0 : 6755399441055744.0);
        T* target = reinterpret_cast<T*>(out.at(at));
        for (int64_t i = 0; i < n; ++i)
            target[i] = T(min_of(max_of((row[i] + kWhole) - kWhole, least), most));
    }

    void store(C* row, int64_t n, int64_t at) const {
        switch (out.element) {
            case kUInt8:
                return store_whole<uint8_t>(row, n, at, 0, 255);
            case kUInt16:
                return store_whole<uint16_t>(row, n, at, 0, 65535);
            case kInt16:
                return store_whole<int16_t>(row, n, at, -32768, 32767);
            default:
                if (divided)
                    for (int64_t i = 0; i < n; ++i) row[i] = row[i] / C(255);
                out.store(row, n, at, 1);
        }
    }
};

// One sample: where its box begins in memory, and the result's place in numbers of it.
struct Sample {
    Memory image;
    int64_t channels, origin, sc, sy, sx, out;
};

// Scratch of a sample: the rows of the box that a row of the result needs, one that they make, and
// one of the result.
template <class C>
int64_t row_bytes(int64_t box_w, int64_t width, int64_t taps) {
    return (taps + 1) * whole_lines(box_w * int64_t(sizeof(C))) +
           whole_lines(width * int64_t(sizeof(C)));
}

// The outputs of a row of finite numbers: no tap needs to be left out, and the sums of several
// outputs run side by side.
template <int K, class C>
SIMMIM_INLINE void weigh_finite(const C* line, const Axis& xs, int64_t n, bool flip, C* made) {
    for (int64_t x = 0; x < n; ++x) {
        const double* weights = xs.weights + x * xs.taps;
        const C* from = line + xs.first[x];
        C sum = 0;
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) sum += C(weights[k]) * from[k];
        for (int64_t k = K; k < xs.taps; ++k) sum += C(weights[k]) * from[k];
        made[flip ? n - 1 - x : x] = sum;
    }
}

template <class C>
void resize_numbers(const Sample& sample, const Resize& down, const Resize& across, const Axis& ys,
                    const Axis& xs, bool flip, const Sink<C>& sink, char* memory) {
    const int64_t step = whole_lines(across.extent * int64_t(sizeof(C)));
    C* line = reinterpret_cast<C*>(memory);
    C* made = reinterpret_cast<C*>(memory + (ys.taps + 1) * step);
    // a row of the box lies where the one lay that is `taps` above it
    const auto place = [&](int64_t row) {
        return reinterpret_cast<C*>(memory + (1 + row % ys.taps) * step);
    };
    for (int64_t c = 0; c < sample.channels; ++c) {
        int64_t next = 0;
        for (int64_t y = 0; y < down.out; ++y) {
            const int64_t first = ys.first[y];
            for (next = max_of(next, first); next < first + ys.taps; ++next)
                sample.image.load(sample.origin + c * sample.sc + next * sample.sy, sample.sx,
                                  across.extent, place(next));
            for (int64_t x = 0; x < across.extent; ++x) line[x] = 0;
            for (int64_t k = 0; k < ys.taps; ++k) {
                const C weight = C(ys.weights[y * ys.taps + k]);
                if (weight == 0) continue;  // and what is not finite there adds nothing
                const C* read = place(first + k);
                for (int64_t x = 0; x < across.extent; ++x) line[x] += weight * read[x];
            }
            if (is_integer(sample.image.element)) {
                with_taps(xs.taps, [&](auto taps) {
                    weigh_finite<decltype(taps)::count>(line, xs, across.out, flip, made);
                });
            } else {
                for (int64_t x = 0; x < across.out; ++x) {
                    const double* weights = xs.weights + x * xs.taps;
                    const C* from = line + xs.first[x];
                    C sum = 0;
                    for (int64_t k = 0; k < xs.taps; ++k)
                        if (weights[k] != 0) sum += C(weights[k]) * from[k];
                    made[flip ? across.out - 1 - x : x] = sum;
                }
            }
            sink.store(made, across.out, sample.out + (c * down.out + y) * across.out);
        }
    }
}

}  // namespace

void crop_resize(const TensorList& images, const Tensor& boxes, const Tensor& flip, bool cubic,
                 bool antialias, const Tensor& out, int threads) {
    const bool batch = images.count == 1 && images[0].dims == 4;
    const int element = images[0].element;
    const bool bytes = element == kUInt8 && out.element == kUInt8;
    const bool wide =
        element == kFloat64 || element == kUInt16 || element == kInt16 || out.element == kFloat64;
    const int64_t height = out.size(2), width = out.size(3), channels = out.size(1);
    const int64_t each = channels * height * width;
    parallel_for(out.size(0), out.numel(), threads, [&](int64_t b) {
        const Tensor& image = images[batch ? 0 : b];
        const int64_t* box = boxes.as<int64_t>() + 4 * b;
        const Resize down{box[2], height, cubic, antialias},
            across{box[3], width, cubic, antialias};
        const int64_t sc = image.stride(-3), sy = image.stride(-2), sx = image.stride(-1);
        const int64_t origin = (batch ? b * image.stride(0) : 0) + box[0] * sy + box[1] * sx;
        const bool mirrored = flip && flip.as<uint8_t>()[b] != 0;
        const Scratch tables(Axis::bytes(down) + Axis::bytes(across));
        const Axis ys(down, tables.as<char>());
        const Axis xs(across, tables.as<char>() + Axis::bytes(down));
        if (bytes) {
            const ByteImage source{image.as<uint8_t>() + origin, channels, sc, sy, sx};
            if (resize_bytes(source, down, across, ys, xs, mirrored, out.as<uint8_t>() + b * each))
                return;
        }
        const Sample sample{memory_of(image), channels, origin, sc, sy, sx, b * each};
        const bool divided = element == kUInt8;
        if (wide) {
            const Scratch rows(row_bytes<double>(box[3], width, ys.taps));
            resize_numbers<double>(sample, down, across, ys, xs, mirrored,
                                   {memory_of(out), divided}, rows.as<char>());
        } else {
            const Scratch rows(row_bytes<float>(box[3], width, ys.taps));
            resize_numbers<float>(sample, down, across, ys, xs, mirrored, {memory_of(out), divided},
                                  rows.as<char>());
        }
    });
}

SIMMIM_END

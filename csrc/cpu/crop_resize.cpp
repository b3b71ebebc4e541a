// Crops a box from every image of a batch and resizes it: first vertically (rows), so that only the
// box is read, then horizontally (columns).
#include "cpu/parallel.h"
#include "cpu/resize_bytes.h"
#include "cpu/resize_numbers.h"

SIMMIM_BEGIN

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
        const Sample sample{memory_of(image), channels, origin, sc, sy, sx, b * each};
        if (bytes && resize_bytes(sample, down, across, ys, xs, mirrored, out.as<uint8_t>()))
            return;
        if (wide)
            resize_numbers<double>(sample, down, across, ys, xs, mirrored, memory_of(out));
        else
            resize_numbers<float>(sample, down, across, ys, xs, mirrored, memory_of(out));
    });
}

SIMMIM_END

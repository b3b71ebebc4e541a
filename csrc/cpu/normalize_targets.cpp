// Sliding-window normalisation of a whole image.
#include "cpu/address.h"
#include "cpu/parallel.h"
#include "cpu/window_norm.h"

SIMMIM_BEGIN

namespace {

// Planes are cut into bands of rows, so that one large plane occupies every thread. A band starts
// by summing a window of rows, so it is never shorter than one.
constexpr int64_t kBandRows = 256;

struct Job {
    Plane image, out;  // channel 0 of sample 0
    int64_t image_sb, image_sc, out_sb, out_sc;
    Memory std;
    int64_t channels, window;
    double eps;
};

template <class C>
void normalize_band(const Job& job, int64_t plane, int64_t first, int64_t last, char* scratch) {
    const int64_t b = plane / job.channels, c = plane % job.channels;
    Plane image = job.image, out = job.out;
    image.offset += b * job.image_sb + c * job.image_sc;
    out.offset += b * job.out_sb + c * job.out_sc;
    WindowRows<C> rows(image, job.window, stored_eps(job.eps, image.memory.element, job.std, c),
                       scratch);
    C* row = reinterpret_cast<C*>(scratch + WindowRows<C>::scratch_bytes(image.width, job.window));
    const bool in_place = out.sx == 1 && out.memory.element == kElement<C>;
    for (int64_t y = first; y < last; ++y) {
        const int64_t offset = out.offset + y * out.sy;
        rows.seek(y);
        if (in_place) {
            rows.write(0, image.width, reinterpret_cast<C*>(out.memory.at(offset)));
        } else {
            rows.write(0, image.width, row);
            out.memory.store(row, image.width, offset, out.sx);
        }
    }
}

}  // namespace

int64_t normalize_targets_scratch(int64_t width, int64_t window, int element) {
    return whole_lines(element == kFloat64
                           ? WindowRows<double>::scratch_bytes(width, window) + 8 * width
                           : WindowRows<float>::scratch_bytes(width, window) + 4 * width);
}

void normalize_targets(Address image, int element, int64_t i_sb, int64_t i_sc, int64_t i_sy,
                       int64_t i_sx, Address out, int out_element, int64_t o_sb, int64_t o_sc,
                       int64_t o_sy, int64_t o_sx, int64_t batch, int64_t channels, int64_t height,
                       int64_t width, int64_t window, double eps, Address std, int std_element,
                       Address scratch, int64_t scratch_bytes, int threads) {
    const Job job{{{image.as<char>(), element}, 0, i_sy, i_sx, height, width},
                  {{out.as<char>(), out_element}, 0, o_sy, o_sx, height, width},
                  i_sb,
                  i_sc,
                  o_sb,
                  o_sc,
                  {std.as<char>(), std_element},
                  channels,
                  window,
                  eps};
    const auto run = element == kFloat64 ? normalize_band<double> : normalize_band<float>;
    const int64_t rows = max_of(kBandRows, min_of(window, 2 * height));
    const int64_t bands = (height + rows - 1) / rows, pieces = batch * channels * bands;
    parallel_for(threads, batch * channels * height * width, threads, [&](int64_t part) {
        char* own = scratch.as<char>() + part * scratch_bytes;
        for (int64_t i = pieces * part / threads; i < pieces * (part + 1) / threads; ++i) {
            const int64_t first = i % bands * rows;
            run(job, i / bands, first, min_of(height, first + rows), own);
        }
    });
}

SIMMIM_END

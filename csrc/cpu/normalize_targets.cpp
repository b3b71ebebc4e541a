// Sliding-window normalisation of a whole image.
#include "common/grid.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/window_norm.h"

SIMMIM_BEGIN

namespace {

// Planes are cut into bands of rows, so that one large plane occupies every thread. A band starts
// by summing a window of rows, so it is never shorter than one.
constexpr int64_t kBandRows = 256;

struct Job {
    Memory image, out, std;
    ImageLayout from, to;
    int64_t window;
    double eps;

    static Plane plane(const Memory& memory, const ImageLayout& of, int64_t b, int64_t c) {
        return {memory, of.at(b, c, 0, 0), of.sy, of.sx, of.size.height, of.size.width};
    }
};

template <class C>
void normalize_band(const Job& job, int64_t plane, int64_t first, int64_t last, char* scratch) {
    const int64_t b = plane / job.from.channels, c = plane % job.from.channels;
    const Plane image = Job::plane(job.image, job.from, b, c);
    const Plane out = Job::plane(job.out, job.to, b, c);
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

template <class C>
void normalize(const Job& job, int threads) {
    const int64_t height = job.from.size.height, width = job.from.size.width;
    const int64_t rows = max_of(kBandRows, min_of(job.window, 2 * height));
    const int64_t bands = (height + rows - 1) / rows;
    const int64_t pieces = job.from.batch * job.from.channels * bands;
    const int64_t own =
        whole_lines(WindowRows<C>::scratch_bytes(width, job.window) + int64_t(sizeof(C)) * width);
    const Scratch scratch(threads * own);
    parallel_for(threads, job.from.elements(), threads, [&](int64_t part) {
        for (int64_t i = pieces * part / threads; i < pieces * (part + 1) / threads; ++i) {
            const int64_t first = i % bands * rows;
            normalize_band<C>(job, i / bands, first, min_of(height, first + rows),
                              scratch.as<char>() + part * own);
        }
    });
}

}  // namespace

void normalize_targets(const Tensor& image, const Tensor& std, const Tensor& out, int64_t window,
                       double eps, int threads) {
    const Job job{memory_of(image),
                  memory_of(out),
                  memory_of(std),
                  image_layout(image),
                  image_layout(out),
                  window,
                  eps};
    if (image.element == kFloat64) {
        normalize<double>(job, threads);
    } else {
        normalize<float>(job, threads);
    }
}

SIMMIM_END

// Per-patch normalisation of a whole image.
#include "cpu/parallel.h"
#include "cpu/patch_norm.h"
#include "cpu/scratch.h"

SIMMIM_BEGIN

namespace {

struct Job {
    Channels image;  // of sample 0
    Memory out;
    ImageLayout from, to;
    int64_t patch;
    double eps;
};

// Normalises one row of patches. `out` may have another type and layout than `image`, and must not
// share its memory.
template <class C>
void normalize_row(const Job& job, int64_t b, int64_t y, char* scratch) {
    const int64_t width = job.from.size.width;
    Channels image = job.image;
    image.offset += b * job.from.sb;
    PatchRows<C> rows(image, job.patch, job.eps, scratch);
    C* row = reinterpret_cast<C*>(scratch + PatchRows<C>::scratch_bytes(width));
    const bool in_place = job.to.sx == 1 && job.out.element == kElement<C>;
    rows.measure(y, 0, width / job.patch);
    for (int64_t c = 0; c < image.count; ++c) {
        for (int64_t dy = 0; dy < job.patch; ++dy) {
            const int64_t offset = job.to.at(b, c, y + dy, 0);
            if (in_place) {
                rows.write(c, dy, reinterpret_cast<C*>(job.out.at(offset)));
            } else {
                rows.write(c, dy, row);
                job.out.store(row, width, offset, job.to.sx);
            }
        }
    }
}

template <class C>
void normalize(const Job& job, int threads) {
    const int64_t width = job.from.size.width;
    const int64_t bands = job.from.size.height / job.patch, pieces = job.from.batch * bands;
    const int64_t own =
        whole_lines(PatchRows<C>::scratch_bytes(width) + int64_t(sizeof(C)) * width);
    const Scratch scratch(threads * own);
    parallel_for(threads, job.from.elements(), threads, [&](int64_t part) {
        for (int64_t i = pieces * part / threads; i < pieces * (part + 1) / threads; ++i)
            normalize_row<C>(job, i / bands, i % bands * job.patch,
                             scratch.as<char>() + part * own);
    });
}

}  // namespace

void normalize_patches(const Tensor& image, const Tensor& mean, const Tensor& std,
                       const Tensor& out, int64_t patch, double eps, int threads) {
    const ImageLayout from = image_layout(image);
    const Job job{
        channels_of(image, mean, std), memory_of(out), from, image_layout(out), patch, eps};
    if (image.element == kFloat64) {
        normalize<double>(job, threads);
    } else {
        normalize<float>(job, threads);
    }
}

SIMMIM_END

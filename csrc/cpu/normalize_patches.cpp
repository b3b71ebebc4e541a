// Per-patch normalisation of a whole image.
#include "cpu/address.h"
#include "cpu/parallel.h"
#include "cpu/patch_norm.h"

SIMMIM_BEGIN

namespace {

struct Job {
    Channels image, out;  // of sample 0; `out` has no mean and std
    int64_t image_sb, out_sb, width, patch;
    double eps;
};

// One row of patches. `out` may be `image` in another type or layout, never the same memory.
template <class C>
void normalize_row(const Job& job, int64_t b, int64_t y, char* scratch) {
    Channels image = job.image;
    image.offset += b * job.image_sb;
    PatchRows<C> rows(image, job.patch, job.eps, scratch);
    C* row = reinterpret_cast<C*>(scratch + PatchRows<C>::scratch_bytes(job.width));
    const Channels& out = job.out;
    const bool in_place = out.sx == 1 && out.memory.element == kElement<C>;
    rows.measure(y, 0, job.width / job.patch);
    for (int64_t c = 0; c < image.count; ++c) {
        for (int64_t dy = 0; dy < job.patch; ++dy) {
            const int64_t offset = b * job.out_sb + c * out.sc + (y + dy) * out.sy;
            if (in_place) {
                rows.write(c, dy, reinterpret_cast<C*>(out.memory.at(offset)));
            } else {
                rows.write(c, dy, row);
                out.memory.store(row, job.width, offset, out.sx);
            }
        }
    }
}

}  // namespace

int64_t normalize_patches_scratch(int64_t width, int element) {
    return whole_lines(element == kFloat64 ? PatchRows<double>::scratch_bytes(width) + 8 * width
                                           : PatchRows<float>::scratch_bytes(width) + 4 * width);
}

void normalize_patches(Address image, int element, int64_t i_sb, int64_t i_sc, int64_t i_sy,
                       int64_t i_sx, Address out, int out_element, int64_t o_sb, int64_t o_sc,
                       int64_t o_sy, int64_t o_sx, int64_t batch, int64_t channels, int64_t height,
                       int64_t width, int64_t patch, double eps, Address mean, int mean_element,
                       Address std, int std_element, Address scratch, int64_t scratch_bytes,
                       int threads) {
    const Memory none{nullptr, kFloat32};
    const Job job{{{image.as<char>(), element},
                   0,
                   i_sc,
                   i_sy,
                   i_sx,
                   channels,
                   {mean.as<char>(), mean_element},
                   {std.as<char>(), std_element}},
                  {{out.as<char>(), out_element}, 0, o_sc, o_sy, o_sx, channels, none, none},
                  i_sb,
                  o_sb,
                  width,
                  patch,
                  eps};
    const auto run = element == kFloat64 ? normalize_row<double> : normalize_row<float>;
    const int64_t bands = height / patch, pieces = batch * bands;
    parallel_for(threads, batch * channels * height * width, threads, [&](int64_t part) {
        char* own = scratch.as<char>() + part * scratch_bytes;
        for (int64_t i = pieces * part / threads; i < pieces * (part + 1) / threads; ++i)
            run(job, i / bands, i % bands * patch, own);
    });
}

SIMMIM_END

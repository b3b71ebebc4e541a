// Exactly `count` of `units` cells per sample: those with the smallest (score, position), where the
// scores are Philox words of (seed, epoch, sample id, position).
#include "common/grid.h"
#include "cpu/index_lists.h"
#include "cpu/parallel.h"
#include "cpu/philox_lanes.h"
#include "cpu/scratch.h"

SIMMIM_BEGIN

namespace {

// Writes the scores of all units, padded with the largest score to `padded`, a multiple of
// kPhiloxWords.
void fill_scores(uint64_t id, int64_t units, int64_t padded, uint64_t seed, uint32_t epoch,
                 uint32_t* scores) {
    for (int64_t i = 0; i < padded; i += kPhiloxWords) {
        philox_words(uint32_t(i / 4), epoch, uint32_t(id), uint32_t(id >> 32), uint32_t(seed),
                     uint32_t(seed >> 32), scores + i);
    }
    for (int64_t i = units; i < padded; ++i) scores[i] = 0xFFFFFFFFu;
}

int64_t count_below(const uint32_t* scores, int64_t padded, uint32_t bound) {
    constexpr int64_t kPart = 1 << 20;  // no 32-bit lane overflows
    int64_t below = 0;
    for (int64_t start = 0; start < padded; start += kPart) {
        const int64_t stop = min_of(padded, start + kPart);
        uint32_t part = 0;
        for (int64_t i = start; i < stop; ++i) part += scores[i] < bound;
        below += part;
    }
    return below;
}

struct Threshold {
    uint32_t bound;  // units with scores below it are masked,
    int64_t ties;    // and the first this many whose scores equal it
};

// Finds the bound for `count` masked units, 0 < count < units. Scores are uniform, so interpolation
// search takes 3 to 5 counting passes; every third pass bisects, which bounds the worst case.
Threshold find_threshold(const uint32_t* scores, int64_t units, int64_t padded, int64_t count) {
    uint64_t low = 0, high = uint64_t(1) << 32;
    int64_t below_low = 0, below_high = units;
    for (int pass = 1; high - low > 1; ++pass) {
        uint64_t middle = low + (high - low) / 2;
        if (pass % 3 != 0) {
            const uint64_t part =
                (high - low) * uint64_t(count - below_low) / uint64_t(below_high - below_low);
            middle = min_of(low + (part ? part : 1), high - 1);
        }
        const int64_t below = count_below(scores, padded, uint32_t(middle));
        if (below == count) return {uint32_t(middle), 0};
        if (below < count) {
            low = middle;
            below_low = below;
        } else {
            high = middle;
            below_high = below;
        }
    }
    return {uint32_t(low), count - below_low};
}

void write_mask(const uint32_t* scores, int64_t units, const Threshold& threshold, uint8_t* mask) {
    for (int64_t i = 0; i < units; ++i) mask[i] = scores[i] < threshold.bound;
    int64_t ties = threshold.ties;
    for (int64_t i = 0; ties > 0; ++i) {
        if (scores[i] != threshold.bound) continue;
        mask[i] = 1;
        --ties;
    }
}

}  // namespace

void random_mask(const Tensor& ids, uint64_t seed, uint32_t epoch, const Tensor& mask,
                 const Tensor& masked, const Tensor& visible, int threads) {
    const int64_t batch = mask.size(0), units = extent_from(mask, 1).cells();
    const int64_t count = masked.size(1);
    const int64_t padded = (units + kPhiloxWords - 1) / kPhiloxWords * kPhiloxWords;
    const Scratch scratch(threads * padded * int64_t(sizeof(uint32_t)));
    // One slice of scratch for each of `threads` contiguous ranges of samples. A unit costs as much
    // as several copied elements.
    parallel_for(threads, 4 * batch * units, threads, [&](int64_t part) {
        uint32_t* scores = scratch.as<uint32_t>() + part * padded;
        for (int64_t b = batch * part / threads; b < batch * (part + 1) / threads; ++b) {
            uint8_t* row = mask.as<uint8_t>() + b * units;
            if (count == 0 || count == units) {
                std::memset(row, count > 0, size_t(units));
            } else {
                fill_scores(uint64_t(ids.as<int64_t>()[b]), units, padded, seed, epoch, scores);
                write_mask(scores, units, find_threshold(scores, units, padded, count), row);
            }
            write_index_lists(row, units, count, masked.as<int32_t>() + b * count,
                              visible.as<int32_t>() + b * (units - count));
        }
    });
}

SIMMIM_END

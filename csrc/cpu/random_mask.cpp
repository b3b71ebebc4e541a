// Exactly `count` of `units` cells per sample: those with the smallest (score, position), where the
// scores are Philox words of (seed, epoch, sample id, position).
#include "common/philox.h"
#include "cpu/address.h"
#include "cpu/parallel.h"

SIMMIM_BEGIN

namespace {

constexpr int kLanes = 16;

// Four words for each of kLanes consecutive counters; a loop over lanes in every round, so that the
// 32x32-bit products become vector instructions.
void philox_lanes(uint32_t first, uint32_t epoch, uint64_t id, uint64_t seed, uint32_t* words) {
    uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
    for (int i = 0; i < kLanes; ++i) {
        c0[i] = first + uint32_t(i);
        c1[i] = epoch;
        c2[i] = uint32_t(id);
        c3[i] = uint32_t(id >> 32);
    }
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        for (int i = 0; i < kLanes; ++i) {
            const uint64_t p0 = uint64_t(0xD2511F53u) * c0[i];
            const uint64_t p1 = uint64_t(0xCD9E8D57u) * c2[i];
            const uint32_t n0 = uint32_t(p1 >> 32) ^ c1[i] ^ k0;
            const uint32_t n2 = uint32_t(p0 >> 32) ^ c3[i] ^ k1;
            c1[i] = uint32_t(p1);
            c3[i] = uint32_t(p0);
            c0[i] = n0;
            c2[i] = n2;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < kLanes; ++i) {
        words[4 * i] = c0[i];
        words[4 * i + 1] = c1[i];
        words[4 * i + 2] = c2[i];
        words[4 * i + 3] = c3[i];
    }
}

void fill_scores(uint64_t id, int64_t units, uint64_t seed, uint32_t epoch, uint32_t* scores) {
    uint32_t words[4 * kLanes];
    for (int64_t i = 0; i < units; i += 4 * kLanes) {
        philox_lanes(uint32_t(i / 4), epoch, id, seed, words);
        const int64_t n = min_of<int64_t>(4 * kLanes, units - i);
        for (int64_t j = 0; j < n; ++j) scores[i + j] = words[j];
    }
}

// The largest threshold with fewer than `count` scores below it, which is the count-th smallest
// score. 32 counting passes without a branch beat any selection that has to guess one.
uint32_t kth_smallest(const uint32_t* scores, int64_t units, int64_t count, int64_t* below) {
    uint32_t threshold = 0;
    *below = 0;
    for (int bit = 31; bit >= 0; --bit) {
        const uint32_t candidate = threshold | (uint32_t(1) << bit);
        int64_t smaller = 0;
        for (int64_t start = 0; start < units; start += 1 << 20) {
            const int64_t stop = min_of<int64_t>(units, start + (1 << 20));
            uint32_t part = 0;
            for (int64_t i = start; i < stop; ++i) part += scores[i] < candidate;
            smaller += part;
        }
        if (smaller < count) {
            threshold = candidate;
            *below = smaller;
        }
    }
    return threshold;
}

}  // namespace

void random_mask(Address ids, int64_t batch, int64_t units, int64_t count, uint64_t seed,
                 uint32_t epoch, Address mask, Address masked, Address visible, Address scratch,
                 int threads) {
    // One slice of scratch for each of `threads` contiguous ranges of samples.
    parallel_for(threads, batch * units, threads, [&](int64_t part) {
        uint32_t* scores = scratch.as<uint32_t>() + part * units;
        for (int64_t b = batch * part / threads; b < batch * (part + 1) / threads; ++b) {
            fill_scores(uint64_t(ids.as<int64_t>()[b]), units, seed, epoch, scores);
            int64_t below = 0;
            const uint32_t threshold =
                count > 0 ? kth_smallest(scores, units, count, &below) : uint32_t(0);
            int64_t ties = count - below;  // equal scores: the lowest positions are taken
            uint8_t* row = mask.as<uint8_t>() + b * units;
            int32_t* hidden = masked.as<int32_t>() + b * count;
            int32_t* shown = visible.as<int32_t>() + b * (units - count);
            for (int64_t i = 0; i < units; ++i) {
                const bool tie = scores[i] == threshold && ties > 0 && count > 0;
                const bool take = (scores[i] < threshold && count > 0) || tie;
                ties -= tie;
                row[i] = take;
                *(take ? hidden : shown) = int32_t(i);
                hidden += take;
                shown += !take;
            }
        }
    });
}

SIMMIM_END

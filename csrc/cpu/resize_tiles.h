// Resizes a box in tiles of several rows of the result: a vertical pass, a transposition, a
// horizontal pass, and a transposition back while storing. Both passes thus combine whole vectors,
// for any number of interleaved channels. The template parameter Arithmetic reads, weighs,
// transposes and stores numbers: see resize_bytes.h and resize_numbers.h.
#pragma once

#include "cpu/fixed_taps.h"
#include "cpu/rows.h"
#include "cpu/scratch.h"

SIMMIM_BEGIN

// Numbers of a row of the box that are transposed together.
constexpr int64_t kTurned = 64;

// One sample: the image's memory, channels and strides, the offset of the box in it (`origin`), and
// the offset of the sample in the output (`out`).
struct Sample {
    Memory image;
    int64_t channels, origin, sc, sy, sx, out;
};

// Prefetches the rows of the box that the next rows of the result need. The processor's own
// prefetcher does not follow this access pattern, a few lines of each of many rows in turn.
class Ahead {
  public:
    Ahead(const char* first, int64_t row_bytes, int64_t step, int64_t rows)
        : row_(first), bytes_(row_bytes), step_(step), rows_(rows) {}

    // Prefetches a few cache lines; returns false when none are left.
    bool ask() {
        if (rows_ <= 0) return false;
        for (int i = 0; i < 4 && rows_ > 0; ++i) {
            __builtin_prefetch(row_ + at_, 0, 2);
            at_ += 64;
            if (at_ < bytes_) continue;
            at_ = 0;
            row_ += step_;
            --rows_;
        }
        return true;
    }

  private:
    const char* row_;
    int64_t at_ = 0, bytes_, step_, rows_;
};

// One plane of a box: a single channel (`pixel` 1), or all `pixel` channels interleaved.
template <class Arithmetic>
class Plane {
    using Number = typename Arithmetic::Number;
    using Column = typename Arithmetic::Column;
    using Weights = AxisOf<typename Arithmetic::Weight>;
    // Rows of the result that are computed together.
    static constexpr int64_t kRows = Arithmetic::kRows;

  public:
    Plane(const Arithmetic& arithmetic, const Sample& sample, int64_t pixel, const Weights& ys,
          const Weights& xs, bool flip)
        : arithmetic_(arithmetic), sample_(sample), pixel_(pixel), ys_(ys), xs_(xs), flip_(flip) {}

    void resize() const {
        // Columns of the result that are computed together: as many as keep their input in the L1
        // cache.
        int64_t span = 64;
        const auto numbers_of = [&](int64_t outputs) {
            return (int64_t(double(outputs) * xs_.scale()) + 1 + xs_.taps) * pixel_;
        };
        while (span > 16 && numbers_of(span) * kRows * int64_t(sizeof(Number)) > 24 << 10)
            span /= 2;
        const int64_t turned = whole_lines((numbers_of(span) + 16) * kRows * sizeof(Number));
        const int64_t lifted = lifted_rows() * kTurned * int64_t(sizeof(Number));
        const Scratch scratch(turned + lifted + (span + 16) * pixel_ * kRows * sizeof(Column));
        const Tile tile{scratch.as<Number>(),
                        reinterpret_cast<Number*>(scratch.as<char>() + turned),
                        reinterpret_cast<Column*>(scratch.as<char>() + turned + lifted), span};
        Ahead start = needed(0);
        while (start.ask()) {
        }
        for (int64_t y = 0; y < ys_.out; y += kRows) {
            const int64_t rows = min_of(kRows, ys_.out - y);
            Ahead ahead = needed(y + rows);
            for (int64_t x = 0; x < xs_.out; x += span) {
                const int64_t stop = min_of(xs_.out, x + span);
                const int64_t place = sample_.out + y * xs_.out + (flip_ ? xs_.out - stop : x);
                // Fetch the output's lines before they are written.
                for (int64_t c = 0; c < pixel_; ++c)
                    for (int64_t r = 0; r < rows; ++r)
                        arithmetic_.prefetch(place + (c * ys_.out + r) * xs_.out);
                weigh_rows(y, rows, xs_.first[x], xs_.first[stop - 1] + xs_.taps, ahead, tile);
                weigh_columns(x, stop, tile);
                for (int64_t c = 0; c < pixel_; ++c)
                    arithmetic_.store(tile.columns + c * span * kRows, stop - x, rows,
                                      place + c * ys_.out * xs_.out, xs_.out);
            }
        }
    }

  private:
    struct Tile {
        Number *turned, *lifted;
        Column* columns;
        int64_t span;
    };

    // Vertical pass: fills tile.turned with rows [y, y + rows) of the result, for the box's columns
    // [begin, end), transposed: kRows numbers for each number of a row.
    void weigh_rows(int64_t y, int64_t rows, int64_t begin, int64_t end, Ahead& ahead,
                    const Tile& tile) const {
        alignas(64) Number lines[kRows][kTurned];
        const int64_t numbers = (end - begin) * pixel_, several = rows_at_once();
        // The last block overlaps the one before, so that every block has kTurned numbers: a loop
        // of fixed length takes a third of the time. A box narrower than a block computes some
        // unused numbers.
        for (int64_t j = 0; j < numbers; j += kTurned) {
            const int64_t n = min_of(kTurned, numbers), at = min_of(j, numbers - n);
            for (int64_t top = 0; top < rows; top += several) {
                const int64_t bottom = min_of(top + several, rows), from = ys_.first[y + top];
                const int64_t to = ys_.first[y + bottom - 1] + ys_.taps;
                for (int64_t row = from; row < to; ++row) {
                    lift(row, begin, at, n, tile.lifted + (row - from) * kTurned);
                    ahead.ask();
                }
                with_taps(ys_.taps, [&](auto taps) {
                    for (int64_t r = top; r < bottom; ++r)
                        sum_all<Arithmetic, decltype(taps)::count, kTurned>(
                            ys_.taps, tile.lifted + (ys_.first[y + r] - from) * kTurned, kTurned,
                            ys_.weights + (y + r) * ys_.taps, lines[r]);
                });
            }
            Arithmetic::turn(lines, n, rows, tile.turned + at * kRows);
        }
    }

    // Horizontal pass: fills tile.columns with kRows numbers for each channel and each output in
    // [x0, x1), in descending order where flipped. Channels are tile.span outputs apart.
    void weigh_columns(int64_t x0, int64_t x1, const Tile& tile) const {
        with_taps(xs_.taps, [&](auto taps) {
            alignas(64) Number sums[kRows];
            for (int64_t x = x0; x < x1; ++x) {
                const int64_t place = flip_ ? x1 - 1 - x : x - x0;
                const Number* p = tile.turned + (xs_.first[x] - xs_.first[x0]) * pixel_ * kRows;
                Column* to = tile.columns + place * kRows;
                for (int64_t c = 0; c < pixel_; ++c, p += kRows, to += tile.span * kRows) {
                    sum_all<Arithmetic, decltype(taps)::count, kRows>(
                        xs_.taps, p, pixel_ * kRows, xs_.weights + x * xs_.taps, sums);
                    Arithmetic::finish(sums, to);
                }
            }
        });
    }

    // Rows of the result whose input rows are converted together and stay in the L1 cache.
    int64_t rows_at_once() const { return ys_.taps > 8 ? min_of<int64_t>(8, kRows) : kRows; }

    // The largest number of input rows that are converted together.
    int64_t lifted_rows() const {
        const int64_t several = rows_at_once();
        int64_t most = 0;
        for (int64_t y = 0; y < ys_.out; y += several)
            most =
                max_of<int64_t>(most, ys_.first[min_of(y + several, ys_.out) - 1] - ys_.first[y]);
        return most + ys_.taps;
    }

    // The input rows that rows [y, y + kRows) of the result need and earlier rows did not.
    Ahead needed(int64_t y) const {
        const int64_t from = y == 0 ? 0 : ys_.first[y - 1] + ys_.taps;
        const int64_t to = ys_.first[min_of(y + kRows, ys_.out) - 1] + ys_.taps;
        const int64_t size = element_size(sample_.image.element);
        return Ahead(sample_.image.at(sample_.origin + from * sample_.sy),
                     xs_.extent * sample_.sx * size, sample_.sy * size, to - from);
    }

    // Converts numbers [at, at + n) of a row of the box, counted from column `begin`.
    void lift(int64_t row, int64_t begin, int64_t at, int64_t n, Number* line) const {
        const int64_t start = sample_.origin + row * sample_.sy + begin * sample_.sx;
        if (sample_.sx != pixel_)
            Arithmetic::lift(sample_.image, start + at * sample_.sx, sample_.sx, n, line);
        else
            Arithmetic::lift(sample_.image, start + at, 1, n, line);
    }

    const Arithmetic& arithmetic_;
    Sample sample_;
    int64_t pixel_;
    const Weights &ys_, &xs_;
    bool flip_;
};

// Resizes all channels, together where they are interleaved.
template <class Arithmetic>
void resize_planes(const Arithmetic& arithmetic, Sample sample,
                   const AxisOf<typename Arithmetic::Weight>& ys,
                   const AxisOf<typename Arithmetic::Weight>& xs, bool flip) {
    const bool interleaved =
        sample.sc == 1 && sample.sx == sample.channels && sample.channels <= 16;
    const int64_t pixel = interleaved ? sample.channels : 1;
    for (int64_t c = 0; c < sample.channels; c += pixel) {
        Plane<Arithmetic>(arithmetic, sample, pixel, ys, xs, flip).resize();
        sample.origin += pixel * sample.sc;
        sample.out += pixel * ys.out * xs.out;
    }
}

SIMMIM_END

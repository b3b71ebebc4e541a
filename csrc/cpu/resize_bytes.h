// Bytes resized to bytes in 16-bit fixed point, 32 rows of the result at a time: rows of the box
// are weighted, turned so that a column's 32 numbers lie side by side, weighted again as columns,
// and turned back on the way out. Between the two passes a byte has 7 more bits (6 with the cubic
// kernel, which overshoots), so that the result is nearer to the exact one than Pillow's, which has
// none.
#pragma once

#include "cpu/fixed_taps.h"
#include "cpu/resize_rows.h"
#include "cpu/scratch.h"
#include "cpu/transpose.h"

SIMMIM_BEGIN

// Rows of the result that are made together, and columns of the box that are turned together.
constexpr int64_t kTileRows = 32, kTurned = 64;

// The rows of the box that the next rows of the result need, asked for in time: lines of many rows
// in turn, as they are used here, are no order that a processor foresees.
class Ahead {
  public:
    Ahead(const uint8_t* first, int64_t row_bytes, int64_t sy, int64_t rows)
        : row_(first), bytes_(row_bytes), sy_(sy), rows_(rows) {}

    // Asks for a few lines; whether there were any left.
    bool ask() {
        if (rows_ <= 0) return false;
        for (int i = 0; i < 4 && rows_ > 0; ++i) {
            __builtin_prefetch(row_ + at_, 0, 2);
            at_ += 64;
            if (at_ < bytes_) continue;
            at_ = 0;
            row_ += sy_;
            --rows_;
        }
        return true;
    }

  private:
    const uint8_t* row_;
    int64_t at_ = 0, bytes_, sy_, rows_;
};

// One plane of a box, whose result has kBits more than a byte, and of which `pixel` numbers side by
// side are a pixel: a channel of its own, or all of them, interleaved.
template <int kBits>
class BytePlane {
  public:
    BytePlane(const uint8_t* data, int64_t sy, int64_t sx, int64_t pixel, const ByteAxis& ys,
              const ByteAxis& xs)
        : data_(data), sy_(sy), sx_(sx), pixel_(pixel), ys_(ys), xs_(xs) {}

    // Makes `turned`: for each number of the columns [begin, end), 32 rows of the result from y on.
    // `lifted`: room for what `lifted_rows` says.
    void weigh_rows(int64_t y, int64_t rows, int64_t begin, int64_t end, Ahead& ahead,
                    int16_t* lifted, int16_t* turned) const {
        alignas(64) int16_t lines[kTileRows][kTurned];
        const int64_t numbers = (end - begin) * pixel_, several = rows_at_once();
        // The last numbers are made together with some before them once more, for a loop of fixed
        // length takes a third of the time of another; of a narrower box, with what is not used.
        for (int64_t j = 0; j < numbers; j += kTurned) {
            const int64_t n = min_of(kTurned, numbers), at = min_of(j, numbers - n);
            for (int64_t top = 0; top < rows; top += several) {
                const int64_t bottom = min_of(top + several, rows), from = ys_.first[y + top];
                const int64_t to = ys_.first[y + bottom - 1] + ys_.taps;
                for (int64_t row = from; row < to; ++row) {
                    lift(row, begin, at, n, lifted + (row - from) * kTurned);
                    ahead.ask();
                }
                with_taps(ys_.taps, [&](auto taps) {
                    for (int64_t r = top; r < bottom; ++r)
                        sum_all<decltype(taps)::count>(
                            ys_.taps, lifted + (ys_.first[y + r] - from) * kTurned, kTurned,
                            ys_.weights + (y + r) * ys_.taps, lines[r], kTurned);
                });
            }
            for (int64_t i = 0; i < n; i += 8)
                for (int64_t r = 0; r < rows; r += 16)
                    transpose_16x8(&lines[r][i], kTurned, turned + (at + i) * kTileRows + r,
                                   kTileRows);
        }
    }

    // Rows of the box at most that are lifted together.
    int64_t lifted_rows() const {
        const int64_t several = rows_at_once();
        int64_t most = 0;
        for (int64_t y = 0; y < ys_.out; y += several)
            most =
                max_of<int64_t>(most, ys_.first[min_of(y + several, ys_.out) - 1] - ys_.first[y]);
        return most + ys_.taps;
    }

    // What the rows of the result from y on need, and those before did not.
    Ahead needed(int64_t y, int64_t width) const {
        const int64_t from = y == 0 ? 0 : ys_.first[y - 1] + ys_.taps;
        const int64_t to = ys_.first[min_of(y + kTileRows, ys_.out) - 1] + ys_.taps;
        return Ahead(data_ + from * sy_, width * sx_, sy_, to - from);
    }

    // Makes `columns`: for each channel and each output [x0, x1), in falling order where `flip`, 32
    // bytes, `span` outputs apart from the next channel's.
    void weigh_columns(const int16_t* turned, int64_t begin, int64_t x0, int64_t x1, bool flip,
                       int64_t span, uint8_t* columns) const {
        with_taps(xs_.taps, [&](auto taps) {
            alignas(64) int16_t sums[kTileRows];
            for (int64_t x = x0; x < x1; ++x) {
                const int64_t place = flip ? x1 - 1 - x : x - x0;
                const int16_t* p = turned + (xs_.first[x] - begin) * pixel_ * kTileRows;
                uint8_t* to = columns + place * kTileRows;
                for (int64_t c = 0; c < pixel_; ++c, p += kTileRows, to += span * kTileRows) {
                    sum_all<decltype(taps)::count>(xs_.taps, p, pixel_ * kTileRows,
                                                   xs_.weights + x * xs_.taps, sums, kTileRows);
                    for (int64_t r = 0; r < kTileRows; ++r) {
                        const int16_t level =
                            int16_t(int16_t(sums[r] + (1 << (kBits - 1))) >> kBits);
                        to[r] = uint8_t(min_of<int16_t>(max_of<int16_t>(level, 0), 255));
                    }
                }
            }
        });
    }

  private:
    // Rows of the result whose rows of the box are lifted together, such that they stay in the
    // first cache.
    int64_t rows_at_once() const { return ys_.taps > 8 ? 8 : kTileRows; }

    // Numbers [at, at + n) of a row of the box, counted from column `begin`, in units of 1/128.
    void lift(int64_t row, int64_t begin, int64_t at, int64_t n, int16_t* line) const {
        const uint8_t* p = data_ + row * sy_ + begin * sx_;
        if (sx_ != pixel_) {
            p += at * sx_;
            for (int64_t i = 0; i < n; ++i) line[i] = int16_t(p[i * sx_] << 7);
        } else if (n == kTurned) {
            for (int64_t i = 0; i < kTurned; ++i) line[i] = int16_t(p[at + i] << 7);
        } else {
            for (int64_t i = 0; i < n; ++i) line[i] = int16_t(p[at + i] << 7);
        }
    }

    const uint8_t* data_;
    int64_t sy_, sx_, pixel_;
    const ByteAxis &ys_, &xs_;
};

template <int kBits>
void resize_plane(const BytePlane<kBits>& plane, int64_t pixel, const Resize& down,
                  const Resize& across, const ByteAxis& xs, bool flip, uint8_t* out) {
    // Columns of the result that are made together: as many as leave the numbers that they need in
    // the first cache.
    int64_t span = 64;
    const auto numbers_of = [&](int64_t outputs) {
        return (int64_t(double(outputs) * across.scale()) + 1 + xs.taps) * pixel;
    };
    while (span > 16 && numbers_of(span) * kTileRows * 2 > 24 << 10) span /= 2;
    const int64_t turned_bytes = whole_lines((numbers_of(span) + 8) * kTileRows * 2);
    const int64_t lifted_bytes = plane.lifted_rows() * kTurned * 2;
    const Scratch scratch(turned_bytes + lifted_bytes + (span + 16) * pixel * kTileRows);
    int16_t* turned = scratch.as<int16_t>();
    int16_t* lifted = turned + turned_bytes / 2;
    uint8_t* columns = scratch.as<uint8_t>() + turned_bytes + lifted_bytes;
    Ahead start = plane.needed(0, across.extent);
    while (start.ask()) {
    }
    for (int64_t y = 0; y < down.out; y += kTileRows) {
        const int64_t rows = min_of(kTileRows, down.out - y);
        Ahead ahead = plane.needed(y + rows, across.extent);
        for (int64_t x = 0; x < across.out; x += span) {
            const int64_t stop = min_of(across.out, x + span);
            const int64_t begin = xs.first[x], end = xs.first[stop - 1] + xs.taps;
            const int64_t place = flip ? across.out - stop : x;
            uint8_t* target = out + y * across.out + place;
            for (int64_t c = 0; c < pixel; ++c)  // so that the lines are here when they are written
                for (int64_t r = 0; r < rows; ++r)
                    __builtin_prefetch(target + (c * down.out + r) * across.out, 1);
            plane.weigh_rows(y, rows, begin, end, ahead, lifted, turned);
            plane.weigh_columns(turned, begin, x, stop, flip, span, columns);
            for (int64_t c = 0; c < pixel; ++c)
                transpose_bytes(columns + c * span * kTileRows, stop - x, rows,
                                target + c * down.out * across.out, across.out);
        }
    }
}

template <int kBits>
void resize_planes(const ByteImage& image, const Resize& down, const Resize& across,
                   const ByteAxis& ys, const ByteAxis& xs, bool flip, uint8_t* out) {
    if (resize_by_rows<kBits>(image, down, across, ys, xs, flip, out)) return;
    const bool interleaved = image.sc == 1 && image.sx == image.channels && image.channels <= 16;
    const int64_t pixel = interleaved ? image.channels : 1;
    for (int64_t c = 0; c < image.channels; c += pixel) {
        const BytePlane<kBits> plane(image.data + c * image.sc, image.sy, image.sx, pixel, ys, xs);
        resize_plane(plane, pixel, down, across, xs, flip, out + c * down.out * across.out);
    }
}

// Whether these axes can be computed in 16 bits; then the result is written.
inline bool resize_bytes(const ByteImage& image, const Resize& down, const Resize& across,
                         const Axis& ys, const Axis& xs, bool flip, uint8_t* out) {
    if (max_of(ys.taps, xs.taps) > most_byte_taps(down.cubic)) return false;
    const Scratch tables(ByteAxis::bytes(ys, down.out) + ByteAxis::bytes(xs, across.out));
    const ByteAxis rows(ys, down, tables.as<char>());
    const ByteAxis columns(xs, across, tables.as<char>() + ByteAxis::bytes(ys, down.out));
    if (!down.cubic) {
        resize_planes<7>(image, down, across, rows, columns, flip, out);
        return true;
    }
    // The largest numbers that may come out of the two passes must fit.
    if (rows.largest > 1.9 || rows.largest * columns.largest > 3.9) return false;
    resize_planes<5>(image, down, across, rows, columns, flip, out);
    return true;
}

SIMMIM_END

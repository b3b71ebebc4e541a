// Divides rows of cells (tokens, lines of an image), whose numbers are contiguous, among blocks.
// Each thread keeps one position within a cell and goes from cell to cell.
#pragma once

#include "cuda/launch.h"

SIMMIM_BEGIN

constexpr int kRowThreads = 256;
constexpr int kCells = 512;           // cells that a block goes through
constexpr int kInFlight = 4;          // groups that a thread loads before the first use
constexpr int kMostDown = 32;         // cells that a block handles side by side
constexpr int64_t kRowBlocks = 1056;  // eight for each of 132 multiprocessors, all at once

struct RowCut {
    int32_t across, down, parts;  // threads along a cell, cells side by side, blocks along a cell
    int32_t tiles, chunk;         // blocks a row, cells a block

    int64_t blocks(int64_t rows) const { return rows * tiles * parts; }
    dim3 threads() const { return dim3(unsigned(ceil_div(across * down, kWarp) * kWarp)); }
};

// A block handles several short cells at a time, or shares a long one with other blocks. It gets
// enough work for the cost of its first look-ups not to matter.
inline RowCut cut_rows(int64_t rows, int64_t cells, int64_t groups) {
    RowCut cut{};
    cut.parts = int32_t(ceil_div(max_of<int64_t>(groups, 1), kRowThreads));
    cut.across = int32_t(ceil_div(max_of<int64_t>(groups, 1), cut.parts));
    cut.down = min_of(max_of(kRowThreads / cut.across, 1), kMostDown);
    const int64_t step = int64_t(cut.down) * kInFlight, most = kCells - step;
    const int64_t wished = ceil_div(rows * cut.parts * cells, kRowBlocks);
    const int64_t chunk = min_of(max_of(wished, min_of(4 * step, most)), most);
    cut.tiles = int32_t(max_of<int64_t>(ceil_div(cells, chunk), 1));
    cut.chunk = int32_t(ceil_div(cells, cut.tiles));
    return cut;
}

// The part of a row that a block goes through, and this thread's position: its first group of
// numbers, and the first of its cells, counted from the block's first one.
struct RowPiece {
    int32_t row, part, first, count, padded, step, down, group;

    __device__ __forceinline__ RowPiece(const RowCut& cut, int32_t cells) {
        const uint32_t piece = blockIdx.x / uint32_t(cut.parts);
        part = int32_t(blockIdx.x - piece * uint32_t(cut.parts));
        row = int32_t(piece / uint32_t(cut.tiles));
        first = int32_t(piece - uint32_t(row) * uint32_t(cut.tiles)) * cut.chunk;
        count = min_of(cut.chunk, cells - first);
        step = cut.down * kInFlight;
        padded = (count + step - 1) / step * step;
        down = int32_t(threadIdx.x) / cut.across;
        group = part * cut.across + int32_t(threadIdx.x) - down * cut.across;
    }
};

SIMMIM_END

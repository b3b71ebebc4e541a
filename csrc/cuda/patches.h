// The patches of an image that are normalised.
#pragma once

#include "common/grid.h"
#include "cuda/launch.h"
#include "cuda/vector.h"

SIMMIM_BEGIN

struct Patches {
    Array image, out, mean, std;
    ImageLayout from, to;
    MaskGrid grid;  // without a mask every pixel is wanted
    uint32_t h, w, channels, side;
    double eps;
    double unit;      // what numbers are divided by first: 255 for bytes
    uint32_t planes;  // channels that lie apart
};

// Normalises with patches in registers; false where they don't fit, or are not whole words.
bool hold_patches(Patches patches, Stream stream, int* code);

SIMMIM_END

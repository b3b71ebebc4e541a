// Sums over blocks: each block leaves one row of partial sums, which `add_rows` adds in an order
// that depends on the sizes alone. No atomics: the same bits in every run.
#pragma once

#include "cuda/launch.h"
#include "cuda/vector.h"

SIMMIM_BEGIN

// out = the sum of `rows` rows of `columns` partial sums (float or double), in double.
int add_rows(const void* partial, int partial_element, int64_t rows, int64_t columns, Array out,
             Stream stream);

SIMMIM_END

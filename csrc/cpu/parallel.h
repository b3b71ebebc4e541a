// Loops over threads. Kernels split their work into pieces that do not depend on the number of
// threads, so results are the same bits for any number.
#pragma once

#include "common/types.h"

SIMMIM_BEGIN

// Below this many elements a team of threads costs more than it saves (measured: 3 to 5 us).
constexpr int64_t kSerialElements = 1 << 15;

// Calls body(i) for every i in [0, n), each exactly once, on at most `threads` threads.
template <class Body>
inline void parallel_for(int64_t n, int64_t elements, int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1 && n > 1 && elements >= kSerialElements) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < n; ++i) body(i);
        return;
    }
#else
    (void)elements;
    (void)threads;
#endif
    for (int64_t i = 0; i < n; ++i) body(i);
}

SIMMIM_END

// Non-temporal (streaming) stores. An ordinary store first reads the cache line that it overwrites,
// which for a large output is a third or more of the memory traffic of an op.
#pragma once

#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "common/types.h"

SIMMIM_BEGIN

// Outputs of at least this many bytes are streamed; smaller ones are better left in the cache for
// the next op. Measured with cold caches and the next op's reads included: no slower from 4 MiB on,
// faster from 16 MiB on (benchmarks/NOTES.md).
inline bool is_streamed(int64_t output_bytes) { return output_bytes >= int64_t(4) << 20; }

// Rows are computed in a buffer of this size in the L1 cache and then streamed as a whole.
constexpr int64_t kLineBytes = 4096;

#if defined(__SSE2__)

// Both write n bytes; all aligned blocks of 16 bytes among them are streamed.
inline void stream_copy(char* to, const char* from, int64_t n) {
    const int64_t head = -int64_t(reinterpret_cast<uintptr_t>(to)) & 15;
    if (head) {
        const int64_t first = min_of(head, n);
        std::memcpy(to, from, size_t(first));
        to += first;
        from += first;
        n -= first;
    }
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= n && (reinterpret_cast<uintptr_t>(to + i) & 63); i += 16)
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    for (; i + 64 <= n; i += 64)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
#endif
    for (; i + 16 <= n; i += 16)
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    std::memcpy(to + i, from + i, size_t(n - i));
}

inline void stream_zero(char* to, int64_t n) {
    const int64_t head = min_of(n, -int64_t(reinterpret_cast<uintptr_t>(to)) & 15);
    std::memset(to, 0, size_t(head));
    int64_t i = head;
    for (; i + 16 <= n; i += 16)
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_setzero_si128());
    std::memset(to + i, 0, size_t(n - i));
}

// Streaming stores are not ordered: each thread that made some must call this before it signals
// that its work is done.
inline void finish_streams() { _mm_sfence(); }

#else

inline void stream_copy(char* to, const char* from, int64_t n) { std::memcpy(to, from, size_t(n)); }
inline void stream_zero(char* to, int64_t n) { std::memset(to, 0, size_t(n)); }
inline void finish_streams() {}

#endif

SIMMIM_END

// Which instruction sets the processor of this machine runs.
#pragma once

#include <cstring>

namespace simmim {

/// Whether this processor runs code compiled for `isa`: "baseline", "avx2" or "avx512".
inline bool runs_here(const char* isa) {
    if (!std::strcmp(isa, "baseline")) return true;
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!std::strcmp(isa, "avx2")) return avx2;
    if (!std::strcmp(isa, "avx512"))
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return false;
}

}  // namespace simmim

// Memory that a kernel uses while it runs, for instance a slice for each thread.
#pragma once

#include <cstring>

#include "common/types.h"

namespace simmim {

// Defined in bindings_cpu.cpp. The memory begins at a cache line; `std::bad_alloc` where there is
// none, which passes through kernels as it would through C.
void* allocate(int64_t bytes);
void release(void* memory);

}  // namespace simmim

SIMMIM_BEGIN

class Scratch {
  public:
    explicit Scratch(int64_t bytes) : memory_(bytes > 0 ? allocate(bytes) : nullptr) {
#ifdef SIMMIM_POISON
        // NaN in every float type: what a kernel reads before it writes shows in its result.
        if (memory_) std::memset(memory_, 0xFF, size_t(bytes));
#endif
    }
    ~Scratch() {
        if (memory_) release(memory_);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    template <class T>
    T* as() const {
        return static_cast<T*>(memory_);
    }

  private:
    void* memory_;
};

SIMMIM_END

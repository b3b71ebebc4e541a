// Temporary memory of a kernel, for instance one slice for each thread.
#pragma once

#include <cstring>

#include "common/types.h"

namespace simmim {

// Defined in bindings_cpu.cpp. The memory is aligned to a cache line. Throws std::bad_alloc, which
// kernels let through.
void* allocate(int64_t bytes);
void release(void* memory);

}  // namespace simmim

SIMMIM_BEGIN

class Scratch {
  public:
    explicit Scratch(int64_t bytes) : memory_(bytes > 0 ? allocate(bytes) : nullptr) {
#ifdef SIMMIM_POISON
        // NaN in every float type, so that reading before writing shows in a kernel's result.
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

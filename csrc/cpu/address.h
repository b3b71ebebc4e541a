// A tensor's address as Python hands it over: an integer, or None for a tensor that is absent.
#pragma once

namespace simmim {

struct Address {
    void* pointer;

    template <class T>
    __attribute__((always_inline)) T* as() const {
        return static_cast<T*>(pointer);
    }
    __attribute__((always_inline)) explicit operator bool() const { return pointer != nullptr; }
};

}  // namespace simmim

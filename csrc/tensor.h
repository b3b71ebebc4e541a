// A PyTorch tensor as the kernels see it. `tensor_caster.h` fills it from the Python object, so
// that kernels take tensors in their signatures and need no header and no library of PyTorch.
#pragma once

#include <cstdint>

namespace simmim {

enum Element : int {
    kFloat32,
    kFloat64,
    kBFloat16,
    kFloat16,
    kUInt8,
    kBool,
    kUInt16,
    kInt16,
    kInt32,
    kInt64
};

// Strides count elements. Its functions are always inlined: the code of each instruction set must
// not share a copy of them.
struct Tensor {
    static constexpr int kMostDims = 6;

    void* data = nullptr;
    Element element = kFloat32;
    int dims = 0;
    int device = 0;        // the GPU's number
    bool present = false;  // false for None
    int64_t shape[kMostDims] = {};
    int64_t strides[kMostDims] = {};

    __attribute__((always_inline)) explicit operator bool() const { return present; }

    template <class T>
    __attribute__((always_inline)) T* as() const {
        return static_cast<T*>(data);
    }

    // Axes count from the first one, negative ones from behind the last.
    __attribute__((always_inline)) int64_t size(int axis) const {
        return shape[axis < 0 ? dims + axis : axis];
    }
    __attribute__((always_inline)) int64_t stride(int axis) const {
        return strides[axis < 0 ? dims + axis : axis];
    }
    __attribute__((always_inline)) int64_t numel() const {
        int64_t n = 1;
        for (int axis = 0; axis < dims; ++axis) n *= shape[axis];
        return n;
    }
};

// The tensors of a Python list, which the caller owns.
struct TensorList {
    const Tensor* data = nullptr;
    int64_t count = 0;

    __attribute__((always_inline)) const Tensor& operator[](int64_t i) const { return data[i]; }
};

}  // namespace simmim

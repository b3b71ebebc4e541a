// How pybind11 turns a Python argument into a `Tensor`: through the C functions of DLPack that
// `torch.Tensor.__dlpack_c_exchange_api__` holds (PyTorch 2.11 and later). It takes about 20 ns a
// tensor, and the same build serves every version of PyTorch.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "tensor.h"

namespace simmim::dlpack {

// From the DLPack specification 1.3, as far as it is used here.
struct DLTensor {
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t* shape;
    int64_t* strides;
    uint64_t byte_offset;
};

struct ExchangeApi {
    uint32_t major, minor;
    ExchangeApi* previous;  // the same for an older version of the specification
    void *allocate, *managed_from_object, *managed_to_object;
    // Fills a view without owner: shape and strides point into the tensor. Nothing waits for a GPU.
    int (*tensor_from_object)(void* object, DLTensor* view);
    void* current_stream;
};

constexpr int32_t kCpu = 1;
constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBoolean = 6;

inline const ExchangeApi* api = nullptr;  // set when Python loads the module

// Finds the functions in the class torch.Tensor; raises where that PyTorch has none.
inline void connect(const pybind11::object& tensor_class) {
    const char* name = "__dlpack_c_exchange_api__";
    if (!pybind11::hasattr(tensor_class, name))
        throw std::runtime_error(std::string("this PyTorch has no torch.Tensor.") + name +
                                 "; it comes with PyTorch 2.11");
    const pybind11::object capsule = tensor_class.attr(name);
    void* found = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
    if (!found) throw pybind11::error_already_set();
    const auto* candidate = static_cast<const ExchangeApi*>(found);
    while (candidate && candidate->major != 1) candidate = candidate->previous;
    if (!candidate || !candidate->tensor_from_object)
        throw std::runtime_error("this PyTorch's torch.Tensor." + std::string(name) +
                                 " is not version 1 of DLPack's");
    api = candidate;
}

// -1 for a type that no kernel takes.
inline int element_of(const DLTensor& view) {
    if (view.lanes != 1) return -1;
    switch (view.code << 8 | view.bits) {
        case kFloat << 8 | 32:
            return kFloat32;
        case kFloat << 8 | 64:
            return kFloat64;
        case kBfloat << 8 | 16:
            return kBFloat16;
        case kFloat << 8 | 16:
            return kFloat16;
        case kUInt << 8 | 8:
            return kUInt8;
        case kBoolean << 8 | 8:
            return kBool;
        case kUInt << 8 | 16:
            return kUInt16;
        case kInt << 8 | 16:
            return kInt16;
        case kInt << 8 | 32:
            return kInt32;
        case kInt << 8 | 64:
            return kInt64;
        default:
            return -1;
    }
}

// Whether `view` can be a `Tensor`, which it then becomes. Shape and strides are copied, so that
// they hold while the kernel runs without Python's lock.
inline bool convert(const DLTensor& view, Tensor* tensor) {
    const int element = element_of(view);
    if (element < 0 || view.ndim > Tensor::kMostDims) return false;
    tensor->data = static_cast<char*>(view.data) + view.byte_offset;
    tensor->element = Element(element);
    tensor->dims = view.ndim;
    tensor->device = view.device_type == kCpu ? 0 : view.device_id;
    tensor->present = true;
    for (int axis = 0; axis < view.ndim; ++axis) {
        tensor->shape[axis] = view.shape[axis];
        tensor->strides[axis] = view.strides[axis];
    }
    return true;
}

}  // namespace simmim::dlpack

namespace pybind11::detail {
template <>
struct type_caster<simmim::Tensor> {
    PYBIND11_TYPE_CASTER(simmim::Tensor, const_name("torch.Tensor | None"));
    bool load(handle source, bool) {
        if (source.is_none()) return true;  // absent
        simmim::dlpack::DLTensor view;
        if (simmim::dlpack::api->tensor_from_object(source.ptr(), &view) != 0) {
            PyErr_Clear();  // no tensor: pybind11 says which arguments are expected
            return false;
        }
        return simmim::dlpack::convert(view, &value);
    }
};

template <>
struct type_caster<simmim::TensorList> {
    PYBIND11_TYPE_CASTER(simmim::TensorList, const_name("list[torch.Tensor]"));
    bool load(handle source, bool convert) {
        if (!isinstance<list>(source)) return false;
        for (const handle item : reinterpret_borrow<list>(source)) {
            type_caster<simmim::Tensor> tensor;
            if (item.is_none() || !tensor.load(item, convert)) return false;
            tensors_.push_back(*static_cast<simmim::Tensor*>(tensor));
        }
        value = {tensors_.data(), int64_t(tensors_.size())};
        return true;
    }

  private:
    std::vector<simmim::Tensor> tensors_;
};
}  // namespace pybind11::detail

namespace simmim {

// What a kernel is told about a tensor, for tests: address, element type, shape and strides.
inline pybind11::object describe(const Tensor& tensor) {
    if (!tensor) return pybind11::none();
    pybind11::tuple shape(tensor.dims), strides(tensor.dims);
    for (int axis = 0; axis < tensor.dims; ++axis) {
        shape[size_t(axis)] = tensor.size(axis);
        strides[size_t(axis)] = tensor.stride(axis);
    }
    const auto address = reinterpret_cast<uintptr_t>(tensor.data);
    return pybind11::make_tuple(address, int(tensor.element), shape, strides);
}

}  // namespace simmim

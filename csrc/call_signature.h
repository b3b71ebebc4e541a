// The signature of a call: all that the checks of an op look at, as one value for a Python set. An
// op that has checked a signature once need not check it again, and finding it here takes a tenth
// of the time that it takes in Python (simmim_kernels/ops/_call_signature.py).
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "tensor_caster.h"

namespace simmim {

class CallSignature {
  public:
    // The classes whose tensors are no more than their memory.
    CallSignature(const pybind11::object& tensor, const pybind11::object& parameter)
        : tensor_(tensor.ptr()), parameter_(parameter.ptr()) {}

    // False for a tensor that the dispatcher has to see.
    bool add(PyObject* argument) {
        auto* type = reinterpret_cast<PyObject*>(Py_TYPE(argument));
        if (type == tensor_ || type == parameter_) return add_tensor(argument);
        if (PyList_CheckExact(argument)) {
            const auto items = pybind11::reinterpret_borrow<pybind11::list>(argument);
            words_.push_back(kList + int64_t(items.size()));
            for (const pybind11::handle item : items)
                if (!add(item.ptr())) return false;
            return true;
        }
        const int is_tensor = PyObject_IsInstance(argument, tensor_);
        if (is_tensor < 0) throw pybind11::error_already_set();
        if (is_tensor) return false;
        words_.push_back(kOther);
        others_.push_back(type);
        others_.push_back(argument);
        return true;
    }

    // The words as bytes, then type and value of each argument that is no tensor.
    pybind11::object as_tuple() const {
        pybind11::tuple result(1 + others_.size());
        result[0] = pybind11::bytes(reinterpret_cast<const char*>(words_.data()),
                                    words_.size() * sizeof(int64_t));
        for (size_t i = 0; i < others_.size(); ++i) result[1 + i] = pybind11::handle(others_[i]);
        return std::move(result);
    }

  private:
    static constexpr int64_t kOther = -1, kList = int64_t(1) << 62;

    // A lazy sign, zeros without memory, and whatever has no strides (sparse, nested, batched) are
    // the dispatcher's to resolve.
    bool add_tensor(PyObject* argument) {
        dlpack::DLTensor view;
        if (dlpack::api->tensor_from_object(argument, &view) != 0) {
            PyErr_Clear();
            return false;
        }
        static PyObject* const name = PyUnicode_InternFromString("is_neg");
        const auto negative = pybind11::reinterpret_steal<pybind11::object>(
            PyObject_CallMethodNoArgs(argument, name));
        if (!negative) throw pybind11::error_already_set();
        if (negative.ptr() != Py_False) return false;
        bool empty = false;
        words_.push_back(view.code | view.bits << 8 | view.lanes << 16);
        words_.push_back(int64_t(view.device_type) << 32 | uint32_t(view.device_id));
        words_.push_back(view.ndim);
        for (int axis = 0; axis < view.ndim; ++axis) {
            empty = empty || view.shape[axis] == 0;
            words_.push_back(view.shape[axis]);
            words_.push_back(view.strides[axis]);
        }
        return view.data != nullptr || empty;
    }

    PyObject *tensor_, *parameter_;
    std::vector<int64_t> words_;
    std::vector<PyObject*> others_;
};

// The function that gives a call's signature, or None where a tensor among the arguments is more
// than its memory; of torch.Tensor and torch.nn.Parameter.
inline pybind11::cpp_function make_call_signature(pybind11::object tensor,
                                                  pybind11::object parameter) {
    return [tensor, parameter](const pybind11::tuple& arguments) -> pybind11::object {
        CallSignature signature(tensor, parameter);
        for (const pybind11::handle argument : arguments)
            if (!signature.add(argument.ptr())) return pybind11::none();
        return signature.as_tuple();
    };
}

}  // namespace simmim

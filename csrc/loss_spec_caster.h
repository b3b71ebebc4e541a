// How pybind11 turns Python's NamedTuple `LossSpec` into the struct; an unknown name is a
// ValueError.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "common/loss_spec.h"

namespace simmim {

// The position of `name` among the names that are allowed.
template <class Code, size_t n>
Code code_of(const char* option, PyObject* name, const char* const (&names)[n]) {
    if (!PyUnicode_Check(name)) throw pybind11::type_error(std::string(option) + " is no text");
    for (size_t code = 0; code < n; ++code)
        if (PyUnicode_CompareWithASCIIString(name, names[code]) == 0) return Code(code);
    std::string allowed;
    for (const char* one : names)
        allowed += (allowed.empty() ? "'" : ", '") + std::string(one) + "'";
    throw pybind11::value_error(std::string(option) + " is " +
                                pybind11::repr(name).cast<std::string>() + "; allowed: " + allowed);
}

}  // namespace simmim

namespace pybind11::detail {
template <>
struct type_caster<simmim::LossSpec> {
    PYBIND11_TYPE_CASTER(simmim::LossSpec, const_name("LossSpec"));
    bool load(handle source, bool) {
        if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 9) return false;
        const auto field = [&](int i) { return PyTuple_GET_ITEM(source.ptr(), i); };
        using namespace simmim;
        value.kind = code_of<LossKind>("kind", field(0), kLossKinds);
        value.beta = PyFloat_AsDouble(field(1));
        value.order = code_of<Order>("order", field(2), kOrders);
        value.eps = PyFloat_AsDouble(field(3));
        value.reduction = code_of<Reduction>("reduction", field(4), kReductions);
        value.norm = code_of<Norm>("norm", field(5), kNorms);
        value.norm_side = PyLong_AsLongLong(field(6));
        value.norm_eps = PyFloat_AsDouble(field(7));
        value.factor = PyFloat_AsDouble(field(8));
        if (PyErr_Occurred()) throw error_already_set();
        return true;
    }
};
}  // namespace pybind11::detail

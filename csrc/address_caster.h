// How pybind11 hands over an address: a Python integer, or None for a tensor that is absent.
#pragma once

#include <pybind11/pybind11.h>

#include "cpu/address.h"

namespace pybind11::detail {
template <>
struct type_caster<simmim::Address> {
    PYBIND11_TYPE_CASTER(simmim::Address, const_name("int | None"));
    bool load(handle source, bool) {
        value.pointer = source.is_none() ? nullptr : PyLong_AsVoidPtr(source.ptr());
        if (!PyErr_Occurred()) return true;
        PyErr_Clear();
        return false;
    }
};
}  // namespace pybind11::detail

// Where a tensor's entries are: Python gives anything with data_ptr(), or None for an absent tensor.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

struct Address {
  uintptr_t value = 0;
};

namespace pybind11::detail {
template <> struct type_caster<Address> {
  PYBIND11_TYPE_CASTER(Address, const_name("Tensor | None"));

  bool load(handle from, bool) {
    static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
    if (from.is_none()) return true;
    const object address = reinterpret_steal<object>(PyObject_CallMethodNoArgs(from.ptr(), data_ptr));
    if (!address) throw error_already_set();
    value.value = PyLong_AsSize_t(address.ptr());
    if (PyErr_Occurred()) throw error_already_set();
    return true;
  }
};
}  // namespace pybind11::detail

template <class T> static T* at(Address a) { return reinterpret_cast<T*>(a.value); }

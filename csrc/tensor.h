// A tensor as the kernels take it: the address of its entries, checked to be as wide as T. Python gives anything with
// data_ptr() and element_size(), or None for an absent tensor; no torch is needed to build.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <type_traits>

template <class T> struct Tensor {
  T* data = nullptr;
  operator T*() const { return data; }
};

namespace pybind11::detail {
inline size_t asked(handle from, PyObject* method) {
  const object answer = reinterpret_steal<object>(PyObject_CallMethodNoArgs(from.ptr(), method));
  if (!answer) throw error_already_set();
  const size_t number = PyLong_AsSize_t(answer.ptr());
  if (PyErr_Occurred()) throw error_already_set();
  return number;
}

template <class T> struct type_caster<Tensor<T>> {
  PYBIND11_TYPE_CASTER(Tensor<T>, const_name("Tensor | None"));

  bool load(handle from, bool) {
    static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
    static PyObject* const element_size = PyUnicode_InternFromString("element_size");
    if (from.is_none()) return true;
    if constexpr (!std::is_void_v<T>)
      if (const size_t bytes = asked(from, element_size); bytes != sizeof(T))
        throw type_error("expected a tensor of entries of " + std::to_string(sizeof(T)) + " bytes, got " +
                         std::to_string(bytes));
    value.data = reinterpret_cast<T*>(asked(from, data_ptr));
    return true;
  }
};
}  // namespace pybind11::detail

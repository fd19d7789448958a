// clip_weights_ for Python without the dispatcher; binds `clip_plain`.
#pragma once

#include <pybind11/pybind11.h>

namespace fastgen {

void bind_clip(pybind11::module_& m);

}  // namespace fastgen

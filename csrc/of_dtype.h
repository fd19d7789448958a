// The kernels of a tensor's dtype, out of a table with one member for each.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace fastgen {

// `op` and `argument` are for the error of any other dtype.
template <class Table>
const auto& of_dtype(const Table& table, const at::Tensor& tensor, const char* op,
                     const char* argument) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return table.float32;
    case at::kDouble:
      return table.float64;
    case at::kBFloat16:
      return table.bfloat16;
    case at::kHalf:
      return table.float16;
    default:
      TORCH_CHECK_TYPE(false, "fastgen.", op, ": ", argument, " must be floating point, got ",
                       tensor.scalar_type());
  }
}

}  // namespace fastgen

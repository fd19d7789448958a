// Indices as rows, and the choice of a kernel: what the gradient and the statistics share.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "vq_rows.h"
#include "vq_types.h"

namespace fastgen {

// Contiguous indices (or what stands like them), of a head; the next one is shape.inner further.
inline StridedRows index_rows(const at::Tensor& indices, const VqShape& shape) {
  StridedRows rows{};
  rows.data = const_cast<void*>(indices.const_data_ptr());
  if (shape.heads == 1) {
    rows.axes = 1;
    rows.sizes[0] = shape.rows;
    rows.steps[0] = 1;
  } else {
    rows.axes = 2;
    rows.sizes[0] = shape.rows / shape.inner;
    rows.steps[0] = shape.heads * shape.inner;
    rows.sizes[1] = shape.inner;
    rows.steps[1] = 1;
  }
  return rows;
}

template <class Function>
Function vq_kernel(const char* op, const VqKernelsByType<Function>& kernels, at::ScalarType storage,
                   at::ScalarType arithmetic) {
  const auto of = [&](const auto& pair) {
    return arithmetic == at::kDouble ? pair.in_float64 : pair.in_float32;
  };
  switch (storage) {
    case at::kFloat:
      return of(kernels.float32);
    case at::kDouble:
      return kernels.float64.in_float64;
    case at::kBFloat16:
      return of(kernels.bfloat16);
    case at::kHalf:
      return of(kernels.float16);
    default:
      TORCH_CHECK_TYPE(false, "fastgen.", op, ": x must be floating point, got ", storage);
  }
}

}  // namespace fastgen

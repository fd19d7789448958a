// How the vector-quantisation ops see their tensors: rows of D values for each head. `dim` is the
// axis of the values; with heads the axis before it counts them, and the others enumerate the rows.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "common/strided_rows.h"

namespace fastgen {

struct VqShape {
  int64_t heads, rows, values, codes;
  int64_t inner;  // rows of a head between two of another: where `dim` is not the last axis
  bool has_heads;
  int64_t dim;

  // Where row r of head g stands in tensors like the indices.
  int64_t index_at(int64_t g, int64_t r) const {
    return (r / inner * heads + g) * inner + r % inner;
  }
};

inline VqShape vq_shape(const char* op, const at::Tensor& x, const at::Tensor& codebook,
                        int64_t dim) {
  const bool has_heads = codebook.dim() == 3;
  TORCH_CHECK_VALUE((codebook.dim() == 2 || has_heads) && codebook.numel() > 0, "fastgen.", op,
                    ": codebook must be (K, D) or (G, K, D) with at least one code, got ",
                    codebook.sizes());
  TORCH_CHECK_VALUE(dim >= has_heads && dim < x.dim() && x.size(dim) == codebook.size(-1) &&
                        (!has_heads || x.size(dim - 1) == codebook.size(0)),
                    "fastgen.", op, ": axis ", dim, " of x ", x.sizes(),
                    " must hold the values of a codebook ", codebook.sizes());
  VqShape shape{};
  shape.has_heads = has_heads;
  shape.dim = dim;
  shape.heads = has_heads ? codebook.size(0) : 1;
  shape.codes = codebook.size(-2);
  shape.values = codebook.size(-1);
  shape.inner = 1;
  for (int64_t axis = dim + 1; axis < x.dim(); ++axis) shape.inner *= x.size(axis);
  shape.rows = x.numel() / (shape.heads * shape.values);
  if (shape.inner == 0) shape.inner = 1;  // no rows
  return shape;
}

// x's element size is known to the kernel; heads lie head_step apart.
inline StridedRows strided_rows(const at::Tensor& x, const VqShape& shape) {
  StridedRows rows{};
  rows.data = const_cast<void*>(x.const_data_ptr());
  rows.value = x.stride(shape.dim);
  int axes = 0;
  for (int64_t axis = 0; axis < x.dim(); ++axis) {
    if (axis == shape.dim || (shape.has_heads && axis == shape.dim - 1)) continue;
    const int64_t size = x.size(axis), step = x.stride(axis);
    if (size == 1) continue;
    if (axes > 0 && rows.steps[axes - 1] == size * step) {
      rows.sizes[axes - 1] *= size;
      rows.steps[axes - 1] = step;
      continue;
    }
    rows.sizes[axes] = size;
    rows.steps[axes++] = step;
  }
  if (axes == 0) {
    rows.sizes[0] = 1;
    rows.steps[0] = shape.values;
    axes = 1;
  }
  rows.axes = axes;
  return rows;
}

inline int64_t head_step(const at::Tensor& x, const VqShape& shape) {
  return shape.has_heads ? x.stride(shape.dim - 1) : 0;
}

}  // namespace fastgen

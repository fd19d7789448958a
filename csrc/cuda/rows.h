// Tensors of any layout as the rows that kernels take: neighbouring dimensions joined, flat where
// all operands lie densely in the same order, and cut where a row would be too large.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda/multi_tensor.h"

namespace fastgen {
namespace cuda {

// Elements of a row, so that an index within it needs no 64 bits.
constexpr int64_t kMaxElements = int64_t{1} << 30;

// A dimension, and how many elements apart its neighbours are in each operand.
struct Dim {
  int64_t size;
  int64_t strides[kMaxOperands];
};

// The dimensions that matter, the first operand's longest strides first, joined where in all
// operands one continues the other. `operands`: bit j for operand j.
inline std::vector<Dim> joined(std::vector<Dim> dims, unsigned operands) {
  dims.erase(std::remove_if(dims.begin(), dims.end(), [](const Dim& d) { return d.size == 1; }),
             dims.end());
  std::stable_sort(dims.begin(), dims.end(),
                   [](const Dim& a, const Dim& b) { return a.strides[0] > b.strides[0]; });
  std::vector<Dim> result;
  for (const Dim& inner : dims) {
    bool continues = !result.empty();
    for (int j = 0; j < kMaxOperands && continues; ++j) {
      if ((operands >> j) & 1) {
        continues = result.back().strides[j] == inner.size * inner.strides[j];
      }
    }
    if (continues) {
      const int64_t outer = result.back().size;
      result.back() = inner;
      result.back().size *= outer;
    } else {
      result.push_back(inner);
    }
  }
  return result;
}

// `row`: all is set but elements, dims, sizes and strides. `size`: bytes of an element. The step
// stays with the first of the rows that are appended.
inline void cut_into_rows(Row row, int64_t size, const std::vector<Dim>& dims,
                          std::vector<Row>* rows) {
  unsigned operands = 0;
  for (int j = 0; j < kMaxOperands; ++j) operands |= (row.data[j] != nullptr) << j;
  const std::vector<Dim> left = joined(dims, operands);
  row.elements = 1;
  for (const Dim& dim : left) row.elements *= dim.size;
  row.dims = 0;
  if (row.elements == 0) {
    rows->push_back(row);
    return;
  }

  if (row.elements > kMaxElements || left.size() > kMaxDims) {
    const int64_t inner = row.elements / left[0].size;
    // as many of the outermost at once as a row holds; one, if the dimension itself must go
    const int64_t most = left.size() > kMaxDims ? 1 : std::max<int64_t>(1, kMaxElements / inner);
    for (int64_t at = 0; at < left[0].size; at += most) {
      Row part = row;
      std::vector<Dim> of_part = left;
      of_part[0].size = std::min(most, left[0].size - at);
      if (at > 0) part.step = nullptr;
      for (int j = 0; j < kMaxOperands; ++j) {
        if (row.data[j] != nullptr) {
          part.data[j] = static_cast<char*>(row.data[j]) + at * left[0].strides[j] * size;
        }
      }
      cut_into_rows(part, size, of_part, rows);
    }
    return;
  }

  bool flat = left.size() <= 1;
  for (size_t i = 0; i < left.size(); ++i) {
    row.sizes[i] = left[i].size;
    for (int j = 0; j < kMaxOperands; ++j) {
      row.strides[j][i] = left[i].strides[j];
      if ((operands >> j) & 1) flat = flat && left[i].strides[j] == 1;
    }
  }
  if (!flat) row.dims = static_cast<int32_t>(left.size());
  rows->push_back(row);
}

}  // namespace cuda
}  // namespace fastgen

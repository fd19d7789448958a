// What the likelihoods of (B, ...) tensors ask of torch: rows without a copy where they are
// adjacent values in one order, and sums of their pieces.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "common/sample_rows.h"

namespace fastgen {

// Whether each sample's values are adjacent, in the order of `format`.
inline bool has_dense_rows(const at::Tensor& t, at::MemoryFormat format) {
  const bool last = format != at::MemoryFormat::Contiguous;
  int64_t expected = 1;
  const auto fits = [&](int64_t axis) {
    const bool ok = t.size(axis) == 1 || t.stride(axis) == expected;
    expected *= t.size(axis);
    return ok;
  };
  if (t.numel() == 0) return true;
  if (last && !fits(1)) return false;
  for (int64_t axis = t.dim() - 1; axis > (last ? 1 : 0); --axis) {
    if (!fits(axis)) return false;
  }
  return true;
}

inline at::Tensor with_dense_rows(const at::Tensor& t, at::MemoryFormat format) {
  return has_dense_rows(t, format) ? t : t.contiguous(format);
}

inline SampleRows sample_rows(const at::Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.size(0) > 1 ? t.stride(0) : 0};
}

inline at::Tensor empty_like_rows(const at::Tensor& t, at::MemoryFormat format) {
  return at::empty(t.sizes(), t.options(), format);
}

// Over all pieces of all rows.
template <class F>
void for_pieces(int64_t samples, int64_t values, F f) {
  const int64_t pieces = pieces_of(values), length = std::min(values, kPieceValues);
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, length));
  at::parallel_for(0, samples * pieces, grain, f);
}

template <class T>
at::Tensor sums_of_pieces(const at::Tensor& sums, int64_t samples, at::Tensor out) {
  const int64_t pieces = samples == 0 ? 0 : sums.numel() / samples;
  const double* from = sums.const_data_ptr<double>();
  T* to = out.mutable_data_ptr<T>();
  for (int64_t i = 0; i < samples; ++i) {
    double total = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) total += *from++;
    to[i] = static_cast<T>(total);
  }
  return out;
}

// One float64 sum for each piece -> (B,) in float32, or float64 for float64 values.
inline at::Tensor per_sample(const at::Tensor& sums, const at::Tensor& like) {
  const int64_t samples = like.size(0);
  if (like.scalar_type() == at::kDouble) {
    return sums_of_pieces<double>(sums, samples,
                                  at::empty({samples}, like.options().dtype(at::kDouble)));
  }
  return sums_of_pieces<float>(sums, samples,
                               at::empty({samples}, like.options().dtype(at::kFloat)));
}

}  // namespace fastgen

// The lookup that vq_nearest and vq_quantize share: packs each head's codebook, and searches blocks
// of its rows over the threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "vq_rows.h"

namespace fastgen {

struct VqLookup {
  const char* op;
  bool cosine = false;
  std::optional<bool> filter = std::nullopt;  // bfloat16 first; none: where it pays
  std::optional<at::Tensor> mask = std::nullopt;
  at::Tensor indices;  // written
  // Both or none, written: in x's dtype and layout; float or double, see vq_compute_type.
  std::optional<at::Tensor> quantized = std::nullopt, commitment = std::nullopt;

  void run(const at::Tensor& x, const at::Tensor& codebook, const VqShape& shape) const;
};

// float64 if either is, else float32.
at::ScalarType vq_compute_type(const char* op, const at::Tensor& x, const at::Tensor& codebook);

// An empty tensor for one index a row.
at::Tensor vq_empty_indices(const at::Tensor& x, const VqShape& shape);

}  // namespace fastgen

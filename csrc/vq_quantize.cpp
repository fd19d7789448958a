#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "vq_lookup.h"
#include "vq_statistics.h"

namespace fastgen {

using at::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> vq_quantize(const Tensor& x,
                                                               const Tensor& codebook, int64_t dim,
                                                               const std::optional<Tensor>& mask,
                                                               bool /*rotation: of the gradient*/,
                                                               std::optional<bool> filter) {
  const VqShape shape = vq_shape("vq_quantize", x, codebook, dim);
  TORCH_CHECK_VALUE(
      !mask.has_value() || (mask->scalar_type() == at::kBool && mask->numel() == shape.rows),
      "fastgen.vq_quantize: mask must be bool with one entry a row, ", shape.rows);
  VqLookup lookup;
  lookup.op = "vq_quantize";
  lookup.filter = filter;
  if (mask.has_value()) lookup.mask = mask->contiguous();
  lookup.indices = vq_empty_indices(x, shape);
  lookup.quantized = at::empty_like(x);
  lookup.commitment = at::empty({shape.rows * shape.heads},
                                x.options().dtype(vq_compute_type(lookup.op, x, codebook)));
  lookup.run(x, codebook, shape);

  const auto sizes = codebook.sizes();
  Tensor counts = at::empty(sizes.slice(0, sizes.size() - 1), codebook.options().dtype(at::kLong));
  Tensor sums = at::empty(sizes, codebook.options().dtype(at::kDouble));
  vq_statistics(x, lookup.indices, *lookup.commitment, shape, counts, sums);
  return {*lookup.quantized, lookup.indices, *lookup.commitment, counts, sums};
}

}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("vq_quantize", &fastgen::vq_quantize); }

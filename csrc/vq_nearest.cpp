#include <torch/library.h>

#include "vq_lookup.h"

namespace fastgen {

at::Tensor vq_nearest(const at::Tensor& x, const at::Tensor& codebook, int64_t dim, bool cosine,
                      std::optional<bool> filter) {
  const VqShape shape = vq_shape("vq_nearest", x, codebook, dim);
  VqLookup lookup;
  lookup.op = "vq_nearest";
  lookup.cosine = cosine;
  lookup.filter = filter;
  lookup.indices = vq_empty_indices(x, shape);
  lookup.run(x, codebook, shape);
  return lookup.indices;
}

}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("vq_nearest", &fastgen::vq_nearest); }

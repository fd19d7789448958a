#include "philox_normal.h"

#include <torch/library.h>

#include "philox_glue.h"

namespace fastgen {

at::Tensor philox_normal(const at::Tensor& seed, at::IntArrayRef size, at::ScalarType dtype) {
  return philox_filled("philox_normal", FASTGEN_KERNELS(philox_normal), seed, size, dtype);
}

void philox_normal_(const at::Tensor& out, const at::Tensor& seed) {
  philox_fill("philox_normal", FASTGEN_KERNELS(philox_normal), out, seed);
}

}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("philox_normal", &fastgen::philox_normal);
  m.impl("philox_normal_", &fastgen::philox_normal_);
}

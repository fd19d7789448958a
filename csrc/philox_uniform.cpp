#include "philox_uniform.h"

#include <torch/library.h>

#include "philox_glue.h"

namespace fastgen {

at::Tensor philox_uniform(const at::Tensor& seed, at::IntArrayRef size, at::ScalarType dtype) {
  return philox_filled("philox_uniform", FASTGEN_KERNELS(philox_uniform), seed, size, dtype);
}

void philox_uniform_(const at::Tensor& out, const at::Tensor& seed) {
  philox_fill("philox_uniform", FASTGEN_KERNELS(philox_uniform), out, seed);
}

}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("philox_uniform", &fastgen::philox_uniform);
  m.impl("philox_uniform_", &fastgen::philox_uniform_);
}

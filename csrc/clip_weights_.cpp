#include "clip_weights_.h"

#include <torch/library.h>

#include "multi_tensor.h"

namespace fastgen {

int64_t clip(const ClipSettings& settings, MultiTensor& weights) {
  const ClipKernels& kernels = FASTGEN_KERNELS(clip_weights_);
  return weights.run(
      [&](at::ScalarType type, at::ScalarType, const Segment* segments, int64_t count) {
        return of_type(kernels, type)(settings, segments, count);
      });
}

at::Tensor clip_weights_(at::TensorList tensors, double low, double high) {
  MultiTensor weights("clip_weights_", {{"tensors", true}});
  weights.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) weights.add({&tensor});
  return count_tensor(clip({low, high}, weights));
}

}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("clip_weights_", &fastgen::clip_weights_); }

#include "ema_update_.h"

#include <torch/library.h>

#include "multi_tensor.h"

namespace fastgen {

void ema_update_(at::TensorList targets, at::TensorList sources, double decay) {
  constexpr const char* kOp = "ema_update_";
  check_length(kOp, "sources", sources.size(), targets.size());
  MultiTensor pairs(kOp, {{"targets", true}, {"sources", false, /*any_float=*/true}});
  pairs.reserve(targets.size());
  for (size_t i = 0; i < targets.size(); ++i) pairs.add({&targets[i], &sources[i]});
  const EmaKernels& kernels = FASTGEN_KERNELS(ema_update_);
  const EmaSettings settings{decay};
  pairs.run(
      [&](at::ScalarType target, at::ScalarType source, const Segment* segments, int64_t count) {
        return of_type(of_type(kernels, target), source)(settings, segments, count);
      });
}

}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("ema_update_", &fastgen::ema_update_); }

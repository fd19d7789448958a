// vq_ema_update_'s CPU kernels: rows of values between storage types and float64.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/isa.h"

namespace fastgen {

struct VqEmaUpdateKernels {
  // out = average = decay average + (1 - decay) sums
  using Blend = void (*)(void* average, const double* sums, double decay, double* out, int64_t n);
  // embed[row] = average[row] / size[row]
  using Divide = void (*)(const double* average, const double* size, void* embed, int64_t rows,
                          int64_t values);
  struct PerType {
    Blend blend;
    Divide divide;
  };
  PerType float32, float64, bfloat16, float16;
};

FASTGEN_DECLARE_KERNELS(VqEmaUpdateKernels, vq_ema_update_)

}  // namespace fastgen

// rmsprop_clip_'s CPU kernels.
#pragma once

#include "common/half.h"
#include "common/isa.h"
#include "update_rules.h"
#include "update_segment.h"

namespace fastgen {

struct RmspropKernels {
  // Operands: param, grad, square_avg, momentum_buffer or null, grad_avg or null. Returns how many
  // weights are at a bound.
  using Step = int64_t (*)(const RmspropSettings&, const Segment*, int64_t segments);
  Step float32, float64, bfloat16, float16;
};

FASTGEN_DECLARE_KERNELS(RmspropKernels, rmsprop_clip_)

}  // namespace fastgen

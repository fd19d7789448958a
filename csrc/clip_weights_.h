// clip_weights_'s CPU kernels.
#pragma once

#include "common/half.h"
#include "common/isa.h"
#include "update_rules.h"
#include "update_segment.h"

namespace fastgen {

struct ClipKernels {
  // Operands: the weights. Returns how many are at a bound.
  using Clip = int64_t (*)(const ClipSettings&, const Segment*, int64_t segments);
  Clip float32, float64, bfloat16, float16;
};

FASTGEN_DECLARE_KERNELS(ClipKernels, clip_weights_)

}  // namespace fastgen

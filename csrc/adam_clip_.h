// adam_clip_'s CPU kernels.
#pragma once

#include "common/half.h"
#include "common/isa.h"
#include "update_rules.h"
#include "update_segment.h"

namespace fastgen {

struct AdamKernels {
  // Operands: param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq or null; a segment's own numbers:
  // -lr / (1 - beta1^t) and sqrt(1 - beta2^t). Returns how many weights are at a bound.
  using Step = int64_t (*)(const AdamSettings&, const Segment*, int64_t segments);
  Step float32, float64, bfloat16, float16;
};

FASTGEN_DECLARE_KERNELS(AdamKernels, adam_clip_)

}  // namespace fastgen

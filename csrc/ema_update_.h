// ema_update_'s CPU kernels.
#pragma once

#include "common/half.h"
#include "common/isa.h"
#include "update_rules.h"
#include "update_segment.h"

namespace fastgen {

struct EmaKernels {
  // Operands: target, source.
  using Update = int64_t (*)(const EmaSettings&, const Segment*, int64_t segments);
  struct PerTarget {
    Update float32, float64, bfloat16, float16;  // of the source
  };
  PerTarget float32, float64, bfloat16, float16;
};

FASTGEN_DECLARE_KERNELS(EmaKernels, ema_update_)

}  // namespace fastgen

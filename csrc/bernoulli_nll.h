// bernoulli_nll's CPU kernels: binary cross-entropy with logits, summed per sample.
#pragma once

#include <atomic>

#include "common/isa.h"
#include "common/sample_rows.h"

namespace fastgen {

enum class TargetType { kSame, kFloat, kUint8 };  // of the target: the logits' own, float32, bytes

struct BernoulliArgs {
  SampleRows logits, target;
  TargetType target_type;
  int64_t values;
  double* sums;                // forward: of pieces, [sample][piece]
  std::atomic<bool>* outside;  // forward: set where a target is none of 0 .. 1
  SampleRows grad_nll;         // backward: one value each, in the arithmetic type
  SampleRows grad_logits;      // backward; no data: not wanted
  SampleRows grad_target;
};

struct BernoulliKernels {
  using Range = void (*)(const BernoulliArgs&, int64_t begin, int64_t end);  // pieces
  struct PerType {
    Range forward, backward;
  };
  PerType float32, float64, bfloat16, float16;
};

FASTGEN_DECLARE_KERNELS(BernoulliKernels, bernoulli_nll)

}  // namespace fastgen

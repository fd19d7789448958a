// gaussian_nll's CPU kernels: the negative log-density under Gaussians, summed per sample.
#pragma once

#include "common/isa.h"
#include "common/sample_rows.h"

namespace fastgen {

enum class ValueType { kSame, kFloat };  // the mean's own storage type, or float32

struct GaussianArgs {
  SampleRows mean, target, logvar;
  ValueType target_type, logvar_type;
  bool one_logvar;  // for all values: `log_variance`, in place of the rows
  double log_variance;
  int64_t values;
  double* sums;         // forward: of pieces, [sample][piece]; backward, one_logvar: its gradient's
  SampleRows grad_nll;  // backward: one value each, in the arithmetic type
  SampleRows grad_mean;  // backward; no data: not wanted
  SampleRows grad_target, grad_logvar;
};

struct GaussianKernels {
  using Range = void (*)(const GaussianArgs&, int64_t begin, int64_t end);  // pieces
  struct PerType {
    Range forward, backward;
  };
  PerType float32, float64, bfloat16, float16;
};

FASTGEN_DECLARE_KERNELS(GaussianKernels, gaussian_nll)

}  // namespace fastgen

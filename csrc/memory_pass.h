// The machine's ceiling for an update of weights: one pass over three flat arrays, two of them
// written back, with next to no arithmetic; for benchmarks to divide by.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

struct MemoryPassKernels {
  void (*run)(float* weights, const float* grads, float* averages, int64_t count);
};

FASTGEN_DECLARE_KERNELS(MemoryPassKernels, memory_pass)

}  // namespace fastgen

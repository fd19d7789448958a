// The machine's arithmetic ceiling: register-only float32 multiply-adds, for benchmarks to divide
// by.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

struct FmaPeakKernels {
  double (*run)(int64_t iterations);  // returns the number of FLOPs done
};

FASTGEN_DECLARE_KERNELS(FmaPeakKernels, fma_peak)

}  // namespace fastgen

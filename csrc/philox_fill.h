// What the kernels that fill tensors with random numbers look like to the glue.
#pragma once

#include <cstdint>

#include "common/half.h"

namespace fastgen {

// A kernel makes elements [begin, end) of a tensor from `out` on, out[0] being element `begin`,
// which is a multiple of this.
constexpr int64_t kPhiloxUnit = 1024;

struct PhiloxFillKernels {
  template <class S>
  using Range = void (*)(uint64_t seed, int64_t begin, int64_t end, S* out);
  Range<float> float32;
  Range<double> float64;
  Range<BFloat16> bfloat16;
  Range<Float16> float16;
};

}  // namespace fastgen

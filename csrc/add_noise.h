// add_noise's CPU kernels: masking, Gaussian, or salt-and-pepper noise of a counter-based
// generator.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/isa.h"

namespace fastgen {

enum class NoiseKind : int64_t { kMask, kGaussian, kSaltPepper };

template <class S>
struct AddNoiseArgs {
  NoiseKind kind;
  double amount, low, high;
  uint64_t seed;
  const S* x;  // adjacent elements in row-major order
  S* out;
  bool* changed;  // or null
};

// Kernels do elements [begin, end); begin is a multiple of this.
constexpr int64_t kNoiseUnit = 1024;

struct AddNoiseKernels {
  template <class S>
  using Range = void (*)(const AddNoiseArgs<S>&, int64_t begin, int64_t end);
  Range<float> float32;
  Range<double> float64;
  Range<BFloat16> bfloat16;
  Range<Float16> float16;
};

FASTGEN_DECLARE_KERNELS(AddNoiseKernels, add_noise)

}  // namespace fastgen

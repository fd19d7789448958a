// What rmsprop_clip_ and adam_clip_ read of the device before their arithmetic.
#pragma once

#include "cuda/multi_tensor.cuh"

namespace fastgen {
namespace cuda {
namespace {

// Bits of `operands`, in the order of the two optimisers.
constexpr unsigned kParam = 1, kGrad = 2, kThird = 4, kFourth = 8, kFifth = 16;

__device__ __forceinline__ bool skips(const DeviceNumbers& numbers) {
  return numbers.found_inf != nullptr && *numbers.found_inf != 0;
}

__device__ __forceinline__ double rate_of(const DeviceNumbers& numbers, double otherwise) {
  if (numbers.rate != nullptr) return *numbers.rate;
  return numbers.double_rate != nullptr ? *numbers.double_rate : otherwise;
}

// Divided in the arithmetic type: of a float32 scale, the same as in double and then rounded.
template <class A>
__device__ __forceinline__ void unscale(const DeviceNumbers& numbers, bool maximize,
                                        GradientValues<A>* gradient) {
  if (numbers.grad_scale == nullptr) return;
  const typename A::Value sign = maximize ? -1 : 1;
  gradient->factor = A::rounded(sign / static_cast<typename A::Value>(*numbers.grad_scale));
}

}  // namespace
}  // namespace cuda
}  // namespace fastgen

// From tensors to the kernels that fill them with random numbers.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "own_seed.h"
#include "philox_fill.h"

namespace fastgen {

template <class S>
void philox_fill(void (*kernel)(uint64_t, int64_t, int64_t, S*), uint64_t seed, void* data,
                 int64_t count) {
  S* out = static_cast<S*>(data);
  const int64_t units = (count + kPhiloxUnit - 1) / kPhiloxUnit;
  at::parallel_for(0, units, /*grain_size=*/8, [&](int64_t begin, int64_t end) {
    begin *= kPhiloxUnit;
    kernel(seed, begin, std::min(end * kPhiloxUnit, count), out + begin);
  });
}

inline void philox_fill(const char* op, const PhiloxFillKernels& kernels, const at::Tensor& out,
                        const at::Tensor& seed) {
  const uint64_t value = seed_value(op, seed);
  if (out.numel() == 0) return;
  const at::Tensor written = out.contiguous();
  void* data = written.mutable_data_ptr();
  switch (out.scalar_type()) {
    case at::kFloat:
      philox_fill(kernels.float32, value, data, out.numel());
      break;
    case at::kDouble:
      philox_fill(kernels.float64, value, data, out.numel());
      break;
    case at::kBFloat16:
      philox_fill(kernels.bfloat16, value, data, out.numel());
      break;
    case at::kHalf:
      philox_fill(kernels.float16, value, data, out.numel());
      break;
    default:
      TORCH_CHECK_TYPE(false, "fastgen.", op, ": dtype must be floating point, got ",
                       out.scalar_type());
  }
  if (!written.is_same(out)) out.copy_(written);
}

inline at::Tensor philox_filled(const char* op, const PhiloxFillKernels& kernels,
                                const at::Tensor& seed, at::IntArrayRef size,
                                at::ScalarType dtype) {
  at::Tensor out = at::empty(size, seed.options().dtype(dtype));
  philox_fill(op, kernels, out, seed);
  return out;
}

}  // namespace fastgen

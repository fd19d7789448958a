// The seed that an op draws for itself when it is given none: fastgen/reference/seeds.py in C++.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <mutex>
#include <optional>

namespace fastgen {

inline uint64_t seed_value(const char* op, const at::Tensor& seed) {
  TORCH_CHECK_VALUE(seed.scalar_type() == at::kLong && seed.numel() == 1, "fastgen.", op,
                    ": seed must be one int64, got ", seed.scalar_type(), " ", seed.sizes());
  return static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
}

inline at::Tensor seed_of(uint64_t value) {
  at::Tensor word = at::empty({}, at::TensorOptions(at::kLong));
  *word.mutable_data_ptr<int64_t>() = static_cast<int64_t>(value);
  return word;
}

// A copy of `seed`, or else 64 bits of the default generator: those that Tensor.random_ over all of
// int64 takes, at a tenth of its cost.
inline at::Tensor seed_or_draw(const char* op, const std::optional<at::Tensor>& seed) {
  uint64_t value;
  if (seed.has_value()) {
    value = seed_value(op, *seed);
  } else {
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    value = generator.get<at::CPUGeneratorImpl>()->random64();
  }
  return seed_of(value);
}

}  // namespace fastgen

#include "add_noise.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "own_seed.h"

namespace fastgen {
namespace {

using at::Tensor;

template <class S>
void run(void (*kernel)(const AddNoiseArgs<S>&, int64_t, int64_t), const Tensor& x, NoiseKind kind,
         double amount, double low, double high, uint64_t seed, const Tensor& out,
         const Tensor& changed) {
  AddNoiseArgs<S> args{kind, amount, low, high, seed, nullptr, nullptr, nullptr};
  args.x = static_cast<const S*>(x.const_data_ptr());
  args.out = static_cast<S*>(out.mutable_data_ptr());
  if (changed.defined() && changed.numel() > 0) args.changed = changed.mutable_data_ptr<bool>();
  const int64_t count = x.numel(), units = (count + kNoiseUnit - 1) / kNoiseUnit;
  at::parallel_for(0, units, /*grain_size=*/8, [&](int64_t begin, int64_t end) {
    kernel(args, begin * kNoiseUnit, std::min(end * kNoiseUnit, count));
  });
}

// Noisy x in its memory format. Noise goes by the row-major index: other layouts are copied to it
// and back.
Tensor noisy_copy(const Tensor& x, NoiseKind kind, double amount, double low, double high,
                  uint64_t seed, const Tensor& changed) {
  Tensor out = at::empty(x.sizes(), x.options(), x.suggest_memory_format());
  if (x.numel() == 0) return out;
  const Tensor from = x.contiguous();
  const Tensor written = out.is_contiguous() ? out : at::empty(x.sizes(), x.options());
  const AddNoiseKernels& kernels = FASTGEN_KERNELS(add_noise);
  switch (x.scalar_type()) {
    case at::kFloat:
      run(kernels.float32, from, kind, amount, low, high, seed, written, changed);
      break;
    case at::kDouble:
      run(kernels.float64, from, kind, amount, low, high, seed, written, changed);
      break;
    case at::kBFloat16:
      run(kernels.bfloat16, from, kind, amount, low, high, seed, written, changed);
      break;
    case at::kHalf:
      run(kernels.float16, from, kind, amount, low, high, seed, written, changed);
      break;
    default:
      TORCH_CHECK_TYPE(false, "fastgen.add_noise: x must be floating point, got ", x.scalar_type());
  }
  if (!written.is_same(out)) out.copy_(written);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> add_noise(const Tensor& x, int64_t kind, double amount,
                                             double low, double high,
                                             const std::optional<Tensor>& seed, bool return_mask) {
  const Tensor used_seed = seed_or_draw("add_noise", seed);
  const Tensor mask = return_mask ? at::empty(x.sizes(), x.options().dtype(at::kBool))
                                  : at::empty({0}, x.options().dtype(at::kBool));
  const Tensor noisy = noisy_copy(x, static_cast<NoiseKind>(kind), amount, low, high,
                                  seed_value("add_noise", used_seed), mask);
  return {noisy, mask, used_seed};
}

Tensor add_noise_backward(const Tensor& grad_noisy, int64_t kind, double amount,
                          const Tensor& used_seed) {
  if (static_cast<NoiseKind>(kind) == NoiseKind::kGaussian) return grad_noisy.clone();
  return noisy_copy(grad_noisy, NoiseKind::kMask, amount, 0, 0, seed_value("add_noise", used_seed),
                    Tensor());
}

}  // namespace
}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("add_noise", &fastgen::add_noise);
  m.impl("add_noise_backward", &fastgen::add_noise_backward);
}

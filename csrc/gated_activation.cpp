#include "gated_activation.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <tuple>

#include "gate_gradient.h"

namespace fastgen {
namespace {

using at::Tensor;

// Elements a thread should have: below this the other threads cost more than they bring.
constexpr int64_t kGrain = 8192;

bool channels_last(const Tensor& x) {
  const auto format = x.suggest_memory_format();
  return format == at::MemoryFormat::ChannelsLast || format == at::MemoryFormat::ChannelsLast3d;
}

// x's shape with half the channels.
Tensor empty_output(const Tensor& x) {
  auto sizes = x.sizes().vec();
  sizes[1] /= 2;
  return at::empty(sizes, x.options(), x.suggest_memory_format());
}

int64_t pixels_of(const Tensor& x) {
  int64_t pixels = 1;
  for (int64_t d = 2; d < x.dim(); ++d) pixels *= x.size(d);
  return pixels;
}

struct Operands {  // dense, in x's memory format
  Tensor x, condition;
  Condition kind = Condition::kNone;

  Operands(const Tensor& x_in, const std::optional<Tensor>& condition_in) {
    TORCH_CHECK_VALUE(x_in.dim() >= 2 && x_in.size(1) % 2 == 0,
                      "fastgen.gated_activation: x must be (B, 2C, ...), got ", x_in.sizes());
    const auto format = x_in.suggest_memory_format();
    x = x_in.contiguous(format);
    if (!condition_in.has_value()) return;
    const bool per_sample = condition_in->dim() == 2;
    TORCH_CHECK_VALUE(per_sample ? condition_in->sizes() == x_in.sizes().slice(0, 2)
                                 : condition_in->sizes() == x_in.sizes(),
                      "fastgen.gated_activation: condition must be (B, 2C) or x's shape ",
                      x_in.sizes(), ", got ", condition_in->sizes());
    TORCH_CHECK_TYPE(condition_in->scalar_type() == x_in.scalar_type(),
                     "fastgen.gated_activation: condition must have x's dtype ", x_in.scalar_type(),
                     ", got ", condition_in->scalar_type());
    kind = per_sample ? Condition::kPerSample : Condition::kPerPixel;
    condition = per_sample ? condition_in->contiguous() : condition_in->contiguous(format);
  }
};

template <class S>
GatedActivationArgs<S> arguments(const Operands& in) {
  GatedActivationArgs<S> args{};
  args.x = static_cast<const S*>(in.x.const_data_ptr());
  if (in.condition.defined()) args.condition = static_cast<const S*>(in.condition.const_data_ptr());
  args.channels = in.x.size(1) / 2;
  args.pixels = pixels_of(in.x);
  args.kind = in.kind;
  args.channels_last = channels_last(in.x);
  return args;
}

// Calls f with the kernels of x's dtype and a null pointer of their storage type.
template <class F>
void dispatch(const Tensor& x, F f) {
  const GatedActivationKernels& kernels = FASTGEN_KERNELS(gated_activation);
  switch (x.scalar_type()) {
    case at::kFloat:
      return f(kernels.float32, static_cast<float*>(nullptr));
    case at::kDouble:
      return f(kernels.float64, static_cast<double*>(nullptr));
    case at::kBFloat16:
      return f(kernels.bfloat16, static_cast<BFloat16*>(nullptr));
    case at::kHalf:
      return f(kernels.float16, static_cast<Float16*>(nullptr));
    default:
      TORCH_CHECK_TYPE(false, "fastgen.gated_activation: x must be floating point, got ",
                       x.scalar_type());
  }
}

// `units` ranges of `length` elements each, over the threads.
template <class Kernel, class Args>
void run(Kernel kernel, const Args& args, int64_t units, int64_t length) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, length));
  at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace

Tensor gated_activation(const Tensor& x, const std::optional<Tensor>& condition) {
  const Operands in(x, condition);
  Tensor y = empty_output(in.x);
  dispatch(x, [&](const auto& kernels, auto* storage) {
    using S = std::remove_pointer_t<decltype(storage)>;
    auto args = arguments<S>(in);
    args.y = static_cast<S*>(y.mutable_data_ptr());
    const int64_t inner = args.channels_last ? args.channels : args.pixels;
    if (y.numel() > 0) run(kernels.forward, args, y.numel() / inner, inner);
  });
  return y;
}

std::tuple<Tensor, Tensor> gate_gradient(const Tensor& grad, const std::optional<Tensor>& grad_pre,
                                         const Tensor& x, const std::optional<Tensor>& condition,
                                         bool needs_condition) {
  const Operands in(x, condition);
  const auto format = in.x.suggest_memory_format();
  const Tensor grad_y = grad.contiguous(format);
  const Tensor addend = grad_pre.has_value() ? grad_pre->contiguous(format) : Tensor();
  Tensor grad_x = at::empty(in.x.sizes(), in.x.options(), format);
  Tensor grad_condition = needs_condition ? at::zeros(in.x.sizes().slice(0, 2), in.x.options())
                                          : at::empty({0}, in.x.options());
  dispatch(x, [&](const auto& kernels, auto* storage) {
    using S = std::remove_pointer_t<decltype(storage)>;
    auto args = arguments<S>(in);
    args.grad_y = static_cast<const S*>(grad_y.const_data_ptr());
    if (addend.defined()) args.grad_pre = static_cast<const S*>(addend.const_data_ptr());
    args.grad_x = static_cast<S*>(grad_x.mutable_data_ptr());
    if (needs_condition) args.grad_condition = static_cast<S*>(grad_condition.mutable_data_ptr());
    if (grad_x.numel() == 0) return;
    const int64_t batch = in.x.size(0);
    if (!args.channels_last) {
      run(kernels.backward, args, batch * args.channels, args.pixels);
    } else if (needs_condition) {
      const int64_t blocks = (args.channels + kGateChannelBlock - 1) / kGateChannelBlock;
      run(kernels.backward, args, batch * blocks, args.pixels * kGateChannelBlock);
    } else {
      run(kernels.backward, args, batch * args.pixels, args.channels);
    }
  });
  return {grad_x, grad_condition};
}

std::tuple<Tensor, Tensor> gated_activation_backward(const Tensor& grad, const Tensor& x,
                                                     const std::optional<Tensor>& condition,
                                                     bool needs_condition) {
  return gate_gradient(grad, std::nullopt, x, condition, needs_condition);
}

}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("gated_activation", &fastgen::gated_activation);
  m.impl("gated_activation_backward", &fastgen::gated_activation_backward);
}

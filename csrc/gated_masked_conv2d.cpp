// gated_masked_conv2d on the CPU: the two kernels one behind the other.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "gate_gradient.h"

namespace fastgen {
namespace {

using at::Tensor;
using Convolution = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&,
                           const Tensor&, const Tensor&, at::IntArrayRef);

std::tuple<Tensor, Tensor> gated_masked_conv2d(const Tensor& x, const Tensor& weight,
                                               const std::optional<Tensor>& bias,
                                               const std::optional<Tensor>& condition,
                                               const Tensor& taps, const Tensor& partial,
                                               at::IntArrayRef dilation) {
  static const auto convolution = c10::Dispatcher::singleton()
                                      .findSchemaOrThrow("fastgen::masked_conv2d", "")
                                      .typed<Convolution>();
  Tensor pre = convolution.call(x, weight, bias, taps, partial, dilation);
  Tensor y = gated_activation(pre, condition);
  return {y, pre};
}

}  // namespace
}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("gated_masked_conv2d", &fastgen::gated_masked_conv2d);
  m.impl("gated_masked_conv2d_backward", &fastgen::gate_gradient);
}

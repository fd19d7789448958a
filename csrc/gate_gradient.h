// The gate's backward pass, for the ops that end in a gate.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace fastgen {

at::Tensor gated_activation(const at::Tensor& x, const std::optional<at::Tensor>& condition);

// (grad_x, grad_condition): gated_activation_backward, with grad_pre added to grad_x if given.
std::tuple<at::Tensor, at::Tensor> gate_gradient(const at::Tensor& grad,
                                                 const std::optional<at::Tensor>& grad_pre,
                                                 const at::Tensor& x,
                                                 const std::optional<at::Tensor>& condition,
                                                 bool needs_condition);

}  // namespace fastgen

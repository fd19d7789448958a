// A parameter group's tensors, unpacked from Python once: a step then takes no lists. (300 tensors:
// 33 of a step's 48 us were the lists.)
#pragma once

#include <c10/util/FunctionRef.h>
#include <torch/custom_class.h>

#include <optional>
#include <vector>

#include "multi_tensor.h"

namespace fastgen {

using TensorVector = std::vector<at::Tensor>;

class UpdatePlan : public torch::CustomClassHolder {
 protected:
  // Parameters that never had a gradient have an empty tensor for each of their states.
  UpdatePlan(const char* op, TensorVector params, TensorVector steps);

  void check_state(const char* argument, const TensorVector& list, bool may_be_left_out) const;
  bool lacks_state(size_t i) const { return steps_[i].numel() == 0; }
  static bool clips_at(const ClipSettings& range);
  // Elsewhere a step goes through the ops of the device.
  bool is_on_cpu() const { return params_.empty() || params_[0].is_cpu(); }
  static const at::Tensor* at_or_null(const TensorVector& list, size_t i) {
    return list.empty() ? nullptr : &list[i];
  }

  struct Chosen {
    std::vector<size_t> with_grad, without_grad;
    TensorVector grads;
  };
  // Of this moment; nothing if a parameter with a gradient lacks its state.
  std::optional<Chosen> choose() const;
  static TensorVector chosen(const TensorVector& list, const std::vector<size_t>& indices);
  // What `update` returns, and the count of the other parameters, clipped by their op.
  at::Tensor with_others_clipped(const Chosen& now, const ClipSettings& range,
                                 c10::function_ref<at::Tensor()> update) const;

  const char* op_;
  TensorVector params_, steps_;
};

}  // namespace fastgen

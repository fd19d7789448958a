#include "update_plan.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>

#include <cmath>

namespace fastgen {

using at::Tensor;

UpdatePlan::UpdatePlan(const char* op, TensorVector params, TensorVector steps)
    : op_(op), params_(std::move(params)), steps_(std::move(steps)) {
  check_length(op, "steps", steps_.size(), params_.size());
}

void UpdatePlan::check_state(const char* argument, const TensorVector& list,
                             bool may_be_left_out) const {
  check_length(op_, argument, list.size(), params_.size(), may_be_left_out);
}

bool UpdatePlan::clips_at(const ClipSettings& range) {
  return range.low != -INFINITY || range.high != INFINITY;
}

std::optional<UpdatePlan::Chosen> UpdatePlan::choose() const {
  Chosen now;
  for (size_t i = 0; i < params_.size(); ++i) {
    const Tensor& grad = params_[i].grad();
    if (grad.defined() && lacks_state(i)) return {};
    (grad.defined() ? now.with_grad : now.without_grad).push_back(i);
    if (grad.defined()) now.grads.push_back(grad);
  }
  return now;
}

TensorVector UpdatePlan::chosen(const TensorVector& list, const std::vector<size_t>& indices) {
  TensorVector out;
  if (list.empty()) return out;
  out.reserve(indices.size());
  for (size_t i : indices) out.push_back(list[i]);
  return out;
}

Tensor UpdatePlan::with_others_clipped(const Chosen& now, const ClipSettings& range,
                                       c10::function_ref<Tensor()> update) const {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastgen::clip_weights_", "")
                             .typed<Tensor(at::TensorList, double, double)>();
  Tensor count;
  if (!now.with_grad.empty()) count = update();
  if (!now.without_grad.empty() && clips_at(range)) {
    const Tensor others = op.call(chosen(params_, now.without_grad), range.low, range.high);
    count = count.defined() ? count.add_(others) : others;
  }
  return count.defined() ? count : params_[0].new_zeros({}, at::kLong);
}

}  // namespace fastgen

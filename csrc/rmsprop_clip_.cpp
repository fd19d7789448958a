#include "rmsprop_clip_.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "multi_tensor.h"
#include "update_plan.h"

namespace fastgen {
namespace {

using at::Tensor;
using at::TensorList;
using MaybeTensor = std::optional<Tensor>;

constexpr const char* kOp = "rmsprop_clip_";

// One step on CPU tensors: everything is added, and so checked, before it runs.
class Step {
 public:
  Step(RmspropSettings settings, const MaybeTensor& rate, const MaybeTensor& grad_scale,
       const MaybeTensor& found_inf, size_t tensors)
      : settings_(settings), skips_(number_in(kOp, "found_inf", found_inf, 0) != 0) {
    settings_.lr = number_in(kOp, "lr", rate, settings.lr);
    settings_.grad_scale = number_in(kOp, "grad_scale", grad_scale, 1);
    updated_.reserve(tensors);
    steps_.reserve(tensors);
  }

  void add(const Tensor& param, const Tensor& grad, const Tensor& square_avg,
           const Tensor* momentum_buffer, const Tensor* grad_avg, const Tensor* step) {
    if (skips_) return add_without_grad(param);
    updated_.add({&param, &grad, &square_avg, momentum_buffer, grad_avg});
    if (step != nullptr) steps_.add(kOp, *step);
  }

  void add_without_grad(const Tensor& param) { clipped_.add({&param}); }

  // Whether this step is for the op, whose dispatch knows what these tensors are.
  bool is_foreign() const {
    return updated_.is_foreign() || clipped_.is_foreign() || steps_.is_foreign();
  }

  int64_t run() {
    for (size_t i = 0; i < steps_.size(); ++i) steps_.count(i);
    const RmspropKernels& kernels = FASTGEN_KERNELS(rmsprop_clip_);
    const int64_t at_bound = updated_.run(
        [&](at::ScalarType type, at::ScalarType, const Segment* segments, int64_t count) {
          return of_type(kernels, type)(settings_, segments, count);
        });
    return at_bound + clip({settings_.low, settings_.high}, clipped_);
  }

 private:
  RmspropSettings settings_;
  bool skips_;
  MultiTensor updated_{kOp,
                       {{"params", true},
                        {"grads", false},
                        {"square_avgs", true},
                        {"momentum_buffers", true},
                        {"grad_avgs", true}}};
  MultiTensor clipped_{kOp, {{"params", true}}};
  StepCounters steps_;
};

const Tensor* at_or_null(TensorList list, size_t i) { return list.empty() ? nullptr : &list[i]; }

}  // namespace

Tensor rmsprop_clip_(TensorList params, TensorList grads, TensorList square_avgs,
                     TensorList momentum_buffers, TensorList grad_avgs, TensorList steps,
                     const MaybeTensor& rate, double lr, double alpha, double eps,
                     double weight_decay, double momentum, bool maximize, double low, double high,
                     const MaybeTensor& grad_scale, const MaybeTensor& found_inf) {
  check_length(kOp, "grads", grads.size(), params.size());
  check_length(kOp, "square_avgs", square_avgs.size(), params.size());
  check_length(kOp, "momentum_buffers", momentum_buffers.size(), params.size(), true);
  check_length(kOp, "grad_avgs", grad_avgs.size(), params.size(), true);
  check_length(kOp, "steps", steps.size(), params.size(), true);
  Step step({lr, alpha, eps, weight_decay, momentum, maximize, low, high, 1}, rate, grad_scale,
            found_inf, params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    step.add(params[i], grads[i], square_avgs[i], at_or_null(momentum_buffers, i),
             at_or_null(grad_avgs, i), at_or_null(steps, i));
  }
  return count_tensor(step.run());
}

class RmspropPlan : public UpdatePlan {
 public:
  RmspropPlan(TensorVector params, TensorVector square_avgs, TensorVector momentum_buffers,
              TensorVector grad_avgs, TensorVector steps)
      : UpdatePlan(kOp, std::move(params), std::move(steps)),
        square_avgs_(std::move(square_avgs)),
        momentum_buffers_(std::move(momentum_buffers)),
        grad_avgs_(std::move(grad_avgs)) {
    check_state("square_avgs", square_avgs_, false);
    check_state("momentum_buffers", momentum_buffers_, true);
    check_state("grad_avgs", grad_avgs_, true);
  }

  MaybeTensor step(const MaybeTensor& rate, double lr, double alpha, double eps,
                   double weight_decay, double momentum, bool maximize, double low, double high,
                   const MaybeTensor& grad_scale, const MaybeTensor& found_inf) {
    const RmspropSettings settings{lr, alpha, eps, weight_decay, momentum, maximize, low, high, 1};
    if (!is_on_cpu()) return step_by_ops(settings, rate, grad_scale, found_inf);
    Step step(settings, rate, grad_scale, found_inf, params_.size());
    const bool clips = clips_at({low, high});
    for (size_t i = 0; i < params_.size(); ++i) {
      const Tensor& grad = params_[i].unsafeGetTensorImpl()->grad();
      if (grad.defined()) {
        if (lacks_state(i)) return {};
        step.add(params_[i], grad, square_avgs_[i], at_or_null(momentum_buffers_, i),
                 at_or_null(grad_avgs_, i), &steps_[i]);
      } else if (clips) {
        step.add_without_grad(params_[i]);
      }
    }
    if (step.is_foreign()) return step_by_ops(settings, rate, grad_scale, found_inf);
    return count_tensor(step.run());
  }

 private:
  MaybeTensor step_by_ops(const RmspropSettings& s, const MaybeTensor& rate,
                          const MaybeTensor& grad_scale, const MaybeTensor& found_inf) const {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("fastgen::rmsprop_clip_", "")
                               .typed<decltype(rmsprop_clip_)>();
    const std::optional<Chosen> now = choose();
    if (!now.has_value()) return {};
    const auto& some = now->with_grad;
    return with_others_clipped(*now, {s.low, s.high}, [&] {
      return op.call(chosen(params_, some), now->grads, chosen(square_avgs_, some),
                     chosen(momentum_buffers_, some), chosen(grad_avgs_, some),
                     chosen(steps_, some), rate, s.lr, s.alpha, s.eps, s.weight_decay, s.momentum,
                     s.maximize, s.low, s.high, grad_scale, found_inf);
    });
  }

  TensorVector square_avgs_, momentum_buffers_, grad_avgs_;
};

}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("rmsprop_clip_", &fastgen::rmsprop_clip_); }

TORCH_LIBRARY_FRAGMENT(fastgen, m) {
  using fastgen::TensorVector;
  m.class_<fastgen::RmspropPlan>("RmspropPlan")
      .def(torch::init<TensorVector, TensorVector, TensorVector, TensorVector, TensorVector>())
      .def("step", &fastgen::RmspropPlan::step);
}

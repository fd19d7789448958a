#include "adam_clip_.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <cmath>

#include "multi_tensor.h"
#include "update_plan.h"

namespace fastgen {
namespace {

using at::Tensor;
using at::TensorList;
using MaybeTensor = std::optional<Tensor>;

constexpr const char* kOp = "adam_clip_";

// A tensor's own numbers at a step, as Python's arithmetic has them. Most tensors of a group have
// done the same number of steps: powers are computed once for a number.
class Corrections {
 public:
  explicit Corrections(const AdamSettings& settings) : settings_(settings) {}

  void write(double step, double* own) {
    if (step != step_) {
      step_ = step;
      minus_step_size_ = -settings_.lr / (1 - std::pow(settings_.beta1, step));
      root_ = std::pow(1 - std::pow(settings_.beta2, step), 0.5);
    }
    own[0] = minus_step_size_;
    own[1] = root_;
  }

 private:
  const AdamSettings& settings_;
  double step_ = 0, minus_step_size_ = 0, root_ = 0;
};

// One step on CPU tensors: everything is added, and so checked, before it runs.
class Step {
 public:
  Step(AdamSettings settings, const MaybeTensor& rate, const MaybeTensor& grad_scale,
       const MaybeTensor& found_inf, size_t tensors)
      : settings_(settings), skips_(number_in(kOp, "found_inf", found_inf, 0) != 0) {
    settings_.lr = number_in(kOp, "lr", rate, settings.lr);
    settings_.grad_scale = number_in(kOp, "grad_scale", grad_scale, 1);
    updated_.reserve(tensors);
    steps_.reserve(tensors);
  }

  void add(const Tensor& param, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
           const Tensor* max_exp_avg_sq, const Tensor& step) {
    if (skips_) return add_without_grad(param);
    updated_.add({&param, &grad, &exp_avg, &exp_avg_sq, max_exp_avg_sq});
    steps_.add(kOp, step);
  }

  void add_without_grad(const Tensor& param) { clipped_.add({&param}); }

  // Whether this step is for the op, whose dispatch knows what these tensors are.
  bool is_foreign() const {
    return updated_.is_foreign() || clipped_.is_foreign() || steps_.is_foreign();
  }

  int64_t run() {
    Corrections corrections(settings_);
    for (size_t i = 0; i < steps_.size(); ++i) {
      corrections.write(steps_.count(i), updated_.own(i));
    }
    const AdamKernels& kernels = FASTGEN_KERNELS(adam_clip_);
    const int64_t at_bound = updated_.run(
        [&](at::ScalarType type, at::ScalarType, const Segment* segments, int64_t count) {
          return of_type(kernels, type)(settings_, segments, count);
        });
    return at_bound + clip({settings_.low, settings_.high}, clipped_);
  }

 private:
  AdamSettings settings_;
  bool skips_;
  MultiTensor updated_{kOp,
                       {{"params", true},
                        {"grads", false},
                        {"exp_avgs", true},
                        {"exp_avg_sqs", true},
                        {"max_exp_avg_sqs", true}}};
  MultiTensor clipped_{kOp, {{"params", true}}};
  StepCounters steps_;
};

const Tensor* at_or_null(TensorList list, size_t i) { return list.empty() ? nullptr : &list[i]; }

}  // namespace

Tensor adam_clip_(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                  TensorList max_exp_avg_sqs, TensorList steps, const MaybeTensor& rate, double lr,
                  double beta1, double beta2, double eps, double weight_decay, bool decoupled,
                  bool maximize, double low, double high, const MaybeTensor& grad_scale,
                  const MaybeTensor& found_inf) {
  check_length(kOp, "grads", grads.size(), params.size());
  check_length(kOp, "exp_avgs", exp_avgs.size(), params.size());
  check_length(kOp, "exp_avg_sqs", exp_avg_sqs.size(), params.size());
  check_length(kOp, "max_exp_avg_sqs", max_exp_avg_sqs.size(), params.size(), true);
  check_length(kOp, "steps", steps.size(), params.size());
  Step step({lr, beta1, beta2, eps, weight_decay, decoupled, maximize, low, high, 1}, rate,
            grad_scale, found_inf, params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    step.add(params[i], grads[i], exp_avgs[i], exp_avg_sqs[i], at_or_null(max_exp_avg_sqs, i),
             steps[i]);
  }
  return count_tensor(step.run());
}

class AdamPlan : public UpdatePlan {
 public:
  AdamPlan(TensorVector params, TensorVector exp_avgs, TensorVector exp_avg_sqs,
           TensorVector max_exp_avg_sqs, TensorVector steps)
      : UpdatePlan(kOp, std::move(params), std::move(steps)),
        exp_avgs_(std::move(exp_avgs)),
        exp_avg_sqs_(std::move(exp_avg_sqs)),
        max_exp_avg_sqs_(std::move(max_exp_avg_sqs)) {
    check_state("exp_avgs", exp_avgs_, false);
    check_state("exp_avg_sqs", exp_avg_sqs_, false);
    check_state("max_exp_avg_sqs", max_exp_avg_sqs_, true);
  }

  MaybeTensor step(const MaybeTensor& rate, double lr, double beta1, double beta2, double eps,
                   double weight_decay, bool decoupled, bool maximize, double low, double high,
                   const MaybeTensor& grad_scale, const MaybeTensor& found_inf) {
    const AdamSettings settings{lr,        beta1,    beta2, eps,  weight_decay,
                                decoupled, maximize, low,   high, 1};
    if (!is_on_cpu()) return step_by_ops(settings, rate, grad_scale, found_inf);
    Step step(settings, rate, grad_scale, found_inf, params_.size());
    const bool clips = clips_at({low, high});
    for (size_t i = 0; i < params_.size(); ++i) {
      const Tensor& grad = params_[i].unsafeGetTensorImpl()->grad();
      if (grad.defined()) {
        if (lacks_state(i)) return {};
        step.add(params_[i], grad, exp_avgs_[i], exp_avg_sqs_[i], at_or_null(max_exp_avg_sqs_, i),
                 steps_[i]);
      } else if (clips) {
        step.add_without_grad(params_[i]);
      }
    }
    if (step.is_foreign()) return step_by_ops(settings, rate, grad_scale, found_inf);
    return count_tensor(step.run());
  }

 private:
  MaybeTensor step_by_ops(const AdamSettings& s, const MaybeTensor& rate,
                          const MaybeTensor& grad_scale, const MaybeTensor& found_inf) const {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("fastgen::adam_clip_", "")
                               .typed<decltype(adam_clip_)>();
    const std::optional<Chosen> now = choose();
    if (!now.has_value()) return {};
    const auto& some = now->with_grad;
    return with_others_clipped(*now, {s.low, s.high}, [&] {
      return op.call(chosen(params_, some), now->grads, chosen(exp_avgs_, some),
                     chosen(exp_avg_sqs_, some), chosen(max_exp_avg_sqs_, some),
                     chosen(steps_, some), rate, s.lr, s.beta1, s.beta2, s.eps, s.weight_decay,
                     s.decoupled, s.maximize, s.low, s.high, grad_scale, found_inf);
    });
  }

  TensorVector exp_avgs_, exp_avg_sqs_, max_exp_avg_sqs_;
};

}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("adam_clip_", &fastgen::adam_clip_); }

TORCH_LIBRARY_FRAGMENT(fastgen, m) {
  using fastgen::TensorVector;
  m.class_<fastgen::AdamPlan>("AdamPlan")
      .def(torch::init<TensorVector, TensorVector, TensorVector, TensorVector, TensorVector>())
      .def("step", &fastgen::AdamPlan::step);
}

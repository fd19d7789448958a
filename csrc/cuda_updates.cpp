// The updates of many tensors at once, of tensors on a GPU. Built without a CUDA build of torch:
// the stream and the device come from whatever backend of torch holds the device.
#ifdef FASTGEN_WITH_CUDA

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <memory>
#include <optional>
#include <vector>

#include "cuda/multi_tensor.h"
#include "cuda/rows.h"
#include "multi_tensor.h"

namespace fastgen {
namespace {

using at::Tensor;
using at::TensorList;
using MaybeTensor = std::optional<Tensor>;

cuda::Storage storage_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return cuda::Storage::kFloat64;
    case at::kBFloat16:
      return cuda::Storage::kBFloat16;
    case at::kHalf:
      return cuda::Storage::kFloat16;
    default:
      return cuda::Storage::kFloat32;
  }
}

const Tensor* at_or_null(TensorList list, size_t i) { return list.empty() ? nullptr : &list[i]; }

// One update: everything is checked before anything is written.
class Update {
 public:
  Update(const char* op, TensorList first, std::initializer_list<Role> roles)
      : op_(op), roles_(roles), guard_(first[0].device()), device_(first[0].device()) {
    rows_.reserve(first.size());
  }

  // One tensor of each list, null where the list is left out.
  void add(const std::vector<const Tensor*>& operands, float* step,
           const cuda::AdamFactors* factors) {
    const Tensor& first = *operands[0];
    cuda::Row row = {};
    row.storage = storage_of(first.scalar_type());
    row.step = step;
    row.factors = factors;
    std::vector<cuda::Dim> dims(first.dim());
    for (int64_t d = 0; d < first.dim(); ++d) dims[d].size = first.size(d);
    for (size_t j = 0; j < operands.size(); ++j) {
      if (operands[j] == nullptr) continue;
      const Tensor& operand = *operands[j];
      check_operand(op_, roles_[j], operand, roles_[0], first);
      const Tensor& used = in_type_of(first, operand);
      for (int64_t d = 0; d < first.dim(); ++d) dims[d].strides[j] = used.stride(d);
      row.data[j] = data_of(used, roles_[j].is_written);
      if (roles_[j].is_written) written_.push_back(operand.unsafeGetTensorImpl());
    }
    TORCH_CHECK_VALUE(first.device() == device_, "fastgen.", op_, ": ", roles_[0].name,
                      " must be on one device, got ", first.device(), " beside ", device_,
                      "; move them");
    cuda::cut_into_rows(row, first.element_size(), dims, &rows_);
  }

  // A number that the kernel reads, or `host` gets where it is on the CPU.
  const Tensor* number(const char* argument, const MaybeTensor& tensor, double* host) {
    if (!tensor.has_value()) return nullptr;
    if (tensor->device().is_cpu() && host != nullptr) {
      *host = number_in(op_, argument, tensor, 0);
      return nullptr;
    }
    TORCH_CHECK_VALUE(tensor->numel() == 1 && tensor->device() == device_, "fastgen.", op_, ": ",
                      argument, " must be a tensor of one element on ", device_, ", got ",
                      tensor->sizes(), " on ", tensor->device(), "; move it");
    if (tensor->scalar_type() == at::kFloat) return &*tensor;
    if (tensor->scalar_type() == at::kDouble && host != nullptr) return &*tensor;
    converted_.push_back(std::make_unique<Tensor>(tensor->to(at::kFloat)));
    return converted_.back().get();
  }

  // `lr` is the rate where it is known here.
  cuda::DeviceNumbers numbers(const MaybeTensor& rate, const MaybeTensor& grad_scale,
                              const MaybeTensor& found_inf, double* lr) {
    cuda::DeviceNumbers found = {};
    if (const Tensor* t = number("rate", rate, lr)) {
      if (t->scalar_type() == at::kDouble) {
        found.double_rate = t->const_data_ptr<double>();
      } else {
        found.rate = t->const_data_ptr<float>();
      }
    }
    const Tensor* scale = number("grad_scale", grad_scale, nullptr);
    if (scale != nullptr) found.grad_scale = scale->const_data_ptr<float>();
    const Tensor* inf = number("found_inf", found_inf, nullptr);
    if (inf != nullptr) found.found_inf = inf->const_data_ptr<float>();
    return found;
  }

  // Where the kernel counts a step, or null for one on the CPU, which goes to `of_host`.
  float* step_on_device(const Tensor& step, bool may_skip, StepCounters* of_host) {
    if (step.device().is_cpu()) {
      of_host->add(op_, step);
      TORCH_CHECK_VALUE(!may_skip, "fastgen.", op_, ": steps must be on ", device_,
                        " with found_inf, got cpu; only the device knows which steps count");
      return nullptr;
    }
    TORCH_CHECK_VALUE(step.numel() == 1 && step.device() == device_, "fastgen.", op_,
                      ": steps must be tensors of one element on ", device_, " or cpu, got ",
                      step.sizes(), " on ", step.device());
    TORCH_CHECK_TYPE(step.scalar_type() == at::kFloat, "fastgen.", op_,
                     ": steps must be float32, got ", step.scalar_type());
    written_.push_back(step.unsafeGetTensorImpl());
    return step.mutable_data_ptr<float>();
  }

  Tensor empty(at::IntArrayRef sizes, at::ScalarType type) const {
    return at::empty(sizes, at::TensorOptions(device_).dtype(type));
  }

  // `launch(rows, count, stream)` on the current stream.
  template <class Launch>
  void run(const Launch& launch) {
    for (c10::TensorImpl* impl : written_) impl->bump_version();
    const c10::Stream stream = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
    const char* error =
        launch(rows_.data(), static_cast<int64_t>(rows_.size()), stream.native_handle());
    TORCH_CHECK(error == nullptr, "fastgen.", op_, ": CUDA could not run it: ", error);
  }

 private:
  const Tensor& in_type_of(const Tensor& first, const Tensor& operand) {
    if (operand.scalar_type() == first.scalar_type()) return operand;
    converted_.push_back(std::make_unique<Tensor>(operand.to(first.scalar_type())));
    return *converted_.back();
  }

  static void* data_of(const Tensor& t, bool is_written) {
    return is_written ? t.mutable_data_ptr() : const_cast<void*>(t.const_data_ptr());
  }

  const char* op_;
  std::vector<Role> roles_;
  c10::DeviceGuard guard_;
  c10::Device device_;
  std::vector<cuda::Row> rows_;
  std::vector<std::unique_ptr<Tensor>> converted_;
  std::vector<c10::TensorImpl*> written_;
};

Tensor clip_weights_on_cuda(TensorList tensors, double low, double high) {
  Update update("clip_weights_", tensors, {{"tensors", true}});
  for (const Tensor& tensor : tensors) update.add({&tensor}, nullptr, nullptr);
  const Tensor count = update.empty({}, at::kLong);
  update.run([&](const cuda::Row* rows, int64_t row_count, void* stream) {
    return cuda::clip_weights_(rows, row_count, {low, high}, count.mutable_data_ptr<int64_t>(),
                               stream);
  });
  return count;
}

void ema_update_on_cuda(TensorList targets, TensorList sources, double decay) {
  check_length("ema_update_", "sources", sources.size(), targets.size());
  Update update("ema_update_", targets,
                {{"targets", true}, {"sources", false, /*any_float=*/true}});
  for (size_t i = 0; i < targets.size(); ++i) {
    update.add({&targets[i], &sources[i]}, nullptr, nullptr);
  }
  update.run([&](const cuda::Row* rows, int64_t row_count, void* stream) {
    return cuda::ema_update_(rows, row_count, {decay}, stream);
  });
}

Tensor rmsprop_clip_on_cuda(TensorList params, TensorList grads, TensorList square_avgs,
                            TensorList momentum_buffers, TensorList grad_avgs, TensorList steps,
                            const MaybeTensor& rate, double lr, double alpha, double eps,
                            double weight_decay, double momentum, bool maximize, double low,
                            double high, const MaybeTensor& grad_scale,
                            const MaybeTensor& found_inf) {
  constexpr const char* kOp = "rmsprop_clip_";
  check_length(kOp, "grads", grads.size(), params.size());
  check_length(kOp, "square_avgs", square_avgs.size(), params.size());
  check_length(kOp, "momentum_buffers", momentum_buffers.size(), params.size(), true);
  check_length(kOp, "grad_avgs", grad_avgs.size(), params.size(), true);
  check_length(kOp, "steps", steps.size(), params.size(), true);
  Update update(kOp, params,
                {{"params", true},
                 {"grads", false},
                 {"square_avgs", true},
                 {"momentum_buffers", true},
                 {"grad_avgs", true}});
  const auto numbers = update.numbers(rate, grad_scale, found_inf, &lr);
  StepCounters of_host;
  for (size_t i = 0; i < params.size(); ++i) {
    float* const step =
        steps.empty() ? nullptr : update.step_on_device(steps[i], found_inf.has_value(), &of_host);
    update.add({&params[i], &grads[i], &square_avgs[i], at_or_null(momentum_buffers, i),
                at_or_null(grad_avgs, i)},
               step, nullptr);
  }
  for (size_t i = 0; i < of_host.size(); ++i) of_host.count(i);
  const RmspropSettings settings{lr, alpha, eps, weight_decay, momentum, maximize, low, high, 1};
  const Tensor count = update.empty({}, at::kLong);
  update.run([&](const cuda::Row* rows, int64_t row_count, void* stream) {
    return cuda::rmsprop_clip_(rows, row_count, settings, !momentum_buffers.empty(),
                               !grad_avgs.empty(), numbers, count.mutable_data_ptr<int64_t>(),
                               stream);
  });
  return count;
}

Tensor adam_clip_on_cuda(TensorList params, TensorList grads, TensorList exp_avgs,
                         TensorList exp_avg_sqs, TensorList max_exp_avg_sqs, TensorList steps,
                         const MaybeTensor& rate, double lr, double beta1, double beta2, double eps,
                         double weight_decay, bool decoupled, bool maximize, double low,
                         double high, const MaybeTensor& grad_scale, const MaybeTensor& found_inf) {
  constexpr const char* kOp = "adam_clip_";
  check_length(kOp, "grads", grads.size(), params.size());
  check_length(kOp, "exp_avgs", exp_avgs.size(), params.size());
  check_length(kOp, "exp_avg_sqs", exp_avg_sqs.size(), params.size());
  check_length(kOp, "max_exp_avg_sqs", max_exp_avg_sqs.size(), params.size(), true);
  check_length(kOp, "steps", steps.size(), params.size());
  Update update(kOp, params,
                {{"params", true},
                 {"grads", false},
                 {"exp_avgs", true},
                 {"exp_avg_sqs", true},
                 {"max_exp_avg_sqs", true}});
  const auto numbers = update.numbers(rate, grad_scale, found_inf, &lr);
  const int64_t tensors = static_cast<int64_t>(params.size());
  const Tensor factors_memory = update.empty({2 * tensors}, at::kDouble);
  auto* factors = static_cast<cuda::AdamFactors*>(factors_memory.mutable_data_ptr());
  std::vector<cuda::AdamStep> counted;
  StepCounters of_host;
  for (int64_t i = 0; i < tensors; ++i) {
    counted.push_back({update.step_on_device(steps[i], found_inf.has_value(), &of_host), 0});
    update.add(
        {&params[i], &grads[i], &exp_avgs[i], &exp_avg_sqs[i], at_or_null(max_exp_avg_sqs, i)},
        nullptr, factors + i);
  }
  size_t next = 0;
  for (cuda::AdamStep& step : counted) {
    if (step.at == nullptr) step.value = static_cast<float>(of_host.count(next++));
  }
  const AdamSettings settings{lr,        beta1,    beta2, eps,  weight_decay,
                              decoupled, maximize, low,   high, 1};
  const Tensor count = update.empty({}, at::kLong);
  update.run([&](const cuda::Row* rows, int64_t row_count, void* stream) {
    return cuda::adam_clip_(rows, row_count, counted.data(), tensors, factors, settings,
                            !max_exp_avg_sqs.empty(), numbers, count.mutable_data_ptr<int64_t>(),
                            stream);
  });
  return count;
}

}  // namespace
}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CUDA, m) {
  m.impl("clip_weights_", &fastgen::clip_weights_on_cuda);
  m.impl("ema_update_", &fastgen::ema_update_on_cuda);
  m.impl("rmsprop_clip_", &fastgen::rmsprop_clip_on_cuda);
  m.impl("adam_clip_", &fastgen::adam_clip_on_cuda);
}

#endif  // FASTGEN_WITH_CUDA

#include "gaussian_nll.h"

#include <ATen/ops/scalar_tensor.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "of_dtype.h"
#include "sample_rows.h"

namespace fastgen {
namespace {

using at::Tensor;

struct Operands {
  at::MemoryFormat format;
  Tensor mean, target, logvar;  // logvar undefined: one for all values
  double log_variance;

  Operands(const Tensor& mean_in, const Tensor& target_in, const std::optional<Tensor>& logvar_in,
           double fixed_logvar)
      : format(mean_in.suggest_memory_format()), log_variance(fixed_logvar) {
    TORCH_CHECK_VALUE(mean_in.dim() > 0 && mean_in.sizes() == target_in.sizes(),
                      "fastgen.gaussian_nll: target must have mean's shape ", mean_in.sizes(),
                      ", got ", target_in.sizes());
    mean = with_dense_rows(mean_in, format);
    target = with_dense_rows(target_in, format);
    if (!logvar_in.has_value()) return;
    if (logvar_in->numel() == 1) {
      log_variance = logvar_in->to(at::kDouble).item<double>();
      return;
    }
    TORCH_CHECK_VALUE(logvar_in->sizes() == mean_in.sizes(),
                      "fastgen.gaussian_nll: logvar must have one value or mean's shape ",
                      mean_in.sizes(), ", got ", logvar_in->sizes());
    logvar = with_dense_rows(*logvar_in, format);
  }
  int64_t samples() const { return mean.size(0); }
};

ValueType value_type(const char* name, const Tensor& t, const Tensor& mean) {
  if (t.scalar_type() == mean.scalar_type()) return ValueType::kSame;
  TORCH_CHECK_TYPE(t.scalar_type() == at::kFloat, "fastgen.gaussian_nll: ", name,
                   " must be float32 or of mean's dtype ", mean.scalar_type(), ", got ",
                   t.scalar_type());
  return ValueType::kFloat;
}

GaussianArgs arguments(const Operands& in) {
  GaussianArgs args{};
  args.mean = sample_rows(in.mean);
  args.target = sample_rows(in.target);
  args.target_type = value_type("target", in.target, in.mean);
  args.one_logvar = !in.logvar.defined();
  args.log_variance = in.log_variance;
  if (!args.one_logvar) {
    args.logvar = sample_rows(in.logvar);
    args.logvar_type = value_type("logvar", in.logvar, in.mean);
  }
  args.values = in.samples() == 0 ? 0 : in.mean.numel() / in.samples();
  return args;
}

const GaussianKernels::PerType& kernels_of(const Tensor& mean) {
  return of_dtype(FASTGEN_KERNELS(gaussian_nll), mean, "gaussian_nll", "mean");
}

Tensor empty_sums(const Operands& in, const GaussianArgs& args) {
  return at::empty({in.samples() * pieces_of(args.values)}, in.mean.options().dtype(at::kDouble));
}

// A gradient is written in mean's memory format and handed out in its own tensor's.
struct Gradient {
  Tensor written;
  at::MemoryFormat own;

  Gradient(const Tensor& t, at::MemoryFormat format, SampleRows* rows)
      : written(empty_like_rows(t, format)), own(t.suggest_memory_format()) {
    *rows = sample_rows(written);
  }
  Tensor finished() const { return written.contiguous(own); }
};

}  // namespace

Tensor gaussian_nll(const Tensor& mean, const Tensor& target, const std::optional<Tensor>& logvar,
                    double fixed_logvar) {
  const Operands in(mean, target, logvar, fixed_logvar);
  const auto range = kernels_of(mean).forward;
  GaussianArgs args = arguments(in);
  const Tensor sums = empty_sums(in, args);
  args.sums = static_cast<double*>(sums.mutable_data_ptr());
  for_pieces(in.samples(), args.values,
             [&](int64_t begin, int64_t end) { range(args, begin, end); });
  return per_sample(sums, mean);
}

std::tuple<Tensor, Tensor, Tensor> gaussian_nll_backward(const Tensor& grad_nll, const Tensor& mean,
                                                         const Tensor& target,
                                                         const std::optional<Tensor>& logvar,
                                                         double fixed_logvar,
                                                         std::array<bool, 3> needs) {
  const Operands in(mean, target, logvar, fixed_logvar);
  const auto range = kernels_of(mean).backward;
  GaussianArgs args = arguments(in);
  TORCH_CHECK_VALUE(grad_nll.dim() == 1 && grad_nll.size(0) == in.samples(),
                    "fastgen.gaussian_nll: grad_nll must be (B,), got ", grad_nll.sizes());
  const Tensor grad = grad_nll.to(mean.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  args.grad_nll = {const_cast<void*>(grad.const_data_ptr()), grad.stride(0)};

  std::optional<Gradient> by_mean, by_target, by_logvar;
  Tensor sums;
  if (needs[0]) by_mean.emplace(mean, in.format, &args.grad_mean);
  if (needs[1]) by_target.emplace(target, in.format, &args.grad_target);
  const bool wants_logvar = needs[2] && logvar.has_value();
  if (wants_logvar && args.one_logvar) {
    sums = empty_sums(in, args);
    args.sums = static_cast<double*>(sums.mutable_data_ptr());
  } else if (wants_logvar) {
    by_logvar.emplace(*logvar, in.format, &args.grad_logvar);
  }
  for_pieces(in.samples(), args.values,
             [&](int64_t begin, int64_t end) { range(args, begin, end); });

  const auto result = [&](const std::optional<Gradient>& gradient) {
    return gradient ? gradient->finished() : at::empty({0}, mean.options());
  };
  Tensor grad_logvar;
  if (sums.defined()) {
    double total = 0;
    const double* from = sums.const_data_ptr<double>();
    for (int64_t i = 0; i < sums.numel(); ++i) total += from[i];
    grad_logvar = at::scalar_tensor(total, logvar->options()).view(logvar->sizes());
  } else {
    grad_logvar = result(by_logvar);
  }
  return {result(by_mean), result(by_target), grad_logvar};
}

}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("gaussian_nll", &fastgen::gaussian_nll);
  m.impl("gaussian_nll_backward", &fastgen::gaussian_nll_backward);
}

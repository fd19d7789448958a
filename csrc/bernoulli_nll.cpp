#include "bernoulli_nll.h"

#include <c10/util/Exception.h>
#include <torch/library.h>

#include <array>
#include <cstdio>
#include <tuple>

#include "of_dtype.h"
#include "sample_rows.h"

namespace fastgen {
namespace {

using at::Tensor;

struct Operands {
  at::MemoryFormat format;
  Tensor logits, target;

  Operands(const Tensor& logits_in, const Tensor& target_in)
      : format(logits_in.suggest_memory_format()) {
    TORCH_CHECK_VALUE(logits_in.dim() > 0 && logits_in.sizes() == target_in.sizes(),
                      "fastgen.bernoulli_nll: target must have logits' shape ", logits_in.sizes(),
                      ", got ", target_in.sizes());
    logits = with_dense_rows(logits_in, format);
    target = with_dense_rows(target_in, format);
  }
  int64_t samples() const { return logits.size(0); }
};

BernoulliArgs arguments(const Operands& in) {
  BernoulliArgs args{};
  args.logits = sample_rows(in.logits);
  args.target = sample_rows(in.target);
  const auto type = in.target.scalar_type();
  if (type == at::kByte || type == at::kBool) {
    args.target_type = TargetType::kUint8;
  } else if (type == in.logits.scalar_type()) {
    args.target_type = TargetType::kSame;
  } else {
    TORCH_CHECK_TYPE(type == at::kFloat,
                     "fastgen.bernoulli_nll: target must be uint8, bool, float32 or of logits' "
                     "dtype, got ",
                     type);
    args.target_type = TargetType::kFloat;
  }
  args.values = in.samples() == 0 ? 0 : in.logits.numel() / in.samples();
  return args;
}

const BernoulliKernels::PerType& kernels_of(const Tensor& logits) {
  return of_dtype(FASTGEN_KERNELS(bernoulli_nll), logits, "bernoulli_nll", "logits");
}

[[noreturn]] void refuse_target(const Tensor& target) {
  const Tensor wide = target.to(at::kDouble).contiguous();
  const double* values = wide.const_data_ptr<double>();
  const double* found =
      std::find_if(values, values + wide.numel(), [](double y) { return !(y >= 0 && y <= 1); });
  char got[32];
  std::snprintf(got, sizeof got, "%g", *found);
  TORCH_CHECK_VALUE(false, "fastgen.bernoulli_nll: target must lie in 0 .. 1, got ", got,
                    "; scale images to that range");
}

}  // namespace

Tensor bernoulli_nll(const Tensor& logits, const Tensor& target) {
  const Operands in(logits, target);
  const auto range = kernels_of(logits).forward;
  BernoulliArgs args = arguments(in);
  const Tensor sums =
      at::empty({in.samples() * pieces_of(args.values)}, logits.options().dtype(at::kDouble));
  args.sums = static_cast<double*>(sums.mutable_data_ptr());
  std::atomic<bool> outside{false};
  args.outside = &outside;
  for_pieces(in.samples(), args.values,
             [&](int64_t begin, int64_t end) { range(args, begin, end); });
  if (outside.load()) refuse_target(target);
  return per_sample(sums, logits);
}

std::tuple<Tensor, Tensor> bernoulli_nll_backward(const Tensor& grad_nll, const Tensor& logits,
                                                  const Tensor& target, std::array<bool, 2> needs) {
  const Operands in(logits, target);
  const auto range = kernels_of(logits).backward;
  BernoulliArgs args = arguments(in);
  TORCH_CHECK_VALUE(grad_nll.dim() == 1 && grad_nll.size(0) == in.samples(),
                    "fastgen.bernoulli_nll: grad_nll must be (B,), got ", grad_nll.sizes());
  const Tensor grad = grad_nll.to(logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  args.grad_nll = {const_cast<void*>(grad.const_data_ptr()), grad.stride(0)};
  const Tensor nothing = at::empty({0}, logits.options());
  Tensor grad_logits = needs[0] ? empty_like_rows(logits, in.format) : nothing;
  Tensor grad_target = nothing;
  if (needs[0]) args.grad_logits = sample_rows(grad_logits);
  if (needs[1]) {
    TORCH_CHECK_TYPE(args.target_type != TargetType::kUint8, "fastgen.bernoulli_nll: a target of ",
                     target.scalar_type(), " has no gradient; convert it with target.float()");
    grad_target = empty_like_rows(target, in.format);
    args.grad_target = sample_rows(grad_target);
  }
  for_pieces(in.samples(), args.values,
             [&](int64_t begin, int64_t end) { range(args, begin, end); });
  if (needs[1]) {  // its own memory format, as the others do
    const auto own = target.suggest_memory_format();
    if (own != in.format) grad_target = grad_target.contiguous(own);
  }
  return {grad_logits, grad_target};
}

}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("bernoulli_nll", &fastgen::bernoulli_nll);
  m.impl("bernoulli_nll_backward", &fastgen::bernoulli_nll_backward);
}

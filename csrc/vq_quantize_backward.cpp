#include "vq_quantize_backward.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>

#include "vq_indices.h"
#include "vq_lookup.h"

namespace fastgen {
namespace {

using at::Tensor;

constexpr const char* kOp = "vq_quantize_backward";
// Elements a thread should have: below this the other threads cost more than they bring.
constexpr int64_t kGrain = 8192;
// What a unit copies stays in the second-level cache beside the codes it reads.
constexpr int64_t kUnitBytes = 192 << 10;

}  // namespace

Tensor vq_quantize_backward(const std::optional<Tensor>& grad_quantized,
                            const std::optional<Tensor>& grad_commitment, const Tensor& x,
                            const Tensor& indices, const Tensor& codebook, int64_t dim,
                            bool rotation) {
  const VqShape shape = vq_shape(kOp, x, codebook, dim);
  TORCH_CHECK_VALUE(
      indices.scalar_type() == at::kLong && indices.numel() == shape.heads * shape.rows, "fastgen.",
      kOp, ": indices must be int64, one for each of ", shape.heads * shape.rows, " rows, got ",
      indices.scalar_type(), " ", indices.sizes());
  const at::ScalarType arithmetic = vq_compute_type(kOp, x, codebook);

  Tensor grad_x = at::empty_like(x);
  if (grad_x.numel() == 0) return grad_x;
  const Tensor codes = codebook.to(arithmetic).contiguous(), chosen = indices.contiguous();
  VqQuantizeBackwardArgs args{};
  args.x = strided_rows(x, shape);
  args.x_head = head_step(x, shape);
  args.grad_x = strided_rows(grad_x, shape);
  args.grad_x_head = head_step(grad_x, shape);
  args.indices = index_rows(chosen, shape);
  args.index_head = shape.inner;
  args.codes = codes.const_data_ptr();
  args.codes_per_head = shape.codes;
  args.rows = shape.rows;
  args.values = shape.values;
  args.rotation = rotation;
  Tensor grad, weight;
  if (grad_quantized.has_value()) {
    TORCH_CHECK_VALUE(grad_quantized->sizes() == x.sizes(), "fastgen.", kOp,
                      ": grad_quantized must be x's shape ", x.sizes(), ", got ",
                      grad_quantized->sizes());
    grad = grad_quantized->to(x.scalar_type());
    args.grad = strided_rows(grad, shape);
    args.grad_head = head_step(grad, shape);
  }
  if (grad_commitment.has_value()) {
    TORCH_CHECK_VALUE(grad_commitment->dim() == 1 && grad_commitment->numel() == indices.numel(),
                      "fastgen.", kOp, ": grad_commitment must be (", indices.numel(), "), got ",
                      grad_commitment->sizes());
    weight = grad_commitment->to(arithmetic);
    args.weight = weight.const_data_ptr();
    args.weight_step = weight.stride(0);
  }

  const auto kernel =
      vq_kernel(kOp, FASTGEN_KERNELS(vq_quantize_backward).backward, x.scalar_type(), arithmetic);
  const int64_t row_bytes = vq_quantize_backward_scratch(1, shape.values, codes.element_size());
  // multiples of 16 rows: whole vectors when rows are the adjacent axis
  args.block = std::clamp<int64_t>(kUnitBytes / row_bytes / 16 * 16, 16, 1024);
  args.block = std::min(args.block, shape.rows);
  const int64_t blocks = (shape.rows + args.block - 1) / args.block;
  const int64_t grain = std::max<int64_t>(1, kGrain / (args.block * shape.values));
  at::parallel_for(0, shape.heads * blocks, grain, [&](int64_t begin, int64_t end) {
    const c10::DataPtr scratch = c10::GetCPUAllocator()->allocate(args.block * row_bytes);
    kernel(args, begin, end, scratch.get());
  });
  return grad_x;
}

}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("vq_quantize_backward", &fastgen::vq_quantize_backward);
}

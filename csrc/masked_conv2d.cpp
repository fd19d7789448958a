#include "masked_conv2d.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <tuple>
#include <vector>

namespace fastgen {
namespace {

using at::Tensor;

// A unit's input stays in the second-level cache beside a block of weights.
constexpr int64_t kUnitBytes = 256 << 10;
// Below this many multiply-adds (some 10 us) a second thread costs more than it brings.
constexpr int64_t kParallelWork = 1 << 19;
// The weight's gradient is summed in chunks of pixels, whatever the number of threads, so that they
// do not decide the order of additions.
constexpr int64_t kMostChunks = 16, kChunkPixels = 512, kChunksBytes = 32 << 20;

struct Plan {
  std::vector<ConvTap> taps;  // ascending (dy, dx)
  std::vector<int64_t> row_cut, column_cut;
};

// Where the set of taps inside the image changes along an axis of `size`, with both ends.
template <class Displacement>
std::vector<int64_t> cuts(const std::vector<ConvTap>& taps, int64_t size, Displacement of) {
  std::vector<int64_t> cut = {0, size};
  for (const ConvTap& tap : taps) {
    const int64_t edge = of(tap) < 0 ? -of(tap) : size - of(tap);
    if (edge > 0 && edge < size) cut.push_back(edge);
  }
  std::sort(cut.begin(), cut.end());
  cut.erase(std::unique(cut.begin(), cut.end()), cut.end());
  return cut;
}

// Whether a tap `steps` from the centre ever falls into an image side of `size`.
bool reaches(int64_t steps, int64_t dilation, int64_t size) {
  return std::abs(steps) <= (size - 1) / dilation;
}

Plan make_plan(const Tensor& x, const Tensor& weight, const Tensor& taps, at::IntArrayRef dilation,
               bool backwards) {
  Plan plan;
  const int32_t* row = taps.const_data_ptr<int32_t>();
  const int64_t count = row[0];
  TORCH_CHECK_VALUE(count >= 0 && count < taps.size(0) && row[1] <= count,
                    "fastgen.masked_conv2d: taps must start with its number of taps, got ", count,
                    " of ", taps.size(0) - 1, "; make it with fastgen.TapPlan");
  const int64_t kh = weight.size(2), kw = weight.size(3);
  for (int64_t t = 0; t < count; ++t) {
    row += 3;
    TORCH_CHECK_VALUE(row[0] >= 0 && row[0] < kh && row[1] >= 0 && row[1] < kw,
                      "fastgen.masked_conv2d: taps must lie in the kernel ", kh, " x ", kw,
                      ", got (", row[0], ", ", row[1], "); make them with fastgen.TapPlan");
    const int64_t down = row[0] - kh / 2, right = row[1] - kw / 2;
    // Elsewhere it takes no part, and its displacement might not even fit an int64.
    if (!reaches(down, dilation[0], x.size(2)) || !reaches(right, dilation[1], x.size(3))) continue;
    ConvTap tap;
    tap.dy = down * dilation[0];
    tap.dx = right * dilation[1];
    if (backwards) {
      tap.dy = -tap.dy;
      tap.dx = -tap.dx;
    }
    tap.weight = row[0] * weight.stride(2) + row[1] * weight.stride(3);
    tap.partial = row[2] < 0 ? -1 : row[2] * weight.size(0) * weight.size(1);
    plan.taps.push_back(tap);
  }
  if (backwards) std::reverse(plan.taps.begin(), plan.taps.end());
  plan.row_cut = cuts(plan.taps, x.size(2), [](const ConvTap& tap) { return tap.dy; });
  plan.column_cut = cuts(plan.taps, x.size(3), [](const ConvTap& tap) { return tap.dx; });
  return plan;
}

StridedImages images_of(const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2),
          t.stride(3)};
}

// The convolution of x to y, forwards or, with `backwards`, of a gradient to an input's gradient.
MaskedConv2d describe(const Tensor& x, const Tensor& y, const Tensor& weight, const Tensor& partial,
                      const Plan& plan, bool backwards) {
  MaskedConv2d c{};
  c.batch = x.size(0);
  c.height = x.size(2);
  c.width = x.size(3);
  c.in = weight.size(backwards ? 0 : 1);
  c.out = weight.size(backwards ? 1 : 0);
  c.x = images_of(x);
  c.y = images_of(y);
  c.weight = const_cast<void*>(weight.const_data_ptr());
  c.weight_in = weight.stride(backwards ? 0 : 1);
  c.weight_out = weight.stride(backwards ? 1 : 0);
  c.partial = partial.const_data_ptr<uint8_t>();
  c.partial_in = backwards ? weight.size(1) : 1;
  c.partial_out = backwards ? 1 : weight.size(1);
  c.taps = plan.taps.data();
  c.tap_count = static_cast<int64_t>(plan.taps.size());
  c.row_cut = plan.row_cut.data();
  c.row_cuts = static_cast<int64_t>(plan.row_cut.size());
  c.column_cut = plan.column_cut.data();
  c.column_cuts = static_cast<int64_t>(plan.column_cut.size());
  return c;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t multiply_adds(const MaskedConv2d& c) {
  return c.batch * c.height * c.width * c.out * std::max<int64_t>(1, c.in * c.tap_count);
}

// Units of about `bytes` of pixels, and at least `count` of them where there are enough rows.
ConvUnits split(const MaskedConv2d& c, int64_t row_bytes, int64_t bytes, int64_t count) {
  ConvUnits units;
  units.images = std::clamp<int64_t>(bytes / std::max<int64_t>(1, row_bytes * c.height), 1,
                                     std::max<int64_t>(1, c.batch / count));
  units.bands = 1;
  if (units.images == 1) {
    const int64_t rows = std::max<int64_t>(1, bytes / row_bytes);
    const int64_t bands = std::max(ceil_div(c.height, rows), ceil_div(count, c.batch));
    units.bands = std::min(bands, c.height);
  }
  units.rows = ceil_div(c.height, units.bands);
  units.bands = ceil_div(c.height, units.rows);
  units.count = ceil_div(c.batch, units.images) * units.bands;
  return units;
}

template <class Kernels>
const auto& for_type(const Kernels& kernels, at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return kernels.float32;
    case at::kDouble:
      return kernels.float64;
    case at::kBFloat16:
      return kernels.bfloat16;
    case at::kHalf:
      return kernels.float16;
    default:
      TORCH_CHECK_TYPE(false,
                       "fastgen.masked_conv2d: x must be float32, float64, bfloat16 or float16, "
                       "got ",
                       type, "; convert it with .to(torch.float32)");
  }
}

c10::DataPtr allocate(int64_t bytes) {
  return c10::GetCPUAllocator()->allocate(static_cast<size_t>(bytes));
}

int64_t element_bytes(at::ScalarType type) { return type == at::kDouble ? 8 : 4; }

void convolve(const MaskedConv2d& c, at::ScalarType type) {
  const auto& kernels = for_type(FASTGEN_KERNELS(masked_conv2d), type);
  const int64_t threads = multiply_adds(c) < kParallelWork ? 1 : at::get_num_threads();
  const c10::DataPtr packed = allocate(kernels.packed_bytes(c));
  const int64_t blocks = ceil_div(c.out, kernels.block);
  const int64_t block_work = c.tap_count * c.in * kernels.block;
  at::parallel_for(0, blocks, 1 + kParallelWork / 16 / std::max<int64_t>(1, block_work),
                   [&](int64_t begin, int64_t end) { kernels.pack(c, begin, end, packed.get()); });
  const int64_t row_bytes = c.width * std::max<int64_t>(1, c.in) * element_bytes(type);
  const ConvUnits units = split(c, row_bytes, kUnitBytes, threads == 1 ? 1 : 4 * threads);
  at::parallel_for(0, units.count, threads == 1 ? units.count : 1, [&](int64_t begin, int64_t end) {
    const c10::DataPtr scratch = allocate(kernels.scratch_bytes(c, units));
    kernels.convolve(c, packed.get(), units, begin, end, scratch.get());
  });
}

// Gradients of the weight (into c.weight) and of the bias, of those that are wanted.
void weight_gradient(const MaskedConv2d& c, at::ScalarType type, bool with_weight, void* bias) {
  const auto& kernels = for_type(FASTGEN_KERNELS(masked_conv2d_weight_gradient), type);
  const int64_t sums_bytes = kernels.sums_bytes(c), pixels = c.batch * c.height * c.width;
  const int64_t most = std::clamp<int64_t>(kChunksBytes / sums_bytes, 1, kMostChunks);
  const int64_t row_bytes = c.width * (c.in + c.out) * element_bytes(type);
  const ConvUnits units =
      split(c, row_bytes, 2 * kUnitBytes, std::clamp<int64_t>(pixels / kChunkPixels, 1, most));
  const int64_t chunks = std::min(units.count, most);
  const int64_t blocks = ceil_div(c.out, kernels.block);
  const int64_t threads = multiply_adds(c) < kParallelWork ? 1 : at::get_num_threads();
  const int64_t groups = std::clamp<int64_t>(threads == 1 ? 1 : 2 * threads / chunks, 1, blocks);
  const int64_t tasks = chunks * groups;
  const c10::DataPtr sums = allocate(chunks * sums_bytes);
  at::parallel_for(0, tasks, threads == 1 ? tasks : 1, [&](int64_t begin, int64_t end) {
    const c10::DataPtr scratch = allocate(kernels.scratch_bytes(c, units));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task / groups, group = task % groups;
      kernels.accumulate(c, units, chunk * units.count / chunks, (chunk + 1) * units.count / chunks,
                         group * blocks / groups, (group + 1) * blocks / groups, with_weight,
                         bias != nullptr, static_cast<char*>(sums.get()) + chunk * sums_bytes,
                         scratch.get());
    }
  });
  if (with_weight) {
    const int64_t work = chunks * c.tap_count * c.out;
    at::parallel_for(
        0, c.in, 1 + kParallelWork / 16 / std::max<int64_t>(1, work),
        [&](int64_t begin, int64_t end) { kernels.finish(c, sums.get(), chunks, begin, end); });
  }
  if (bias != nullptr) kernels.finish_bias(c, sums.get(), chunks, bias);
}

// Backstop; the Python function says the same with remedies.
void check(const Tensor& x, const Tensor& weight, const Tensor& taps, const Tensor& partial,
           at::IntArrayRef dilation) {
  constexpr const char* op = "fastgen.masked_conv2d: ";
  TORCH_CHECK_VALUE(x.dim() == 4, op, "x must be (B, in, H, W), got ", x.sizes());
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(1) == x.size(1), op, "weight must be (out, ",
                    x.size(1), ", kh, kw), got ", weight.sizes());
  TORCH_CHECK_TYPE(weight.scalar_type() == x.scalar_type(), op, "weight must be ", x.scalar_type(),
                   " as x, got ", weight.scalar_type());
  TORCH_CHECK_VALUE(weight.size(2) % 2 == 1 && weight.size(3) % 2 == 1, op,
                    "weight must have an odd kernel, got ", weight.sizes());
  TORCH_CHECK_VALUE(dilation.size() == 2 && dilation[0] >= 1 && dilation[1] >= 1, op,
                    "dilation must be two numbers >= 1, got ", dilation);
  TORCH_CHECK_VALUE(taps.device().is_cpu() && taps.scalar_type() == at::kInt &&
                        taps.is_contiguous() && taps.dim() == 2 &&
                        taps.size(0) == weight.size(2) * weight.size(3) + 1 && taps.size(1) == 3,
                    op, "taps must be a dense int32 (kh * kw + 1, 3) on the CPU, got ",
                    taps.scalar_type(), " ", taps.sizes(), " on ", taps.device(),
                    "; make it with fastgen.TapPlan");
  const int64_t partials = taps.const_data_ptr<int32_t>()[1];
  TORCH_CHECK_VALUE(partial.device().is_cpu() && partial.scalar_type() == at::kByte &&
                        partial.is_contiguous() && partial.dim() == 3 &&
                        partial.size(0) >= partials && partial.size(1) == weight.size(0) &&
                        partial.size(2) == weight.size(1),
                    op, "partial must be a dense uint8 (", partials, ", out, in) on the CPU, got ",
                    partial.scalar_type(), " ", partial.sizes(), " on ", partial.device(),
                    "; make it with fastgen.TapPlan");
}

Tensor masked_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     const Tensor& taps, const Tensor& partial, at::IntArrayRef dilation) {
  check(x, weight, taps, partial, dilation);
  const bool has_bias = bias.has_value() && bias->defined();
  TORCH_CHECK_VALUE(!has_bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)),
                    "fastgen.masked_conv2d: bias must be (", weight.size(0), ",), got ",
                    bias->sizes());
  TORCH_CHECK_TYPE(!has_bias || bias->scalar_type() == x.scalar_type(),
                   "fastgen.masked_conv2d: bias must be ", x.scalar_type(), " as x, got ",
                   bias->scalar_type());
  Tensor y = at::empty({x.size(0), weight.size(0), x.size(2), x.size(3)}, x.options(),
                       x.suggest_memory_format());
  if (y.numel() == 0) return y;
  const Plan plan = make_plan(x, weight, taps, dilation, false);
  MaskedConv2d c = describe(x, y, weight, partial, plan, false);
  const Tensor dense_bias = has_bias ? bias->contiguous() : Tensor();
  c.bias = has_bias ? dense_bias.const_data_ptr() : nullptr;
  convolve(c, x.scalar_type());
  return y;
}

std::tuple<Tensor, Tensor, Tensor> masked_conv2d_backward(const Tensor& grad, const Tensor& x,
                                                          const Tensor& weight, const Tensor& taps,
                                                          const Tensor& partial,
                                                          at::IntArrayRef dilation,
                                                          std::array<bool, 3> needs) {
  check(x, weight, taps, partial, dilation);
  const std::array<int64_t, 4> shape = {x.size(0), weight.size(0), x.size(2), x.size(3)};
  TORCH_CHECK_VALUE(grad.sizes() == at::IntArrayRef(shape), "fastgen.masked_conv2d: grad must be ",
                    at::IntArrayRef(shape), ", got ", grad.sizes());
  TORCH_CHECK_TYPE(grad.scalar_type() == x.scalar_type(), "fastgen.masked_conv2d: grad must be ",
                   x.scalar_type(), " as x, got ", grad.scalar_type());
  Tensor grad_x, grad_weight, grad_bias;
  if (needs[0]) {
    grad_x = at::empty(x.sizes(), x.options(), x.suggest_memory_format());
    if (grad_x.numel() > 0) {
      const Plan plan = make_plan(x, weight, taps, dilation, true);
      convolve(describe(grad, grad_x, weight, partial, plan, true), x.scalar_type());
    }
  }
  if (needs[1]) {
    grad_weight = at::empty(weight.sizes(), weight.options(), weight.suggest_memory_format());
    grad_weight.zero_();
  }
  if (needs[2]) grad_bias = at::zeros({weight.size(0)}, weight.options());
  if ((needs[1] || needs[2]) && grad.numel() > 0) {
    const Plan plan = make_plan(x, weight, taps, dilation, false);
    const bool with_weight = needs[1] && weight.numel() > 0 && !plan.taps.empty();
    // strides of the gradient, which need not be the weight's
    const Tensor& target = with_weight ? grad_weight : weight;
    const Plan of_target = make_plan(x, target, taps, dilation, false);
    weight_gradient(describe(x, grad, target, partial, of_target, false), x.scalar_type(),
                    with_weight, needs[2] ? grad_bias.mutable_data_ptr() : nullptr);
  }
  const auto or_empty = [&](const Tensor& t) {
    return t.defined() ? t : at::empty({0}, x.options());
  };
  return {or_empty(grad_x), or_empty(grad_weight), or_empty(grad_bias)};
}

}  // namespace
}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("masked_conv2d", &fastgen::masked_conv2d);
  m.impl("masked_conv2d_backward", &fastgen::masked_conv2d_backward);
}

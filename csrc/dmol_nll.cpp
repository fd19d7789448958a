#include "dmol_nll.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "of_dtype.h"

namespace fastgen {
namespace {

using at::Tensor;

// Parameters a thread should have: below this the other threads cost more than they bring.
constexpr int64_t kGrain = 1 << 16;

// Bytes of a gradient that is written past the caches: 0.9 of the time at 6.5 MB.
constexpr size_t kLarge = 4 << 20;

struct Options {
  int64_t components;
  bool coupled;
  int64_t levels;
  bool exact, channels_last, per_pixel;
};

// Whether pixels are evenly spaced, with the height at axis `h`.
bool pixels_in_line(const Tensor& t, int64_t h) {
  return t.size(h) <= 1 || t.size(h + 1) <= 1 || t.stride(h) == t.size(h + 1) * t.stride(h + 1);
}

// `t`, or a copy in which they are: in t's memory format, unless that is one of other axes.
Tensor in_line(const Tensor& t, int64_t h) {
  if (pixels_in_line(t, h)) return t;
  const Tensor copy = t.contiguous(t.suggest_memory_format());
  return pixels_in_line(copy, h) ? copy : copy.contiguous();
}

int64_t pixel_step(const Tensor& t, int64_t h) {
  if (t.size(h + 1) > 1) return t.stride(h + 1);
  return t.size(h) > 1 ? t.stride(h) : 1;
}

struct Operands {
  Tensor params, x;
  Options options;
  int64_t colors, params_height, x_height;

  Operands(const Tensor& params_in, const Tensor& x_in, const Options& o) : options(o) {
    TORCH_CHECK_VALUE(x_in.dim() == 4, "fastgen.dmol_nll: x must have 4 axes, got ", x_in.sizes());
    colors = x_in.size(o.channels_last ? 3 : 1);
    x_height = o.channels_last ? 1 : 2;
    const int64_t count = (o.coupled && colors == 3 ? 10 : 3) * o.components;
    std::vector<int64_t> sizes{x_in.size(0)};
    if (!o.channels_last) sizes.push_back(count);
    if (!o.channels_last && !o.coupled) sizes.push_back(colors);
    params_height = static_cast<int64_t>(sizes.size());
    sizes.push_back(x_in.size(x_height));
    sizes.push_back(x_in.size(x_height + 1));
    if (o.channels_last) {
      params_height = 1;
      sizes.push_back(o.coupled ? count : count * colors);
    }
    TORCH_CHECK_VALUE(params_in.sizes() == sizes && (!o.coupled || colors == 1 || colors == 3) &&
                          o.components >= 1 && o.levels >= 2 && o.levels <= 65536,
                      "fastgen.dmol_nll: params must be ", at::IntArrayRef(sizes), ", got ",
                      params_in.sizes(), "; check components=, coupled= and channels_last=");
    params = in_line(params_in, params_height);
    x = known_type(in_line(x_in, x_height));
  }

  static Tensor known_type(const Tensor& x) {
    switch (x.scalar_type()) {
      case at::kUInt16:
      case at::kUInt32:
      case at::kUInt64:
        return x.to(at::kLong);
      default:
        return x;
    }
  }

  DmolSteps steps(const Tensor& t) const {  // of params, or of their gradient
    const int64_t channel = t.stride(options.channels_last ? 3 : 1);
    DmolSteps at{t.stride(0), channel, 0, pixel_step(t, params_height)};
    if (options.coupled) return at;
    at.color = options.channels_last ? channel : t.stride(2);
    if (options.channels_last) at.channel = channel * colors;
    return at;
  }
};

PixelType pixel_type(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kByte:
      return PixelType::kUint8;
    case at::kChar:
      return PixelType::kInt8;
    case at::kShort:
      return PixelType::kInt16;
    case at::kInt:
      return PixelType::kInt32;
    case at::kLong:
      return PixelType::kInt64;
    case at::kFloat:
      return PixelType::kFloat;
    case at::kDouble:
      return PixelType::kDouble;
    case at::kBFloat16:
      return PixelType::kBFloat16;
    case at::kHalf:
      return PixelType::kHalf;
    default:
      TORCH_CHECK_TYPE(false, "fastgen.dmol_nll: x must hold integers or floats, got ",
                       x.scalar_type(), "; use .long()");
  }
}

DmolArgs arguments(const Operands& in, std::atomic<bool>* outside) {
  DmolArgs args{};
  args.params = in.params.const_data_ptr();
  args.params_at = in.steps(in.params);
  args.x = in.x.const_data_ptr();
  args.x_at = {in.x.stride(0), 0, in.x.stride(in.options.channels_last ? 3 : 1),
               pixel_step(in.x, in.x_height)};
  args.x_type = pixel_type(in.x);
  args.pixels = in.x.size(in.x_height) * in.x.size(in.x_height + 1);
  args.colors = in.colors;
  args.components = in.options.components;
  args.levels = static_cast<int>(in.options.levels);
  args.coupled = in.options.coupled;
  args.exact = in.options.exact;
  args.outside = outside;
  return args;
}

const DmolKernels::PerType& kernels_of(const Tensor& params) {
  return of_dtype(FASTGEN_KERNELS(dmol_nll), params, "dmol_nll", "params");
}

// The first pixel that is none of the levels, in the order of (B, C, H, W).
[[noreturn]] void refuse_pixels(const Operands& in) {
  const Tensor ordered = in.options.channels_last ? in.x.permute({0, 3, 1, 2}) : in.x;
  const Tensor wide = ordered.to(at::kDouble).contiguous();
  const double last = static_cast<double>(in.options.levels - 1);
  const bool floats = in.x.is_floating_point();
  const auto outside = [&](double value) {
    if (!floats) return value < 0 || value > last;
    const double code = std::nearbyint((value + 1) * (last / 2));
    return !(std::fabs(value - (code * 2 / last - 1)) <= 1e-3) || code < 0 || code > last;
  };
  const double* values = wide.const_data_ptr<double>();
  const double* found = std::find_if(values, values + wide.numel(), outside);
  char got[32];
  std::snprintf(got, sizeof got, "%g", found == values + wide.numel() ? NAN : *found);
  if (floats) {
    TORCH_CHECK_VALUE(false, "fastgen.dmol_nll: x must hold floats within 0.001 of the ",
                      in.options.levels, " levels 2 k / ", in.options.levels - 1, " - 1, got ", got,
                      "; scale images to [-1, 1], or pass integer codes");
  }
  TORCH_CHECK_VALUE(false, "fastgen.dmol_nll: x must hold codes in 0 .. ", in.options.levels - 1,
                    ", got ", got, "; pass the levels= of the data");
}

void run(const Operands& in, DmolKernels::Range range, const DmolArgs& args) {
  const int64_t pieces = in.x.size(0) * dmol_pieces(args.pixels);
  const int64_t values = in.params.numel() / std::max<int64_t>(1, pieces);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, values));
  at::parallel_for(0, pieces, grain, [&](int64_t begin, int64_t end) {
    const c10::DataPtr scratch = c10::GetCPUAllocator()->allocate(
        static_cast<size_t>(FASTGEN_KERNELS(dmol_nll).scratch_bytes(args)));
    range(args, begin, end, scratch.get());
  });
  if (args.outside->load()) refuse_pixels(in);
}

template <class T>
void add_pieces(const Tensor& sums, Tensor& nll) {
  const int64_t samples = nll.size(0), pieces = sums.numel() / std::max<int64_t>(1, samples);
  const double* from = sums.const_data_ptr<double>();
  T* to = nll.mutable_data_ptr<T>();
  for (int64_t i = 0; i < samples; ++i) {
    double total = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) total += *from++;
    to[i] = static_cast<T>(total);
  }
}

}  // namespace

Tensor dmol_nll(const Tensor& params, const Tensor& x, int64_t components, bool coupled,
                int64_t levels, bool exact, bool channels_last, bool per_pixel) {
  const Operands in(params, x, {components, coupled, levels, exact, channels_last, per_pixel});
  const bool wide = params.scalar_type() == at::kDouble;
  const auto result = params.options().dtype(wide ? at::kDouble : at::kFloat);
  std::atomic<bool> outside{false};
  DmolArgs args = arguments(in, &outside);
  const int64_t batch = x.size(0);
  if (per_pixel) {
    Tensor nll = at::empty({batch, x.size(in.x_height), x.size(in.x_height + 1)}, result);
    args.per_pixel = nll.mutable_data_ptr();
    run(in, kernels_of(params).forward, args);
    return nll;
  }
  const Tensor sums = at::empty({batch * dmol_pieces(args.pixels)}, result.dtype(at::kDouble));
  args.sums = static_cast<double*>(sums.mutable_data_ptr());
  run(in, kernels_of(params).forward, args);
  Tensor nll = at::empty({batch}, result);
  wide ? add_pieces<double>(sums, nll) : add_pieces<float>(sums, nll);
  return nll;
}

Tensor dmol_nll_backward(const Tensor& grad_nll, const Tensor& params, const Tensor& x,
                         int64_t components, bool coupled, int64_t levels, bool exact,
                         bool channels_last, bool per_pixel) {
  const Operands in(params, x, {components, coupled, levels, exact, channels_last, per_pixel});
  const auto type = params.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  Tensor grad = grad_nll.to(type);
  TORCH_CHECK_VALUE(grad.dim() == (per_pixel ? 3 : 1) && grad.size(0) == x.size(0),
                    "fastgen.dmol_nll: grad_nll must be of the result's shape, got ", grad.sizes());
  if (per_pixel && !pixels_in_line(grad, 1)) grad = grad.contiguous();
  Tensor grad_params = at::empty(params.sizes(), params.options(), params.suggest_memory_format());
  const bool is_direct = pixels_in_line(grad_params, in.params_height);
  const Tensor written = is_direct ? grad_params : at::empty(params.sizes(), params.options());
  std::atomic<bool> outside{false};
  DmolArgs args = arguments(in, &outside);
  args.grad_nll = grad.const_data_ptr();
  args.grad_nll_sample = grad.stride(0);
  args.grad_nll_pixel = per_pixel ? pixel_step(grad, 1) : 0;
  args.grad_params = written.mutable_data_ptr();
  args.grad_params_at = in.steps(written);
  args.large = written.nbytes() >= kLarge;
  run(in, kernels_of(params).backward, args);
  if (!is_direct) grad_params.copy_(written);
  return grad_params;
}

}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("dmol_nll", &fastgen::dmol_nll);
  m.impl("dmol_nll_backward", &fastgen::dmol_nll_backward);
}

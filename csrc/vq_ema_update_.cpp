#include "vq_ema_update_.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "of_dtype.h"

namespace fastgen {
namespace {

using at::Tensor;

constexpr int64_t kGrain = 8192;  // values a thread should have
constexpr int64_t kPiece = 1024;  // values held in float64 at a time, unless a code has more

const VqEmaUpdateKernels::PerType& kernels_of(const Tensor& t) {
  return of_dtype(FASTGEN_KERNELS(vq_ema_update_), t, "vq_ema_update_", "tensors");
}

// What the codes of a head are divided by, and the new cluster sizes; false if no row came.
bool move_sizes(const int64_t* counts, int64_t codes, double decay, double eps, double* size,
                double* divisor) {
  if (std::all_of(counts, counts + codes, [](int64_t count) { return count == 0; })) return false;
  double total = 0;
  for (int64_t k = 0; k < codes; ++k) {
    size[k] = size[k] * decay + static_cast<double>(counts[k]) * (1 - decay);
    total += size[k];
  }
  // Laplace smoothing: a code that nothing chose does not divide by 0
  for (int64_t k = 0; k < codes; ++k) {
    divisor[k] = (size[k] + eps) / (total + static_cast<double>(codes) * eps) * total;
  }
  return true;
}

}  // namespace

void vq_ema_update_(const Tensor& embed, const Tensor& cluster_size, const Tensor& embed_avg,
                    const Tensor& counts, const Tensor& sums, double decay, double eps) {
  TORCH_CHECK_VALUE(embed.dim() == 2 || embed.dim() == 3,
                    "fastgen.vq_ema_update_: embed must be (K, D) or (G, K, D), got ",
                    embed.sizes());
  const auto leading = embed.sizes().slice(0, embed.dim() - 1);
  TORCH_CHECK_VALUE(embed_avg.sizes() == embed.sizes() && sums.sizes() == embed.sizes() &&
                        cluster_size.sizes() == leading && counts.sizes() == leading,
                    "fastgen.vq_ema_update_: embed_avg and sums must be embed's shape ",
                    embed.sizes(), ", cluster_size and counts ", leading, ", got ",
                    embed_avg.sizes(), ", ", sums.sizes(), ", ", cluster_size.sizes(), ", ",
                    counts.sizes());
  if (embed.numel() == 0) return;
  const int64_t codes = embed.size(-2), values = embed.size(-1), heads = counts.numel() / codes;
  const Tensor count = counts.contiguous(), sum = sums.contiguous();
  const Tensor written = embed.contiguous(), average = embed_avg.contiguous();
  const Tensor size = cluster_size.to(at::kDouble, /*non_blocking=*/false, /*copy=*/true,
                                      at::MemoryFormat::Contiguous);
  std::vector<double> divisors(heads * codes);
  std::vector<char> moves(heads);
  for (int64_t g = 0; g < heads; ++g) {
    moves[g] = move_sizes(count.const_data_ptr<int64_t>() + g * codes, codes, decay, eps,
                          size.mutable_data_ptr<double>() + g * codes, &divisors[g * codes]);
  }

  const auto &of_average = kernels_of(average), &of_embed = kernels_of(written);
  char* averages = static_cast<char*>(average.mutable_data_ptr());
  char* embeds = static_cast<char*>(written.mutable_data_ptr());
  const double* added = sum.const_data_ptr<double>();
  const int64_t grain = std::max<int64_t>(1, kGrain / values);
  at::parallel_for(0, heads * codes, grain, [&](int64_t begin, int64_t end) {
    const int64_t most = std::max<int64_t>(1, kPiece / values);
    std::vector<double> piece(most * values);
    for (int64_t row = begin, last; row < end; row = last) {
      const int64_t head = row / codes;
      last = std::min({row + most, end, (head + 1) * codes});
      if (!moves[head]) continue;
      const int64_t at = row * values;
      of_average.blend(averages + at * average.element_size(), added + at, decay, piece.data(),
                       (last - row) * values);
      of_embed.divide(piece.data(), &divisors[row], embeds + at * written.element_size(),
                      last - row, values);
    }
  });
  if (std::none_of(moves.begin(), moves.end(), [](char moved) { return moved; })) return;
  cluster_size.copy_(size);
  if (!average.is_same(embed_avg)) embed_avg.copy_(average);
  if (!written.is_same(embed)) embed.copy_(written);
}

}  // namespace fastgen

TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("vq_ema_update_", &fastgen::vq_ema_update_); }

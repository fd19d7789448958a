#include "cuda/optimizer.cuh"

namespace fastgen {
namespace cuda {
namespace {

// A launch of its own counts the steps: in the update's, blocks that read a step would race with
// the one that counts it. It also leaves one power for each tensor instead of one for each thread.
struct AdamSteps {
  static constexpr int kMost = 224;
  AdamStep steps[kMost];
  int32_t count;
};
static_assert(sizeof(AdamSteps) + kForSettings <= kSmallArguments,
              "more than a kernel's arguments");

__global__ void __launch_bounds__(kThreads)
    count_steps(const AdamSteps __grid_constant__ table, AdamFactors* factors,
                const AdamSettings __grid_constant__ settings,
                const DeviceNumbers __grid_constant__ numbers) {
  const int i = threadIdx.x;
  if (i >= table.count || skips(numbers)) return;
  const AdamStep& step = table.steps[i];
  const float now = step.at != nullptr ? *step.at + 1 : step.value;
  if (step.at != nullptr) *step.at = now;
  const double rate = rate_of(numbers, settings.lr);
  factors[i].minus_step_size = -rate / (1 - std::pow(settings.beta1, static_cast<double>(now)));
  factors[i].correction = std::sqrt(1 - std::pow(settings.beta2, static_cast<double>(now)));
}

template <class A>
struct Adam {
  using Storage = typename A::Storage;
  static constexpr int kOperands = 5;  // param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq
  static constexpr unsigned kWritten = kParam | kThird | kFourth | kFifth;
  static constexpr bool kCounts = true;

  AdamValues<A> values;
  ClipValues<A> clip;
  DeviceNumbers numbers;
  double decoupled_decay;  // 0: none
  int64_t* count;
  bool maximize, amsgrad;

  struct Rule {
    AdamValues<A> values;
    ClipValues<A> clip;
    unsigned operands;
    typename A::Value minus_step_size, correction;

    __device__ int apply(typename A::Value (&x)[kOperands]) const {
      typename A::Value &p = x[0], g = x[1], &m = x[2], &v = x[3], &u = x[4];
      if (operands & kFifth) {
        values.template update<true>(minus_step_size, correction, g, p, m, v, u);
      } else if (operands & kGrad) {
        values.template update<false>(minus_step_size, correction, g, p, m, v, u);
      }
      p = clip.clipped(p);
      return clip.at_bound(p);
    }
  };

  template <class RowT>
  __device__ Rule of(const RowT& row, bool) const {
    if (skips(numbers)) return {values, clip, kParam, 0, 0};
    Rule rule{values, clip, kParam | kGrad | kThird | kFourth, A::all(row.factors->minus_step_size),
              A::all(row.factors->correction)};
    if (amsgrad) rule.operands |= kFifth;
    if (decoupled_decay != 0 && (numbers.rate != nullptr || numbers.double_rate != nullptr)) {
      rule.values.shrink = A::all(1 - A::product(rate_of(numbers, 0), decoupled_decay));
    }
    unscale<A>(numbers, maximize, &rule.values.gradient);
    return rule;
  }
};

}  // namespace

const char* adam_clip_(const Row* rows, int64_t row_count, const AdamStep* steps,
                       int64_t step_count, AdamFactors* factors, const AdamSettings& settings,
                       bool amsgrad, const DeviceNumbers& numbers, int64_t* count, void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  for (int64_t done = 0; done < step_count; done += AdamSteps::kMost) {
    AdamSteps table;
    table.count = static_cast<int32_t>(std::min<int64_t>(AdamSteps::kMost, step_count - done));
    std::copy_n(steps + done, table.count, table.steps);
    FASTGEN_LAUNCH(count_steps, 1, kThreads, 0, on, table, factors + done, settings, numbers);
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess) return cudaGetErrorString(status);
  }
  return launch_updates(rows, row_count, count, stream, [&](auto number) {
    using A = decltype(number);
    return Adam<A>{AdamValues<A>(settings),
                   ClipValues<A>(settings.low, settings.high),
                   numbers,
                   settings.decoupled ? settings.weight_decay : 0,
                   count,
                   settings.maximize,
                   amsgrad};
  });
}

}  // namespace cuda
}  // namespace fastgen

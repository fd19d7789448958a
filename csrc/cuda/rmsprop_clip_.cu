#include "cuda/optimizer.cuh"

namespace fastgen {
namespace cuda {
namespace {

template <class A>
struct Rmsprop {
  using Storage = typename A::Storage;
  static constexpr int kOperands = 5;  // param, grad, square_avg, momentum_buffer, grad_avg
  static constexpr unsigned kWritten = kParam | kThird | kFourth | kFifth;
  static constexpr bool kCounts = true;

  RmspropValues<A> values;
  ClipValues<A> clip;
  DeviceNumbers numbers;
  int64_t* count;
  bool maximize, momentum, centered;

  struct Rule {
    RmspropValues<A> values;
    ClipValues<A> clip;
    unsigned operands;

    __device__ int apply(typename A::Value (&x)[kOperands]) const {
      typename A::Value &p = x[0], g = x[1], &v = x[2], &b = x[3], &a = x[4];
      if (operands & kGrad) {
        const bool momentum = operands & kFourth, centered = operands & kFifth;
        if (momentum && centered) {
          values.template update<true, true>(g, p, v, b, a);
        } else if (momentum) {
          values.template update<true, false>(g, p, v, b, a);
        } else if (centered) {
          values.template update<false, true>(g, p, v, b, a);
        } else {
          values.template update<false, false>(g, p, v, b, a);
        }
      }
      p = clip.clipped(p);
      return clip.at_bound(p);
    }
  };

  template <class RowT>
  __device__ Rule of(const RowT& row, bool first) const {
    if (skips(numbers)) return {values, clip, kParam};
    if (first && row.step != nullptr) *row.step += 1;
    Rule rule{values, clip, kParam | kGrad | kThird};
    if (momentum) rule.operands |= kFourth;
    if (centered) rule.operands |= kFifth;
    if (numbers.rate != nullptr || numbers.double_rate != nullptr) {
      rule.values.minus_lr = A::all(-rate_of(numbers, 0));
    }
    unscale<A>(numbers, maximize, &rule.values.gradient);
    return rule;
  }
};

}  // namespace

const char* rmsprop_clip_(const Row* rows, int64_t row_count, const RmspropSettings& settings,
                          bool momentum, bool centered, const DeviceNumbers& numbers,
                          int64_t* count, void* stream) {
  return launch_updates(rows, row_count, count, stream, [&](auto number) {
    using A = decltype(number);
    return Rmsprop<A>{RmspropValues<A>(settings),
                      ClipValues<A>(settings.low, settings.high),
                      numbers,
                      count,
                      settings.maximize,
                      momentum,
                      centered};
  });
}

}  // namespace cuda
}  // namespace fastgen

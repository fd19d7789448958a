#include "cuda/multi_tensor.cuh"

namespace fastgen {
namespace cuda {
namespace {

template <class A>
struct Clip {
  using Storage = typename A::Storage;
  static constexpr int kOperands = 1;
  static constexpr unsigned kWritten = 1;
  static constexpr bool kCounts = true;

  ClipValues<A> clip;
  int64_t* count;

  struct Rule {
    static constexpr unsigned operands = 1;
    const ClipValues<A>& clip;

    __device__ int apply(typename A::Value (&x)[1]) const {
      x[0] = clip.clipped(x[0]);
      return clip.at_bound(x[0]);
    }
  };

  template <class RowT>
  __device__ Rule of(const RowT&, bool) const {
    return {clip};
  }
};

}  // namespace

const char* clip_weights_(const Row* rows, int64_t row_count, const ClipSettings& settings,
                          int64_t* count, void* stream) {
  return launch_updates(rows, row_count, count, stream, [&](auto number) {
    using A = decltype(number);
    return Clip<A>{ClipValues<A>(settings.low, settings.high), count};
  });
}

}  // namespace cuda
}  // namespace fastgen

#include "cuda/multi_tensor.cuh"

namespace fastgen {
namespace cuda {
namespace {

template <class A>
struct Ema {
  using Storage = typename A::Storage;
  static constexpr int kOperands = 2;  // target, source
  static constexpr unsigned kWritten = 1;
  static constexpr bool kCounts = false;

  LerpValues<A> lerp;

  struct Rule {
    static constexpr unsigned operands = 3;
    const LerpValues<A>& lerp;

    __device__ int apply(typename A::Value (&x)[2]) const {
      x[0] = lerp(x[0], x[1]);
      return 0;
    }
  };

  template <class RowT>
  __device__ Rule of(const RowT&, bool) const {
    return {lerp};
  }
};

}  // namespace

const char* ema_update_(const Row* rows, int64_t row_count, const EmaSettings& settings,
                        void* stream) {
  return launch_updates(rows, row_count, nullptr, stream, [&](auto number) {
    using A = decltype(number);
    return Ema<A>{LerpValues<A>(1 - settings.decay)};
  });
}

}  // namespace cuda
}  // namespace fastgen

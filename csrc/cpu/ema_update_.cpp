#include "ema_update_.h"

#include <type_traits>

#include "cpu/update_sweep.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

template <class S>
FASTGEN_INLINE void follow(const LerpValues<UpdateArithmetic<S>>& lerp, const Segment& segment) {
  using Value = typename UpdateArithmetic<S>::Value;
  NoCount none;
  sweep<S, 0b11, 0b1>(segment, [&](Value* x) { x[0] = lerp(x[0], x[1]); }, none);
}

// Target S, source Q.
template <class S, class Q>
int64_t update(const EmaSettings& settings, const Segment* segments, int64_t count) {
  const LerpValues<UpdateArithmetic<S>> lerp(1 - settings.decay);
  for (const Segment* segment = segments; segment != segments + count; ++segment) {
    if constexpr (std::is_same_v<S, Q>) {
      follow<S>(lerp, *segment);
    } else {
      S converted[kSpan];
      for (int64_t at = 0; at < segment->count; at += kSpan) {
        const int64_t here = std::min(kSpan, segment->count - at);
        const Q* from = static_cast<const Q*>(segment->operands[1]) + at;
        for (int64_t i = 0; i < here; ++i) {
          store(static_cast<typename Arithmetic<S>::type>(load(from[i])), converted + i);
        }
        S* target = static_cast<S*>(segment->operands[0]) + at;
        follow<S>(lerp, Segment{{target, converted}, here, {}});
      }
    }
  }
  return 0;
}

template <class S>
constexpr EmaKernels::PerTarget kKernels = {update<S, float>, update<S, double>,
                                            update<S, BFloat16>, update<S, Float16>};

}  // namespace

const EmaKernels ema_update__kernels = {kKernels<float>, kKernels<double>, kKernels<BFloat16>,
                                        kKernels<Float16>};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

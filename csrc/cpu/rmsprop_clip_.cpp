#include "rmsprop_clip_.h"

#include "cpu/update_sweep.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

template <class S, bool kMomentum, bool kCentered>
int64_t step(const RmspropSettings& settings, const Segment* segments, int64_t count) {
  using A = UpdateArithmetic<S>;
  using Value = typename A::Value;
  constexpr unsigned kWritten = 0b101 | kMomentum << 3 | kCentered << 4, kUsed = kWritten | 0b10;
  const RmspropValues<A> values(settings);
  const ClipValues<A> range(settings.low, settings.high);
  AtBoundCount<A> at_bound(range);
  for (const Segment* segment = segments; segment != segments + count; ++segment) {
    sweep<S, kUsed, kWritten>(
        *segment,
        [&](Value* x) {
          values.template update<kMomentum, kCentered>(x[1], x[0], x[2], x[3], x[4]);
          x[0] = range.clipped(x[0]);
        },
        at_bound);
  }
  return at_bound.total();
}

template <class S>
int64_t any_step(const RmspropSettings& settings, const Segment* segments, int64_t count) {
  if (count == 0) return 0;
  const bool momentum = segments->operands[3] != nullptr;
  if (segments->operands[4] != nullptr) {
    return momentum ? step<S, true, true>(settings, segments, count)
                    : step<S, false, true>(settings, segments, count);
  }
  return momentum ? step<S, true, false>(settings, segments, count)
                  : step<S, false, false>(settings, segments, count);
}

}  // namespace

const RmspropKernels rmsprop_clip__kernels = {any_step<float>, any_step<double>, any_step<BFloat16>,
                                              any_step<Float16>};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

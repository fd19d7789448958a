#include "adam_clip_.h"

#include "cpu/update_sweep.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

template <class S, bool kAmsgrad>
int64_t step(const AdamSettings& settings, const Segment* segments, int64_t count) {
  using A = UpdateArithmetic<S>;
  using Value = typename A::Value;
  constexpr unsigned kWritten = 0b1101 | kAmsgrad << 4, kUsed = kWritten | 0b10;
  const AdamValues<A> values(settings);
  const ClipValues<A> range(settings.low, settings.high);
  AtBoundCount<A> at_bound(range);
  for (const Segment* segment = segments; segment != segments + count; ++segment) {
    const Value minus_step_size = A::all(segment->own[0]), correction = A::all(segment->own[1]);
    sweep<S, kUsed, kWritten>(
        *segment,
        [&](Value* x) {
          values.template update<kAmsgrad>(minus_step_size, correction, x[1], x[0], x[2], x[3],
                                           x[4]);
          x[0] = range.clipped(x[0]);
        },
        at_bound);
  }
  return at_bound.total();
}

template <class S>
int64_t any_step(const AdamSettings& settings, const Segment* segments, int64_t count) {
  if (count == 0) return 0;
  return segments->operands[4] != nullptr ? step<S, true>(settings, segments, count)
                                          : step<S, false>(settings, segments, count);
}

}  // namespace

const AdamKernels adam_clip__kernels = {any_step<float>, any_step<double>, any_step<BFloat16>,
                                        any_step<Float16>};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

#include "clip_weights_.h"

#include "cpu/update_sweep.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

template <class S>
int64_t clip(const ClipSettings& settings, const Segment* segments, int64_t count) {
  using A = UpdateArithmetic<S>;
  const ClipValues<A> range(settings.low, settings.high);
  AtBoundCount<A> at_bound(range);
  for (const Segment* segment = segments; segment != segments + count; ++segment) {
    sweep<S, 1, 1>(*segment, [&](typename A::Value* x) { x[0] = range.clipped(x[0]); }, at_bound);
  }
  return at_bound.total();
}

}  // namespace

const ClipKernels clip_weights__kernels = {clip<float>, clip<double>, clip<BFloat16>,
                                           clip<Float16>};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

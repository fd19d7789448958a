#include "clip_weights_.h"

#include "cpu/update_sweep.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

template <class S>
int64_t clip(const ClipSettings& settings, const Segment* segments, int64_t count) {
  using Value = typename UpdateArithmetic<S>::Value;
  const ClipValues<UpdateArithmetic<S>> range(settings.low, settings.high);
  int64_t at_bound = 0;
  for (const Segment* segment = segments; segment != segments + count; ++segment) {
    at_bound += sweep<S, 1, 1>(
        *segment, [&](Value* x) { x[0] = range.clipped(x[0]); },
        [&](Value x) { return range.at_bound(x); });
  }
  return at_bound;
}

}  // namespace

const ClipKernels clip_weights__kernels = {clip<float>, clip<double>, clip<BFloat16>,
                                           clip<Float16>};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

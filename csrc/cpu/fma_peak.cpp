#include "fma_peak.h"

#include "common/simd.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// Latency 4 x 2 units needs 8 independent chains; 12 fit the 16 registers of every level.
constexpr int kChains = 12;

double run(int64_t iterations) {
  Vec<float> chain[kChains], a = broadcast(0.5f), b = broadcast(0.25f);
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) chain[i] = broadcast(static_cast<float>(i));
  for (int64_t it = 0; it < iterations; ++it) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * a + b;
  }
  Vec<float> total = chain[0];
  for (int i = 1; i < kChains; ++i) total += chain[i];
  volatile float keep = total[0];
  (void)keep;
  return 2.0 * kChains * kLanes<float> * static_cast<double>(iterations);
}

}  // namespace

const FmaPeakKernels fma_peak_kernels = {run};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

#include "fma_peak.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vec __attribute__((vector_size(kBytes)));
// Latency 4 x 2 units needs 8 independent chains; 12 fit the 16 registers of every level.
constexpr int kChains = 12;

double run(int64_t iterations) {
  Vec chain[kChains], a = Vec{} + 0.5f, b = Vec{} + 0.25f;
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) chain[i] = Vec{} + static_cast<float>(i);
  for (int64_t it = 0; it < iterations; ++it) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * a + b;
  }
  Vec total = chain[0];
  for (int i = 1; i < kChains; ++i) total += chain[i];
  volatile float keep = total[0];
  (void)keep;
  return 2.0 * kChains * (kBytes / sizeof(float)) * static_cast<double>(iterations);
}

}  // namespace

const FmaPeakKernels fma_peak_kernels = {run};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

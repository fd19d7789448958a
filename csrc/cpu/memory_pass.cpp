#include "memory_pass.h"

#include "common/simd.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// 20 bytes an element, those of RMSprop. The values stay bounded, so no denormal slows it down.
void run(float* weights, const float* grads, float* averages, int64_t count) {
  constexpr int kStep = kLanes<float>;
  const Vec<float> half = broadcast(0.5f);
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    const Vec<float> average = half * (load_vector(averages + i) + load_vector(grads + i));
    store_vector<float>(average, averages + i);
    store_vector<float>(half * (load_vector(weights + i) + average), weights + i);
  }
  for (; i < count; ++i) {
    averages[i] = 0.5f * (averages[i] + grads[i]);
    weights[i] = 0.5f * (weights[i] + averages[i]);
  }
}

}  // namespace

const MemoryPassKernels memory_pass_kernels = {run};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

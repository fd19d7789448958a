#include "vq_ema_update_.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

template <class S>
void blend(void* average, const double* __restrict sums, double decay, double* __restrict out,
           int64_t n) {
  S* __restrict stored = static_cast<S*>(average);
  for (int64_t i = 0; i < n; ++i) {
    out[i] = load(stored[i]) * decay + sums[i] * (1 - decay);
    store(out[i], stored + i);
  }
}

template <class S>
void divide(const double* __restrict average, const double* size, void* embed, int64_t rows,
            int64_t values) {
  S* __restrict out = static_cast<S*>(embed);
  for (int64_t r = 0; r < rows; ++r) {
    const double inverse = 1 / size[r];
    for (int64_t i = 0; i < values; ++i) store(average[i] * inverse, out + i);
    average += values;
    out += values;
  }
}

}  // namespace

const VqEmaUpdateKernels vq_ema_update__kernels = {
    {blend<float>, divide<float>},
    {blend<double>, divide<double>},
    {blend<BFloat16>, divide<BFloat16>},
    {blend<Float16>, divide<Float16>},
};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

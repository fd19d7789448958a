#include "philox_uniform.h"

#include <type_traits>

#include "philox_units.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// To as many bits as the type has, toward 0: to the nearest would make 1 of the largest.
template <class S>
constexpr int kUniformBits = std::is_same_v<S, BFloat16>  ? 8
                             : std::is_same_v<S, Float16> ? 11
                                                          : 24;

template <class S>
void uniforms(uint64_t seed, int64_t begin, int64_t end, S* out) {
  using T = typename Arithmetic<S>::type;
  fill_groups(seed, begin, end, out, [](const PhiloxKey& key, uint64_t block, Vec<T>(&numbers)[8]) {
    philox_uniforms<T, kUniformBits<S>>(key, block, numbers);
  });
}

}  // namespace

const PhiloxFillKernels philox_uniform_kernels = {uniforms<float>, uniforms<double>,
                                                  uniforms<BFloat16>, uniforms<Float16>};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

#include "philox_normal.h"

#include "philox_units.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

template <class S>
void normals(uint64_t seed, int64_t begin, int64_t end, S* out) {
  using T = typename Arithmetic<S>::type;
  fill_groups(seed, begin, end, out, [](const PhiloxKey& key, uint64_t block, Vec<T>(&numbers)[8]) {
    philox_normals<T>(key, block, numbers);
  });
}

}  // namespace

const PhiloxFillKernels philox_normal_kernels = {normals<float>, normals<double>, normals<BFloat16>,
                                                 normals<Float16>};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

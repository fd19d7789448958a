// Fills a range of elements group by group.
#pragma once

#include "common/philox.h"
#include "common/pixels.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// make(key, block, vectors) gives the numbers of a group.
template <class S, class Make>
FASTGEN_INLINE void fill_groups(uint64_t seed, int64_t begin, int64_t end, S* out, Make make) {
  using T = typename Arithmetic<S>::type;
  constexpr int kGroup = kPhiloxGroup<T>;
  PhiloxKey key(seed, begin / 4);
  Vec<T> numbers[8];
  for (; begin + kGroup <= end; begin += kGroup, out += kGroup) {
    key.move_to(begin / 4);
    make(key, begin / 4, numbers);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) store_converted<T>(numbers[j], out + j * kLanes<T>);
  }
  if (begin == end) return;
  key.move_to(begin / 4);
  make(key, begin / 4, numbers);
  T last[kGroup];
  for (int j = 0; j < 8; ++j) store_vector<T>(numbers[j], last + j * kLanes<T>);
  for (int64_t i = 0; i < end - begin; ++i) store(last[i], out + i);
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

// Sums of many vectors, lane by lane: parts of 64 are added up, so that a lane of thousands of
// values keeps its digits.
#pragma once

#include "common/simd.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

template <class T>
struct LaneSum {
  Vec<T> part{}, total{};
  int count = 0;

  FASTGEN_INLINE void add(Vec<T> x) {
    part += x;
    if (++count == 64) {
      total += part;
      part = Vec<T>{};
      count = 0;
    }
  }
  FASTGEN_INLINE Vec<T> lanes() const { return total + part; }
};

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

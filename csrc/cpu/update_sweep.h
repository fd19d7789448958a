// One pass over the operands of an update: vectors in, the rule, vectors out. The last vector of a
// segment is a masked one, since many parameters are only a few vectors long.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/simd_tail.h"
#include "cpu/update_arithmetic.h"
#include "update_segment.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

constexpr int64_t kSpan = 512;                      // elements of halves widened at a time
constexpr int64_t kMostCounted = int64_t{1} << 30;  // vectors that 32-bit lanes can count

constexpr bool has(unsigned operands, int i) { return operands >> i & 1; }

// The operands of adjacent elements, of arithmetic type.
template <class T>
struct Span {
  T* operands[kMostOperands];
  int64_t count;
};

// How many elements are at a bound, over any number of segments.
template <class A>
class AtBoundCount {
 public:
  using T = typename A::Scalar;

  explicit AtBoundCount(const ClipValues<A>& range) : range_(range) {}

  FASTGEN_INLINE void add(Vec<T> x) {
    minus_ += range_.at_bound(x);
    if (--until_summed_ == 0) sum();
  }
  FASTGEN_INLINE void add_first(Vec<T> x, int64_t lanes) {
    minus_ += range_.at_bound(x) & first_lanes<T>(lanes);
    if (--until_summed_ == 0) sum();
  }
  FASTGEN_INLINE int64_t total() {
    sum();
    return total_;
  }

 private:
  FASTGEN_INLINE void sum() {
    for (int lane = 0; lane < kLanes<T>; ++lane) total_ -= minus_[lane];
    minus_ = BitVec<T>{};
    until_summed_ = kMostCounted;
  }

  const ClipValues<A>& range_;
  BitVec<T> minus_{};
  int64_t until_summed_ = kMostCounted, total_ = 0;
};

struct NoCount {
  template <class V>
  FASTGEN_INLINE void add(V) {}
  template <class V>
  FASTGEN_INLINE void add_first(V, int64_t) {}
};

// Calls rule(x) for vectors x[0 .. kMostOperands) of the operands in the set kUsed, stores those
// in kWritten, and counts among what x[0] then holds.
template <class T, unsigned kUsed, unsigned kWritten, class Rule, class Count>
FASTGEN_INLINE void sweep_span(const Span<T>& span, Rule rule, Count& count) {
  Vec<T> x[kMostOperands];
  int64_t at = 0;
  for (; at + kLanes<T> <= span.count; at += kLanes<T>) {
#pragma GCC unroll 8
    for (int i = 0; i < kMostOperands; ++i) {
      if (has(kUsed, i)) x[i] = load_vector<T>(span.operands[i] + at);
    }
    rule(x);
#pragma GCC unroll 8
    for (int i = 0; i < kMostOperands; ++i) {
      if (has(kWritten, i)) store_vector<T>(x[i], span.operands[i] + at);
    }
    count.add(x[0]);
  }
  if (const int64_t left = span.count - at; left > 0) {
#pragma GCC unroll 8
    for (int i = 0; i < kMostOperands; ++i) {
      if (has(kUsed, i)) x[i] = load_part<T>(span.operands[i] + at, left);
    }
    rule(x);
#pragma GCC unroll 8
    for (int i = 0; i < kMostOperands; ++i) {
      if (has(kWritten, i)) store_part<T>(x[i], left, span.operands[i] + at);
    }
    count.add_first(x[0], left);
  }
}

// The same for a segment of storage type S; halves are widened, and narrowed again, span by span.
template <class S, unsigned kUsed, unsigned kWritten, class Rule, class Count>
FASTGEN_INLINE void sweep(const Segment& segment, Rule rule, Count& count) {
  using T = typename Arithmetic<S>::type;
  Span<T> span;
  if constexpr (sizeof(S) != 2) {
    for (int i = 0; i < kMostOperands; ++i) span.operands[i] = static_cast<T*>(segment.operands[i]);
    span.count = segment.count;
    sweep_span<T, kUsed, kWritten>(span, rule, count);
  } else {
    T widened[kMostOperands][kSpan];
    for (int i = 0; i < kMostOperands; ++i) span.operands[i] = widened[i];
    for (int64_t at = 0; at < segment.count; at += kSpan) {
      span.count = std::min(kSpan, segment.count - at);
      for (int i = 0; i < kMostOperands; ++i) {
        if (!has(kUsed, i)) continue;
        const S* from = static_cast<const S*>(segment.operands[i]) + at;
        for (int64_t k = 0; k < span.count; ++k) widened[i][k] = load(from[k]);
      }
      sweep_span<T, kUsed, kWritten>(span, rule, count);
      for (int i = 0; i < kMostOperands; ++i) {
        if (!has(kWritten, i)) continue;
        S* to = static_cast<S*>(segment.operands[i]) + at;
        for (int64_t k = 0; k < span.count; ++k) store(widened[i][k], to + k);
      }
    }
  }
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

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

// Calls rule(x) for vectors x[0 .. kMostOperands) of the operands in the set kUsed, stores those
// in kWritten, and returns in how many elements `counted` of the vector x[0] then holds.
template <class T, unsigned kUsed, unsigned kWritten, class Rule, class Counted>
FASTGEN_INLINE int64_t sweep_span(const Span<T>& span, Rule rule, Counted counted) {
  int64_t total = 0;
  Vec<T> x[kMostOperands];
  BitVec<T> minus{};
  const auto add_up = [&] {
    for (int lane = 0; lane < kLanes<T>; ++lane) total -= minus[lane];
    minus = BitVec<T>{};
  };
  int64_t at = 0, until_added = kMostCounted;
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
    minus += counted(x[0]);
    if (--until_added == 0) {
      add_up();
      until_added = kMostCounted;
    }
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
    minus += counted(x[0]) & first_lanes<T>(left);
  }
  add_up();
  return total;
}

// The same for a segment of storage type S; halves are widened, and narrowed again, span by span.
template <class S, unsigned kUsed, unsigned kWritten, class Rule, class Counted>
FASTGEN_INLINE int64_t sweep(const Segment& segment, Rule rule, Counted counted) {
  using T = typename Arithmetic<S>::type;
  Span<T> span;
  if constexpr (sizeof(S) != 2) {
    for (int i = 0; i < kMostOperands; ++i) span.operands[i] = static_cast<T*>(segment.operands[i]);
    span.count = segment.count;
    return sweep_span<T, kUsed, kWritten>(span, rule, counted);
  } else {
    T widened[kMostOperands][kSpan];
    int64_t total = 0;
    for (int i = 0; i < kMostOperands; ++i) span.operands[i] = widened[i];
    for (int64_t at = 0; at < segment.count; at += kSpan) {
      span.count = std::min(kSpan, segment.count - at);
      for (int i = 0; i < kMostOperands; ++i) {
        if (!has(kUsed, i)) continue;
        const S* from = static_cast<const S*>(segment.operands[i]) + at;
        for (int64_t k = 0; k < span.count; ++k) widened[i][k] = load(from[k]);
      }
      total += sweep_span<T, kUsed, kWritten>(span, rule, counted);
      for (int i = 0; i < kMostOperands; ++i) {
        if (!has(kWritten, i)) continue;
        S* to = static_cast<S*>(segment.operands[i]) + at;
        for (int64_t k = 0; k < span.count; ++k) store(widened[i][k], to + k);
      }
    }
    return total;
  }
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

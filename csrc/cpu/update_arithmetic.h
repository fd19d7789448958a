// The arithmetic of csrc/update_rules.h on whole vectors, for each storage type.
#pragma once

#include "common/half.h"
#include "common/simd_math.h"
#include "update_rules.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

FASTGEN_INLINE Vec<float> round_to(BFloat16, Vec<float> x) {
  const Words bits = (Words)x;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  return x == x ? (Vec<float>)rounded : x;
}

// By magnitude: a float below 2^-14 is rounded in the sum with 0.5, whose last place is a
// subnormal's.
FASTGEN_INLINE Vec<float> round_to(Float16, Vec<float> x) {
  const Words sign = (Words)x & 0x80000000u, magnitude = (Words)x & 0x7fffffffu;
  Vec<float> raised = (Vec<float>)magnitude + 0.5f;
  const Words normal = (magnitude + 0xfff + ((magnitude >> 13) & 1)) & 0xffffe000u;
  const Vec<float> size = (Vec<float>)magnitude;
  Vec<float> rounded = size < 0x1p-14f ? raised - 0.5f : (Vec<float>)normal;
  rounded = size >= 65520.f ? broadcast<float>(__builtin_inff()) : rounded;
  return x == x ? (Vec<float>)((Words)rounded | sign) : x;
}

// Its bits in a register, so that no compiler fuses what made them with what follows.
template <class V>
FASTGEN_INLINE V kept_apart(V x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

template <class S>
struct UpdateArithmetic {
  using Scalar = typename Arithmetic<S>::type;
  using Value = Vec<Scalar>;

  static FASTGEN_RULE Value all(double x) { return broadcast<Scalar>(static_cast<Scalar>(x)); }
  static FASTGEN_RULE Value stored(double x) { return rounded(all(x)); }

  static FASTGEN_RULE Value rounded(Value v) {
    if constexpr (sizeof(S) == 2) {
      return round_to(S{}, v);
    } else {
      return v;
    }
  }

  // torch's own code at a level without fused multiply-adds rounds twice.
  static FASTGEN_RULE Value fused(Value a, Value b, Value c) { return a * b + c; }
  static FASTGEN_RULE Value product(Value a, Value b) { return kept_apart<Value>(a * b); }
  static FASTGEN_RULE double product(double a, double b) { return kept_apart(a * b); }
  static FASTGEN_RULE Value square_root(Value v) { return FASTGEN_ISA_NS::square_root(v); }
};

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

// The arithmetic of csrc/update_rules.h for one number of a CUDA thread, with the bits of a CPU
// that has fused multiply-adds. The compiler must fuse nothing by itself: -fmad=false.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/launch.cuh"
#include "update_rules.h"

#define FASTGEN_ISA_NS of_host
#include "common/half.h"
#undef FASTGEN_ISA_NS

namespace fastgen {
namespace cuda {
namespace {

// One instruction each on a GPU.
FASTGEN_RULE float widened(Float16 x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  return of_host::load(x);
#endif
}

FASTGEN_RULE float widened(BFloat16 x) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
#else
  return of_host::load(x);
#endif
}

FASTGEN_RULE float widened(float x) { return x; }
FASTGEN_RULE double widened(double x) { return x; }

FASTGEN_RULE void narrow(float x, Float16* out) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out->bits) : "f"(x));
#else
  of_host::store(x, out);
#endif
}

FASTGEN_RULE void narrow(float x, BFloat16* out) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out->bits) : "f"(x));
#else
  of_host::store(x, out);
#endif
}

FASTGEN_RULE void narrow(float x, float* out) { *out = x; }
FASTGEN_RULE void narrow(double x, double* out) { *out = x; }

template <class S>
struct Number {
  using Storage = S;
  using Scalar = decltype(widened(S{}));
  using Value = Scalar;

  static FASTGEN_RULE Value all(double x) { return static_cast<Value>(x); }
  static FASTGEN_RULE Value stored(double x) { return rounded(static_cast<Value>(x)); }
  static FASTGEN_RULE Value rounded(Value x) {
    S narrower;
    narrow(x, &narrower);
    return widened(narrower);
  }
  static FASTGEN_RULE Value fused(Value a, Value b, Value c) { return std::fma(a, b, c); }
  template <class T>
  static FASTGEN_RULE T product(T a, T b) {  // of doubles, too
    return a * b;
  }
  static FASTGEN_RULE Value square_root(Value x) { return std::sqrt(x); }
};

}  // namespace
}  // namespace cuda
}  // namespace fastgen

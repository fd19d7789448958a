// Logarithms on whole vectors.
#pragma once

#include "common/simd_math.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

template <class T>
FASTGEN_INLINE Vec<T> absolute(Vec<T> x) {
  return (Vec<T>)((BitVec<T>)x & ~(BitVec<T>)broadcast<T>(T(-0.0)));
}

// x with its sign turned where `sign`'s is set.
template <class T>
FASTGEN_INLINE Vec<T> turned(Vec<T> x, Vec<T> sign) {
  return (Vec<T>)((BitVec<T>)x ^ ((BitVec<T>)sign & (BitVec<T>)broadcast<T>(T(-0.0))));
}

// log(1 + f) on sqrt(1/2) <= 1 + f <= sqrt(2): with s = f / (2 + f) it is 2 atanh(s), and
// 2 s = f - s f, so that no digit of f is lost.
template <class T>
FASTGEN_INLINE Vec<T> small_log1p(Vec<T> f) {
  constexpr int terms = sizeof(T) == 4 ? 4 : 10;  // s^2 < 0.03
  const Vec<T> s = f / (f + T(2)), z = s * s;
  Vec<T> p = broadcast<T>(T(2) / (2 * terms + 1));
#pragma GCC unroll 16
  for (int i = terms - 1; i >= 1; --i) p = p * z + T(2) / (2 * i + 1);
  return f - s * (f - p * z);
}

// x = 2^n (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2), x positive and normal. Gives f.
template <class T>
FASTGEN_INLINE Vec<T> split_log(Vec<T> x, Vec<T>* n) {
  using Traits = ExpTraits<T>;
  const BitVec<T> root = (BitVec<T>)broadcast<T>(T(0.70710678118654752440));
  const BitVec<T> power = ((BitVec<T>)x - root) >> Traits::kMantissa;  // also below 0
  *n = __builtin_convertvector(power, Vec<T>);
  return (Vec<T>)((BitVec<T>)x - (power << Traits::kMantissa)) - T(1);
}

template <class T>
FASTGEN_INLINE Vec<T> log_of_parts(Vec<T> f, Vec<T> n) {
  using Traits = ExpTraits<T>;
  return n * Traits::kLn2High + (n * Traits::kLn2Low + small_log1p<T>(f));
}

// Of positive normal x; NaN stays NaN.
template <class T>
FASTGEN_INLINE Vec<T> log(Vec<T> x) {
  Vec<T> n;
  const Vec<T> f = split_log<T>(x, &n);
  const Vec<T> value = log_of_parts<T>(f, n);
  return x == x ? value : x;
}

// Of finite x >= 0, accurate relative to its value.
template <class T>
FASTGEN_INLINE Vec<T> log1p(Vec<T> x) {
  Vec<T> n;
  const Vec<T> sum = x + T(1), f = split_log<T>(sum, &n);
  const Vec<T> lost = (x - (sum - T(1))) / sum;
  const Vec<T> value = n == T(0) ? small_log1p<T>(x) : log_of_parts<T>(f, n) + lost;
  return x == x ? value : x;
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

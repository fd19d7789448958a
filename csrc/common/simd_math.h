// vec_math.h's functions on whole vectors, with IEEE results at both ends of the range: loops of
// selects over lanes do not always vectorise, these do.
#pragma once

#include "common/simd.h"
#include "common/vec_math.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

template <class T>
FASTGEN_INLINE Vec<T> clamped(Vec<T> x, T low, T high) {  // NaN stays NaN
  x = x > high ? broadcast<T>(high) : x;
  return x < low ? broadcast<T>(low) : x;
}

// f lane by lane, for what has no vector form; plain loops over arrays, which may still vectorise.
template <class T, class F>
FASTGEN_INLINE Vec<T> each_lane(Vec<T> x, F f) {
  T values[kLanes<T>];
  store_vector<T>(x, values);
  for (int i = 0; i < kLanes<T>; ++i) values[i] = f(values[i]);
  return load_vector<T>(values);
}

// 2^n for integers held as floating point, within the exponent's range.
template <class T>
FASTGEN_INLINE Vec<T> power_of_two(Vec<T> n) {
  BitVec<T> bits = (BitVec<T>)(n + ExpTraits<T>::kShift);
  return (Vec<T>)((bits + ExpTraits<T>::kBias) << ExpTraits<T>::kMantissa);
}

// x = n ln(2) + r with |r| <= ln(2)/2: gives n and expm1(r).
template <class T>
FASTGEN_INLINE Vec<T> split_exp(Vec<T> x, Vec<T>* expm1_r) {
  using Traits = ExpTraits<T>;
  const Vec<T> n = (x * T(1.44269504088896340736) + Traits::kShift) - Traits::kShift;
  const Vec<T> r = (x - n * Traits::kLn2High) - n * Traits::kLn2Low;
  Vec<T> p = broadcast<T>(reciprocal_factorial<T>(Traits::kTerms));
#pragma GCC unroll 16
  for (int i = Traits::kTerms - 1; i >= 2; --i) p = p * r + reciprocal_factorial<T>(i);
  *expm1_r = p * r * r + r;
  return n;
}

// 0 and infinity where the result is too small or large; the scale in two factors, since the
// largest and the subnormal ones are no normal power of two.
template <class T>
FASTGEN_INLINE Vec<T> exp(Vec<T> x) {
  const T low = sizeof(T) == 4 ? T(-104) : T(-746), high = sizeof(T) == 4 ? T(89) : T(710);
  Vec<T> e;
  const Vec<T> n = split_exp<T>(clamped<T>(x, low, high), &e);
  const Vec<T> half = (n * T(0.5) + ExpTraits<T>::kShift) - ExpTraits<T>::kShift;
  return (e + T(1)) * power_of_two<T>(half) * power_of_two<T>(n - half);
}

// Where |x| <= kLargest.
template <class T>
FASTGEN_INLINE Vec<T> bounded_exp(Vec<T> x) {
  Vec<T> e;
  const Vec<T> scale = power_of_two<T>(split_exp<T>(x, &e));
  return scale * e + scale;
}

template <class T>
FASTGEN_INLINE Vec<T> bounded_expm1(Vec<T> x) {
  Vec<T> e;
  const Vec<T> scale = power_of_two<T>(split_exp<T>(x, &e));
  return scale * e + (scale - T(1));
}

template <class T>
FASTGEN_INLINE Vec<T> expm1(Vec<T> x) {
  const T limit = ExpTraits<T>::kLargest;
  const Vec<T> small = bounded_expm1<T>(clamped<T>(x, -limit, limit));
  return x > T(0.9) * limit ? exp<T>(x) : small;
}

template <class T>
FASTGEN_INLINE Vec<T> tanh(Vec<T> x) {
  const T limit = sizeof(T) == 4 ? T(20) : T(40);
  const Vec<T> m = bounded_expm1<T>(clamped<T>(x * T(-2), -limit, limit));
  return -m / (m + T(2));
}

template <class T>
FASTGEN_INLINE Vec<T> sigmoid(Vec<T> x) {
  return T(1) / (exp<T>(-x) + T(1));
}

template <class T>
FASTGEN_INLINE Vec<T> elu(Vec<T> x) {
  const T limit = ExpTraits<T>::kLargest;
  return x > T(0) ? x : bounded_expm1<T>(clamped<T>(x, -limit, limit));
}

template <class T>
FASTGEN_INLINE Vec<T> relu(Vec<T> x) {  // NaN stays NaN
  return x < T(0) ? Vec<T>{} : x;
}

// tanh(a) sigmoid(b); see Gate.
template <class T>
FASTGEN_INLINE Vec<T> gate(Vec<T> a, Vec<T> b) {
  const T limit = sizeof(T) == 4 ? T(20) : T(40);
  const Vec<T> m = bounded_expm1<T>(clamped<T>(a * T(-2), -limit, limit));
  const Vec<T> w = bounded_exp<T>(clamped<T>(-b, T(-60), T(60)));
  return -m / ((m + T(2)) * (w + T(1)));
}

// The sum of the lanes in one stated order: halves are added until one is left.
template <class T>
FASTGEN_INLINE T sum_of_lanes(Vec<T> x) {
  T values[kLanes<T>];
  store_vector<T>(x, values);
#pragma GCC unroll 8
  for (int n = kLanes<T> / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) values[i] += values[i + n];
  return values[0];
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

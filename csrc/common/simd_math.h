// Exponentials and what gates are made of, on whole vectors: loops of selects over lanes do not
// always vectorise, these do. Beside vec_math.h's functions they save a third of the instructions:
// powers of two with the factor folded in, minimax polynomials, minimum and maximum instructions.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/simd.h"
#include "common/vec_math.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// b where a is NaN. As selects these are two instructions each.
#if defined(__AVX512F__)
FASTGEN_INLINE Vec<float> larger(Vec<float> b, Vec<float> a) {
  return _mm512_maskz_max_ps(__mmask16(-1), b, a);
}
FASTGEN_INLINE Vec<float> smaller(Vec<float> b, Vec<float> a) {
  return _mm512_maskz_min_ps(__mmask16(-1), b, a);
}
FASTGEN_INLINE Vec<double> larger(Vec<double> b, Vec<double> a) {
  return _mm512_maskz_max_pd(__mmask8(-1), b, a);
}
FASTGEN_INLINE Vec<double> smaller(Vec<double> b, Vec<double> a) {
  return _mm512_maskz_min_pd(__mmask8(-1), b, a);
}
#elif defined(__AVX__)
FASTGEN_INLINE Vec<float> larger(Vec<float> b, Vec<float> a) { return _mm256_max_ps(b, a); }
FASTGEN_INLINE Vec<float> smaller(Vec<float> b, Vec<float> a) { return _mm256_min_ps(b, a); }
FASTGEN_INLINE Vec<double> larger(Vec<double> b, Vec<double> a) { return _mm256_max_pd(b, a); }
FASTGEN_INLINE Vec<double> smaller(Vec<double> b, Vec<double> a) { return _mm256_min_pd(b, a); }
#else
template <class V>
FASTGEN_INLINE V larger(V b, V a) {
  return b > a ? b : a;
}
template <class V>
FASTGEN_INLINE V smaller(V b, V a) {
  return b < a ? b : a;
}
#endif

template <class T>
FASTGEN_INLINE Vec<T> clamped(Vec<T> x, T low, T high) {  // NaN stays NaN
  return smaller(broadcast<T>(high), larger(broadcast<T>(low), x));
}

// f lane by lane, for what has no vector form; plain loops over arrays, which may still vectorise.
template <class T, class F>
FASTGEN_INLINE Vec<T> each_lane(Vec<T> x, F f) {
  T values[kLanes<T>];
  store_vector<T>(x, values);
  for (int i = 0; i < kLanes<T>; ++i) values[i] = f(values[i]);
  return load_vector<T>(values);
}

// Rounded correctly. For a normal that is 0.58 ns; an estimate of the reciprocal root and a Newton
// step take 0.61 (Zen 4).
FASTGEN_INLINE Vec<float> square_root(Vec<float> x) {
#if defined(__AVX512F__)
  return _mm512_maskz_sqrt_ps(__mmask16(-1), x);
#elif defined(__AVX__)
  return _mm256_sqrt_ps(x);
#elif defined(__SSE2__)
  return _mm_sqrt_ps(x);
#else
  return each_lane<float>(x, [](float v) { return __builtin_sqrtf(v); });
#endif
}

FASTGEN_INLINE Vec<double> square_root(Vec<double> x) {
#if defined(__AVX512F__)
  return _mm512_maskz_sqrt_pd(__mmask8(-1), x);
#elif defined(__AVX__)
  return _mm256_sqrt_pd(x);
#elif defined(__SSE2__)
  return _mm_sqrt_pd(x);
#else
  return each_lane<double>(x, [](double v) { return __builtin_sqrt(v); });
#endif
}

// (2^f - 1) / f on |f| <= 1/2 by ascending powers.
template <class T>
struct PowerTerms;

template <>
struct PowerTerms<float> {
  static constexpr int kCount = 6;  // minimax, 1.1e-8 relative
  static constexpr float kTerms[] = {0x1.62e43p-1, 0x1.ebfbdep-3,  0x1.c6af6ep-5,
                                     0x1.3b2bap-7, 0x1.5f07b4p-10, 0x1.4308fap-13};
};

template <>
struct PowerTerms<double> {
  static constexpr int kCount = 13;  // ln(2)^k / k!, the rest is below 1e-17
  static constexpr double kTerms[] = {
      0x1.62e42fefa39efp-1,  0x1.ebfbdff82c58fp-3,  0x1.c6b08d704a0c0p-5,  0x1.3b2ab6fba4e77p-7,
      0x1.5d87fe78a6731p-10, 0x1.430912f86c787p-13, 0x1.ffcbfc588b0c7p-17, 0x1.62c0223a5c824p-20,
      0x1.b5253d395e7c4p-24, 0x1.e4cf5158b8ecap-28, 0x1.e8cac7351bb25p-32, 0x1.c3bd650fc2986p-36,
      0x1.816193166d0f9p-40};
};

// 2^f - 1 on |f| <= 1/2.
template <class T>
FASTGEN_INLINE Vec<T> small_power(Vec<T> f) {
  using Terms = PowerTerms<T>;
  Vec<T> p = broadcast<T>(Terms::kTerms[Terms::kCount - 1]);
#pragma GCC unroll 16
  for (int i = Terms::kCount - 2; i >= 0; --i) p = p * f + Terms::kTerms[i];
  return p * f;
}

constexpr double kLog2E = 1.44269504088896340736;

// exp(x) = scale * (1 + e), for |x * log2(e)| within the exponent of a normal number: `factor` is
// log2(e), or a multiple of it for a multiple of x. Gives e.
template <class T>
FASTGEN_INLINE Vec<T> split_power(Vec<T> x, double factor, Vec<T>* scale) {
  using Traits = ExpTraits<T>;
  const T by = static_cast<T>(factor);
  const Vec<T> shifted = x * by + Traits::kShift;
  const Vec<T> n = shifted - Traits::kShift;
  // the shift's own high bits fall out
  *scale = (Vec<T>)(((BitVec<T>)shifted + Traits::kBias) << Traits::kMantissa);
  return small_power<T>(x * by - n);
}

template <class T>
FASTGEN_INLINE Vec<T> bounded_exp(Vec<T> x, double factor) {
  Vec<T> scale;
  const Vec<T> e = split_power<T>(x, factor, &scale);
  return scale * e + scale;
}

// Accurate relative to its value, also near 0.
template <class T>
FASTGEN_INLINE Vec<T> bounded_expm1(Vec<T> x, double factor) {
  Vec<T> scale;
  const Vec<T> e = split_power<T>(x, factor, &scale);
  return scale * e + (scale - T(1));
}

// 0 and infinity where the result is too small or large. The reduction is in two parts, for digits
// at large x; so is the scale, since the largest and the subnormal ones are no normal power of two.
template <class T>
FASTGEN_INLINE Vec<T> exp(Vec<T> x) {
  using Traits = ExpTraits<T>;
  const T low = sizeof(T) == 4 ? T(-104) : T(-746), high = sizeof(T) == 4 ? T(89) : T(710);
  x = clamped<T>(x, low, high);
  const Vec<T> n = (x * T(kLog2E) + Traits::kShift) - Traits::kShift;
  const Vec<T> r = (x - n * Traits::kLn2High) - n * Traits::kLn2Low;
  const Vec<T> e = small_power<T>(r * T(kLog2E));
  const Vec<T> half = n * T(0.5) + Traits::kShift;
  const Vec<T> rest = (n - (half - Traits::kShift)) + Traits::kShift;
  const auto power = [](Vec<T> shifted) {
    return (Vec<T>)(((BitVec<T>)shifted + Traits::kBias) << Traits::kMantissa);
  };
  return (e + T(1)) * power(half) * power(rest);
}

template <class T>
FASTGEN_INLINE Vec<T> expm1(Vec<T> x) {
  const T limit = ExpTraits<T>::kLargest;
  const Vec<T> small = bounded_expm1<T>(clamped<T>(x, -limit, limit), kLog2E);
  return x > T(0.9) * limit ? exp<T>(x) : small;
}

// tanh(a) = -m / (2 + m), m = expm1(-2 a), is 1 to the last digit beyond |a| = 10 (double: 20).
template <class T>
constexpr T kTanhLimit = sizeof(T) == 4 ? T(10) : T(20);

template <class T>
FASTGEN_INLINE Vec<T> tanh(Vec<T> x) {
  x = clamped<T>(x, -kTanhLimit<T>, kTanhLimit<T>);
  const Vec<T> m = bounded_expm1<T>(x, -2 * kLog2E);
  return -m / (m + T(2));
}

template <class T>
FASTGEN_INLINE Vec<T> sigmoid(Vec<T> x) {
  const T limit = ExpTraits<T>::kLargest;
  return T(1) / (bounded_exp<T>(clamped<T>(x, -limit, limit), -kLog2E) + T(1));
}

template <class T>
FASTGEN_INLINE Vec<T> elu(Vec<T> x) {
  const Vec<T> m = bounded_expm1<T>(clamped<T>(x, -ExpTraits<T>::kLargest, T(0)), kLog2E);
  return x > T(0) ? x : m;
}

template <class T>
FASTGEN_INLINE Vec<T> relu(Vec<T> x) {  // NaN stays NaN
  return larger(Vec<T>{}, x);
}

// tanh(a) sigmoid(b) at one division; (2 + m) (1 + w) stays finite.
template <class T>
FASTGEN_INLINE Vec<T> gate(Vec<T> a, Vec<T> b) {
  a = clamped<T>(a, -kTanhLimit<T>, kTanhLimit<T>);
  b = clamped<T>(b, T(-60), T(60));
  const Vec<T> m = bounded_expm1<T>(a, -2 * kLog2E);
  const Vec<T> w = bounded_exp<T>(b, -kLog2E);
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

// The sums of one vector or of four at once, which takes fewer shuffles; the same bits either way.
template <class T, int N>
FASTGEN_INLINE void sums_of_lanes(const Vec<T> (&x)[N], T (&out)[N]) {
#if defined(__AVX__)
  if constexpr (sizeof(T) == 4 && (N == 1 || N == 4)) {
    __m256 half[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#if defined(__AVX512F__)
      half[i] = _mm256_add_ps(_mm512_extractf32x8_ps((__m512)x[i % N], 0),
                              _mm512_extractf32x8_ps((__m512)x[i % N], 1));
#else
      half[i] = (__m256)x[i % N];
#endif
    }
    const __m256 pairs =
        _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
    __builtin_memcpy(out, &sums, sizeof out);
    return;
  }
#endif
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) out[i] = sum_of_lanes<T>(x[i]);
}

template <class T>
FASTGEN_INLINE T largest_lane(Vec<T> x) {
  T values[kLanes<T>];
  store_vector<T>(x, values);
#pragma GCC unroll 8
  for (int n = kLanes<T> / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) values[i] = values[i] > values[i + n] ? values[i] : values[i + n];
  return values[0];
}

// Bit i: whether lane i is all ones.
template <class T>
FASTGEN_INLINE uint32_t lane_bits(BitVec<T> mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_movepi32_mask((__m512i)mask);
  if constexpr (sizeof(T) == 8) return _mm512_movepi64_mask((__m512i)mask);
#elif defined(__AVX__)
  if constexpr (sizeof(T) == 4) return _mm256_movemask_ps((__m256)mask);
  if constexpr (sizeof(T) == 8) return _mm256_movemask_pd((__m256d)mask);
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<T>; ++i) bits |= static_cast<uint32_t>(mask[i] & 1) << i;
  return bits;
#endif
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

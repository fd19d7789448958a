// exp, expm1 and what gates are made of, as branch-free scalar code that compilers vectorise at
// every instruction-set level: no table, no intrinsic, no libm call. Taylor terms, since on
// |r| <= ln(2)/2 a minimax polynomial saves one term only.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

template <class T>
struct ExpTraits;

template <>
struct ExpTraits<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7;  // r^8 / 8! < 6e-9
  // ln(2) in two parts, the first short enough for n * kLn2High to be exact.
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kShift = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLargest = 88.f;      // exp stays finite and its scale a normal number
};

template <>
struct ExpTraits<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13;  // r^14 / 14! < 5e-18
  static constexpr double kLn2High = 0.693147180369123816490, kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kShift = 6755399441055744.;
  static constexpr double kLargest = 708.;
};

template <class T>
inline T clamped(T x, T low, T high) {  // NaN stays NaN
  x = x > high ? high : x;
  return x < low ? low : x;
}

template <class T>
inline constexpr T reciprocal_factorial(int n) {
  T product = 1;
  for (int i = 2; i <= n; ++i) product *= i;
  return 1 / product;
}

// x = n ln(2) + r with |r| <= ln(2)/2: gives 2^n and expm1(r). x within +-kLargest.
template <class T>
inline void split_exp(T x, T* scale, T* expm1_r) {
  using Traits = ExpTraits<T>;
  using Bits = typename Traits::Bits;
  const T shifted = x * T(1.44269504088896340736) + Traits::kShift;
  const T n = shifted - Traits::kShift;
  const T r = (x - n * Traits::kLn2High) - n * Traits::kLn2Low;
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + Traits::kBias) << Traits::kMantissa;  // the shift's own high bits fall out
  std::memcpy(scale, &bits, sizeof bits);
  T p = reciprocal_factorial<T>(Traits::kTerms);
#pragma GCC unroll 16
  for (int i = Traits::kTerms - 1; i >= 2; --i) p = p * r + reciprocal_factorial<T>(i);
  *expm1_r = p * r * r + r;
}

template <class T>
inline T exp(T x) {
  T scale, e;
  split_exp(clamped(x, -ExpTraits<T>::kLargest, ExpTraits<T>::kLargest), &scale, &e);
  return scale * e + scale;
}

// Accurate relative to its value, also near 0. x within +-kLargest.
template <class T>
inline T expm1(T x) {
  T scale, e;
  split_exp(x, &scale, &e);
  return scale * e + (scale - 1);
}

// tanh(a) = -m / (2 + m) and sigmoid(b) = 1 / (1 + w), both from exponentials that do not cancel.
// Beyond |a| = 20 (double: 40) tanh is 1 to the last digit, and (2 + m)^2 (1 + w) stays finite.
template <class T>
struct Gate {
  T m, w;

  Gate(T a, T b) {
    const T limit = sizeof(T) == 4 ? T(20) : T(40);
    m = expm1(clamped(-2 * a, -limit, limit));
    w = exp(clamped(-b, T(-60), T(60)));
  }
  T value() const { return -m / ((2 + m) * (1 + w)); }
  T d_tanh() const { return 4 * (1 + m) / ((2 + m) * (2 + m) * (1 + w)); }  // tanh' sigmoid
  T d_sigmoid() const { return -m * w / ((2 + m) * (1 + w) * (1 + w)); }    // tanh sigmoid'
};

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

// One latent variable's mathematics: on whole vectors where exponentials neither overflow nor
// vanish, and lane by lane in float64, by the rules for infinities, elsewhere.
#pragma once

#include <cmath>

#include "common/simd_log.h"
#include "reparam_kl.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// (exp(r) - 1 - r) / r^2 on |r| <= ln(2)/2 by ascending powers, minimax.
template <class T>
struct ExcessTerms;

template <>
struct ExcessTerms<float> {
  static constexpr float kTerms[] = {0x1.000000p-1, 0x1.5554dep-3, 0x1.5555bap-5,  // 1.2e-7
                                     0x1.120b1cp-7, 0x1.6c69f8p-10};
};

template <>
struct ExcessTerms<double> {
  static constexpr double kTerms[] = {
      // 3e-18
      0x1.0000000000000p-1,  0x1.5555555555557p-3,  0x1.555555555554ep-5,  0x1.11111111100eep-7,
      0x1.6c16c16c1a078p-10, 0x1.a01a01abdf13cp-13, 0x1.a01a019060f2bp-16, 0x1.71de024b0f4e8p-19,
      0x1.27e510dce1263p-22, 0x1.af4db90204bfdp-26, 0x1.1f19f11edb77ap-29};
};

// exp(h), exp(h) - 1 and exp(h) - 1 - h, each accurate relative to its own value.
template <class T>
struct Power {
  Vec<T> value, minus_one, excess;

  // |h| below kPowerLimit
  FASTGEN_INLINE explicit Power(Vec<T> h) {
    using Traits = ExpTraits<T>;
    const Vec<T> shifted = h * T(kLog2E) + Traits::kShift, n = shifted - Traits::kShift;
    const Vec<T> r = (h - n * Traits::kLn2High) - n * Traits::kLn2Low;
    const Vec<T> scale = (Vec<T>)(((BitVec<T>)shifted + Traits::kBias) << Traits::kMantissa);
    constexpr auto& terms = ExcessTerms<T>::kTerms;
    constexpr int count = sizeof(terms) / sizeof(T);
    Vec<T> p = broadcast<T>(terms[count - 1]);
#pragma GCC unroll 16
    for (int i = count - 2; i >= 0; --i) p = p * r + terms[i];
    const Vec<T> e = p * (r * r);
    value = scale * (r + e) + scale;
    minus_one = scale * (r + e) + (scale - T(1));
    // near h = 0 scale is 1 and r is h: all but e cancels exactly
    excess = scale * e + ((scale - T(1)) + (scale * r - h));
  }
};

// Bit i: whether lane i's magnitude is below `limit`; never that of NaN.
template <class T>
FASTGEN_INLINE uint32_t lanes_below(Vec<T> x, T limit) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_cmp_ps_mask(absolute<T>(x), broadcast<T>(limit), _CMP_LT_OQ);
  } else {
    return _mm512_cmp_pd_mask(absolute<T>(x), broadcast<T>(limit), _CMP_LT_OQ);
  }
#else
  return lane_bits<T>(absolute<T>(x) < limit);
#endif
}

template <class T>
constexpr uint32_t kAllLanes = (1u << (kLanes<T> - 1)) * 2 - 1;

// The squares of exponentials stay finite and normal.
template <class T>
constexpr T kPowerLimit = sizeof(T) == 4 ? T(43) : T(350);

template <class T>
struct LatentSettings {
  Parametrization parametrization;
  double low, high, free;
  T factor;  // from the raw value to half the log-variance
  T half_low, half_high;
  T least;  // of the divergence

  template <class S>
  explicit LatentSettings(const ReparamKlArgs<S, T>& args)
      : parametrization(args.parametrization),
        low(args.clamp_low),
        high(args.clamp_high),
        free(args.free_bits),
        factor(args.parametrization == Parametrization::kLogvar ? T(0.5) : T(1)),
        half_low(static_cast<T>(low) / 2),
        half_high(static_cast<T>(high) / 2),
        least(static_cast<T>(free)) {}

  bool is_plain() const {
    return parametrization != Parametrization::kSoftplus && low == -INFINITY && high == INFINITY &&
           free == 0;
  }
};

template <class T>
FASTGEN_INLINE Vec<T> softplus(Vec<T> x) {
  const Vec<T> e =
      bounded_exp<T>(larger(broadcast<T>(-ExpTraits<T>::kLargest), -absolute<T>(x)), kLog2E);
  return relu<T>(x) + log1p<T>(e);
}

// Below it softplus(x) is exp(x) to the last digit.
template <class T>
constexpr T kSoftplusTail = sizeof(T) == 4 ? T(-20) : T(-40);

// Half the log-variance, before the clamp.
template <class T, bool kPlain>
FASTGEN_INLINE Vec<T> half_logvar(Vec<T> raw, const LatentSettings<T>& settings) {
  if (kPlain || settings.parametrization != Parametrization::kSoftplus) {
    return raw * settings.factor;
  }
  return raw < kSoftplusTail<T> ? raw : log<T>(softplus<T>(raw));
}

// Half the derivative of the log-variance by the raw value.
template <class T, bool kPlain>
FASTGEN_INLINE Vec<T> half_slope(Vec<T> raw, const LatentSettings<T>& settings) {
  if (kPlain || settings.parametrization != Parametrization::kSoftplus) {
    return broadcast<T>(settings.factor);
  }
  return raw < kSoftplusTail<T> ? broadcast<T>(T(1)) : sigmoid<T>(raw) / softplus<T>(raw);
}

template <class T>
struct LatentInputs {
  Vec<T> mu, raw, prior_mu, prior_raw;
};

// Everything that the divergence and its gradients are made of.
template <class T, bool kPrior, bool kPlain>
struct Latent {
  Vec<T> half, std;      // after the clamp
  Vec<T> twice_kl;       // expm1(D) - D + r^2 w, D the difference of the log-variances
  Vec<T> expm1;          // of D
  Vec<T> over_variance;  // r w: difference of the means over the prior's variance
  Vec<T> squares;        // r^2 w
  BitVec<T> clamped_away;
  uint32_t usual;  // a bit for each lane that needs no care

  FASTGEN_INLINE Latent(const LatentInputs<T>& in, const LatentSettings<T>& settings) {
    const Vec<T> unclamped = half_logvar<T, kPlain>(in.raw, settings);
    half = unclamped;
    clamped_away = BitVec<T>{};
    if constexpr (!kPlain) {
      half = clamped<T>(half, settings.half_low, settings.half_high);
      clamped_away = (unclamped < settings.half_low) | (unclamped > settings.half_high);
    }
    usual = lanes_below<T>(half, kPowerLimit<T>);
    if constexpr (!kPlain) usual &= lanes_below<T>(in.raw, T(INFINITY));
    if constexpr (kPrior) {
      const Vec<T> prior_half = half_logvar<T, kPlain>(in.prior_raw, settings);
      const Vec<T> difference = half - prior_half, r = in.mu - in.prior_mu;
      usual &= lanes_below<T>(prior_half, kPowerLimit<T>) &
               lanes_below<T>(difference, kPowerLimit<T>) &
               lanes_below<T>(in.prior_mu, T(INFINITY));  // mu may be infinite
      if constexpr (!kPlain) usual &= lanes_below<T>(in.prior_raw, T(INFINITY));
      const Vec<T> inverse = Power<T>(-prior_half).value;
      std = Power<T>(half).value;
      over_variance = r * (inverse * inverse);
      finish(Power<T>(difference), r);
    } else {
      const Power<T> power(half);
      std = power.value;
      over_variance = in.mu;
      finish(power, in.mu);
    }
  }

 private:
  // With e = exp(D / 2) - 1: expm1(D) = e (e + 2), and less D it is e^2 + 2 (e - D / 2).
  FASTGEN_INLINE void finish(const Power<T>& power, Vec<T> r) {
    const Vec<T> e = power.minus_one;
    expm1 = e * (e + T(2));
    squares = r * over_variance;
    twice_kl = squares + (e * e + T(2) * power.excess);
  }
};

// One variable in float64, with 0 times infinity and the difference of equal infinities 0.
struct CarefulLatent {
  double std, kl, expm1, over_variance, half_slope, prior_half_slope;
  bool clamped_away;

  template <class T>
  CarefulLatent(double mu, double raw, double prior_mu, double prior_raw, bool has_prior,
                const LatentSettings<T>& settings) {
    const double unclamped = logvar(raw, settings.parametrization);
    double l = unclamped;
    l = l < settings.low ? settings.low : l;
    l = l > settings.high ? settings.high : l;
    clamped_away = unclamped < settings.low || unclamped > settings.high;
    half_slope = slope(raw, settings.parametrization) / 2;
    std = std::exp(l / 2);
    double difference = l, r = mu, inverse = 1;
    if (has_prior) {
      const double p = logvar(prior_raw, settings.parametrization);
      difference = l == p ? 0 : l - p;
      r = mu == prior_mu ? 0 : mu - prior_mu;
      inverse = std::exp(-p);
      prior_half_slope = slope(prior_raw, settings.parametrization) / 2;
    }
    expm1 = std::expm1(difference);
    over_variance = product(r, inverse);
    kl = (expm1 - difference + product(r * r, inverse)) / 2;
    if (difference == INFINITY) kl = INFINITY;
  }

  static double product(double a, double b) { return a == 0 || b == 0 ? 0 : a * b; }

 private:
  static double logvar(double raw, Parametrization parametrization) {
    if (parametrization == Parametrization::kLogvar) return raw;
    if (parametrization == Parametrization::kLogstd || raw < -40) return 2 * raw;
    return 2 * std::log(softplus(raw));
  }

  static double slope(double raw, Parametrization parametrization) {
    if (parametrization == Parametrization::kLogvar) return 1;
    if (parametrization == Parametrization::kLogstd || raw < -40) return 2;
    return 2 / (1 + std::exp(-raw)) / softplus(raw);
  }

  static double softplus(double x) {
    return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
  }
};

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

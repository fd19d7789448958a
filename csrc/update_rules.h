// The arithmetic of the updates of weights, one element of each, written once for the CPU kernels
// (vectors of elements) and the CUDA kernels (numbers); torch-free.
//
// The bits are those of torch's own sequence of calls on the CPU: halves are rounded to their type
// after every call (and so is what a sum adds or multiplies by), and a product is fused with the
// sum behind it exactly where one call does both. So a rule says `fused` or `product` for each of
// its multiplications and leaves the compiler nothing to contract. It is written for an
// `Arithmetic` of these members:
//
//   Scalar               the arithmetic type
//   Value                a number of that type or a vector of them; operators as usual
//   all(x)               a double in the arithmetic type
//   stored(x)            a double rounded to the storage type
//   rounded(v)           v rounded to the storage type
//   fused(a, b, c)       a b + c, in one rounding where the machine's own vector code has it
//   product(a, b)        a b, kept apart from any sum; also of doubles
//   square_root(v)       rounded correctly
#pragma once

#if defined(__CUDACC__)
#define FASTGEN_RULE __host__ __device__ __forceinline__
#else
#define FASTGEN_RULE inline __attribute__((always_inline))
#endif

namespace fastgen {

struct ClipSettings {
  double low, high;
};

// `grad_scale` is 1 where no gradient scaler is at work.
struct RmspropSettings {
  double lr, alpha, eps, weight_decay, momentum;
  bool maximize;
  double low, high, grad_scale;
};

struct AdamSettings {
  double lr, beta1, beta2, eps, weight_decay;
  bool decoupled, maximize;
  double low, high, grad_scale;
};

struct EmaSettings {
  double decay;
};

#ifdef FASTGEN_ISA_NS
namespace FASTGEN_ISA_NS {
#endif
namespace {

template <class A>
struct ClipValues {
  typename A::Value low, high;

  FASTGEN_RULE ClipValues(double low, double high) : low(A::stored(low)), high(A::stored(high)) {}

  FASTGEN_RULE typename A::Value clipped(typename A::Value x) const {  // NaN stays
    x = x < low ? low : x;
    return x > high ? high : x;
  }

  // of clipped values
  FASTGEN_RULE auto at_bound(typename A::Value x) const { return (x == low) | (x == high); }
};

// lerp(start, end, weight): from the nearer end, as torch has it.
template <class A>
struct LerpValues {
  bool from_start;
  typename A::Value factor;

  FASTGEN_RULE explicit LerpValues(double weight)
      : from_start(is_small(static_cast<typename A::Scalar>(weight))),
        factor(from_start ? A::all(weight) : A::all(weight) - A::all(1)) {}

  static FASTGEN_RULE bool is_small(typename A::Scalar weight) {
    return -0.5f < weight && weight < 0.5f;
  }

  FASTGEN_RULE typename A::Value operator()(typename A::Value start, typename A::Value end) const {
    return A::rounded(A::fused(factor, end - start, from_start ? start : end));
  }
};

// The gradient as the update takes it, which multiplies by 1 where there is nothing to do: that
// keeps every bit.
template <class A>
struct GradientValues {
  typename A::Value factor, weight_decay;
  bool decays;

  FASTGEN_RULE GradientValues(bool maximize, double weight_decay, double grad_scale)
      : factor(A::stored((maximize ? -1 : 1) / grad_scale)),
        weight_decay(A::stored(weight_decay)),
        decays(weight_decay != 0) {}

  FASTGEN_RULE typename A::Value operator()(typename A::Value g, typename A::Value p) const {
    g = A::rounded(A::product(g, factor));
    return decays ? A::rounded(A::fused(p, weight_decay, g)) : g;
  }
};

// average = keep average + (1 - keep) g^2
template <class A>
struct SquareAverageValues {
  typename A::Value keep, take;

  FASTGEN_RULE explicit SquareAverageValues(double keep)
      : keep(A::all(keep)), take(A::all(1 - keep)) {}

  FASTGEN_RULE typename A::Value operator()(typename A::Value average, typename A::Value g) const {
    average = A::rounded(A::product(average, keep));
    return A::rounded(A::fused(A::product(g, take), g, average));
  }
};

template <class A>
struct RmspropValues {
  using Value = typename A::Value;
  GradientValues<A> gradient;
  SquareAverageValues<A> square_average;
  LerpValues<A> grad_average;
  Value eps, minus_lr, minus_stored_lr, momentum;

  FASTGEN_RULE explicit RmspropValues(const RmspropSettings& s)
      : gradient(s.maximize, s.weight_decay, s.grad_scale),
        square_average(s.alpha),
        grad_average(1 - s.alpha),
        eps(A::stored(s.eps)),
        minus_lr(A::all(-s.lr)),
        minus_stored_lr(A::stored(-s.lr)),
        momentum(A::all(s.momentum)) {}

  // p, v = square_avg, b = momentum_buffer, a = grad_avg; the clip is the caller's.
  template <bool kMomentum, bool kCentered>
  FASTGEN_RULE void update(Value g, Value& p, Value& v, Value& b, Value& a) const {
    g = gradient(g, p);
    v = square_average(v, g);
    Value square = v;
    if (kCentered) {
      a = grad_average(a, g);
      square = A::rounded(A::fused(-a, a, v));
    }
    const Value root = A::rounded(A::rounded(A::square_root(square)) + eps);
    if (kMomentum) {
      b = A::rounded(A::product(b, momentum));
      b = A::rounded(b + g / root);
      p = A::rounded(A::fused(b, minus_stored_lr, p));
    } else {
      p = A::rounded(p + A::product(g, minus_lr) / root);
    }
  }
};

template <class A>
struct AdamValues {
  using Value = typename A::Value;
  GradientValues<A> gradient;
  LerpValues<A> average;
  SquareAverageValues<A> square_average;
  Value eps, shrink;

  FASTGEN_RULE explicit AdamValues(const AdamSettings& s)
      : gradient(s.maximize, s.decoupled ? 0 : s.weight_decay, s.grad_scale),
        average(1 - s.beta1),
        square_average(s.beta2),
        eps(A::stored(s.eps)),
        shrink(A::all(s.decoupled ? 1 - A::product(s.lr, s.weight_decay) : 1)) {}

  // p, m = exp_avg, v = exp_avg_sq, u = max_exp_avg_sq. At step t, from 1, minus_step_size is
  // -lr / (1 - beta1^t) and correction sqrt(1 - beta2^t), both computed in double. The clip is the
  // caller's.
  template <bool kAmsgrad>
  FASTGEN_RULE void update(Value minus_step_size, Value correction, Value g, Value& p, Value& m,
                           Value& v, Value& u) const {
    g = gradient(g, p);
    p = A::rounded(A::product(p, shrink));
    m = average(m, g);
    v = square_average(v, g);
    if (kAmsgrad) u = ((u > v) | (u != u)) ? u : v;  // NaN of either stays
    const Value root = A::rounded(A::rounded(A::square_root(kAmsgrad ? u : v)) / correction);
    p = A::rounded(p + A::product(m, minus_step_size) / A::rounded(root + eps));
  }
};

}  // namespace
#ifdef FASTGEN_ISA_NS
}  // namespace FASTGEN_ISA_NS
#endif
}  // namespace fastgen

// The mass of one bin of a discretised logistic and its derivatives, for a vector of pixels.
//
// With c = (x - mean) / scale and h = half a bin / scale the mass is
//
//     sinh(h) / (cosh(h) + cosh(c))  =  2 e sinh(h) / (1 + e (2 cosh(h) + e)),  e = exp(-|c|),
//
// in which nothing cancels, and the lowest and highest levels have sigmoid(+-c + h).
#pragma once

#include "common/simd_log.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

constexpr double kMinLogScale = -7;

template <class T>
struct Levels {
  T half, log_half, log_width;  // of a bin, its logarithm, and log(2 half)
  T least_log_scale;            // of the fast form; the most is kMostLogScale
  bool floor_is_fast;           // even the narrowest scale is
};

// x and the kind of its bin
template <class T>
struct Pixel {
  Vec<T> x;
  BitVec<T> highest, edge;  // the highest level; that or the lowest
  bool has_edges;           // some lane
};

// The derivatives of the log-mass by x - mean and by the log-scale.
template <class T>
struct Slopes {
  Vec<T> by_t, by_log_scale;
};

// ---- the fast form, float32 only
//
// A component's mass is kept as exp(line) * ratio, so that a pixel takes one logarithm: the line
// has
// -|c| and -log_scale, and the ratio stays within 1e-7 .. 1e7. For h up to 4.3, which 256 levels
// reach at the log-scale floor of -7, and log-scales up to 80.

constexpr float kMostHalf = 4.3006f, kMostLogScale = 80.f;

// 2 sinh(h) / h and 2 cosh(h) by powers of h^2, minimax relative to the value: up to kMostHalf, and
// up to 1, below 3e-8.
constexpr float kTwoSinh[] = {0x1p+1f,         0x1.55553ap-2f,  0x1.1112e4p-6f, 0x1.9fed18p-12f,
                              0x1.73d690p-18f, 0x1.987c18p-25f, 0x1.d4e8ccp-32f};
constexpr float kTwoCosh[] = {0x1p+1f,         0x1.000002p+0f,  0x1.555534p-4f,  0x1.6c1934p-9f,
                              0x1.9feffep-15f, 0x1.2958f8p-21f, 0x1.1148c8p-28f, 0x1.095e9ap-35f};
constexpr float kTwoSinhTo1[] = {0x1p+1f, 0x1.5555b0p-2f, 0x1.10f45ep-6f, 0x1.abb166p-12f};
constexpr float kTwoCoshTo1[] = {0x1p+1f, 0x1.fffffep-1f, 0x1.5555c2p-4f, 0x1.6befa2p-9f,
                                 0x1.ab8d48p-15f};
// The steps of N independent chains side by side: one after the other they would wait on latencies
// (a forward pass took a tenth longer).
template <int N, int kTerms>
FASTGEN_INLINE void polynomials(const Vec<float> (&x)[N], const float (&terms)[kTerms],
                                Vec<float> (&value)[N]) {
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) value[i] = broadcast<float>(terms[kTerms - 1]);
#pragma GCC unroll 8
  for (int k = kTerms - 2; k >= 0; --k) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) value[i] = value[i] * x[i] + terms[k];
  }
}

// split_power of N vectors, x[i] times factor[i].
template <int N>
FASTGEN_INLINE void split_powers(const Vec<float> (&x)[N], const float (&factor)[N],
                                 Vec<float> (&scale)[N], Vec<float> (&e)[N]) {
  using Traits = ExpTraits<float>;
  Vec<float> f[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) scale[i] = x[i] * factor[i] + Traits::kShift;
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    f[i] = x[i] * factor[i] - (scale[i] - Traits::kShift);
    scale[i] = (Vec<float>)(((BitVec<float>)scale[i] + Traits::kBias) << Traits::kMantissa);
  }
  // with a term less the largest gradient error was 4 times as large, the time 0.975
  polynomials(f, PowerTerms<float>::kTerms, e);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) e[i] *= f[i];
}

template <int N>
FASTGEN_INLINE void bounded_exps(const Vec<float> (&x)[N], const float (&factor)[N],
                                 Vec<float> (&value)[N]) {
  Vec<float> scale[N];
  split_powers(x, factor, scale, value);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) value[i] = scale[i] * value[i] + scale[i];
}

constexpr float kMinusLog2E = static_cast<float>(-kLog2E);

// 1 / scale of each colour, and t = x - mean.
template <int N>
struct Colors {
  Vec<float> log_scale[N], inv[N], t[N];
};

// The bins of a component's colours.
template <int N, bool kSlopes>
FASTGEN_INLINE void fast_bins(const Pixel<float> (&pixels)[N], const Colors<N>& in,
                              const Levels<float>& levels, Vec<float>* line, Vec<float>* ratio,
                              Slopes<float> (&slopes)[N]) {
  using V = Vec<float>;
  float by[N];
  V h[N], hh[N], c[N], bounded[N], e[N], sinh[N], cosh[N];
#pragma GCC unroll 3
  for (int i = 0; i < N; ++i) {
    by[i] = kMinusLog2E;
    h[i] = in.inv[i] * levels.half;
    hh[i] = h[i] * h[i];
    c[i] = absolute<float>(in.t[i]) * in.inv[i];
    bounded[i] = smaller(broadcast<float>(87.f), c[i]);
  }
  bounded_exps(bounded, by, e);
  V widest = h[0];
#pragma GCC unroll 3
  for (int i = 1; i < N; ++i) widest = larger(h[i], widest);
  if (__builtin_expect(lane_bits<float>(widest > 1.f) == 0, 1)) {
    polynomials(hh, kTwoSinhTo1, sinh);
    polynomials(hh, kTwoCoshTo1, cosh);
  } else {
    polynomials(hh, kTwoSinh, sinh);
    polynomials(hh, kTwoCosh, cosh);
  }
  V product = broadcast<float>(1.f), divisor = product, down{}, offset{};
#pragma GCC unroll 3
  for (int i = 0; i < N; ++i) {
    const Pixel<float>& pixel = pixels[i];
    V top = sinh[i], bottom = e[i] * (cosh[i] + e[i]) + 1.f, fall = c[i];
    V unit = in.log_scale[i], edge_slope{};
    if (pixel.has_edges) {
      const V g = bounded_exp<float>(h[i], -kLog2E);
      const BitVec<float> beyond = turned<float>(in.t[i], (V)pixel.highest) < 0.f;
      edge_slope = beyond ? g : e[i] * g;
      const V edge_bottom = edge_slope + (beyond ? e[i] : broadcast<float>(1.f));
      top = pixel.edge ? broadcast<float>(1.f) : top;
      bottom = pixel.edge ? edge_bottom : bottom;
      fall = pixel.edge & ~beyond ? V{} : fall;
      unit = pixel.edge ? broadcast<float>(levels.log_half) : unit;
    }
    down += fall;
    offset += unit;
    if constexpr (!kSlopes) {
      product *= top;
      divisor *= bottom;
      continue;
    }
    const V r = 1.f / (sinh[i] * bottom), over_bottom = sinh[i] * r, ee = e[i] * e[i];
    const V finite = smaller(broadcast<float>(1e30f), c[i]);
    product *= top * over_bottom;
    const V steep = (ee - 1.f) * over_bottom;
    slopes[i].by_t = turned<float>(steep, in.t[i]) * in.inv[i];
    slopes[i].by_log_scale = -(finite * steep) - (cosh[i] * (ee + 1.f) + 4.f * e[i]) * r;
    if (pixel.has_edges) {
      const V highest = (V)pixel.highest, slope = edge_slope * over_bottom;
      const V a = turned<float>(finite, turned<float>(in.t[i], highest)) + h[i];
      slopes[i].by_t = pixel.edge ? turned<float>(slope, highest) * in.inv[i] : slopes[i].by_t;
      slopes[i].by_log_scale = pixel.edge ? -(a * slope) : slopes[i].by_log_scale;
    }
  }
  // finite, for the differences of lines to be
  *line = larger(broadcast<float>(-1e30f), (*line - offset) - down);
  *ratio = kSlopes ? product : product / divisor;
}

// ---- any finite parameter: half as fast
//
// With a = h + |c| and d = h - |c| the mass is sigmoid(a) sigmoid(d) (1 - exp(-2 h)).

template <class T>
constexpr T kHuge = sizeof(T) == 4 ? T(1e37) : T(1e300);

// The logarithm of the mass. `exact`: else the density instead, where the mass is below 1e-5.
template <class T>
FASTGEN_INLINE Vec<T> wide_bin(const Pixel<T>& pixel, Vec<T> distance, Vec<T> raw_log_scale,
                               const Levels<T>& levels, bool exact, Slopes<T>* slopes) {
  using V = Vec<T>;
  const V log_scale = larger(broadcast<T>(kMinLogScale), raw_log_scale);
  const V inv = exp<T>(-log_scale), t = clamped<T>(distance, -kHuge<T>, kHuge<T>);
  const V away = absolute<T>(t), h = inv * levels.half;
  const V a = clamped<T>(inv * (away + levels.half), T(0), kHuge<T>);
  const V d = clamped<T>(inv * (levels.half - away), -kHuge<T>, kHuge<T>);
  const V ea = exp<T>(-a), ed = exp<T>(-absolute<T>(d)), one = broadcast<T>(T(1));
  const V between = -expm1<T>(T(-2) * h);
  const BitVec<T> tiny = between < T(1e-30), below = d < T(0);
  const BitVec<T> beyond = (BitVec<T>)turned<T>(t, (V)pixel.highest) < 0;  // also of -0
  const BitVec<T> no_a = pixel.edge & beyond, no_d = pixel.edge & ~beyond;
  V width = tiny ? one : between, log_width = tiny ? levels.log_width - log_scale : V{};
  V slope = tiny ? one : T(2) * h * (one - between) / width;
  width = pixel.edge ? one : width;
  log_width = pixel.edge ? V{} : log_width;
  slope = pixel.edge ? V{} : slope;
  const V bottom_a = no_a ? one : ea + T(1), bottom_d = no_d ? one : ed + T(1);
  const V line = below & ~no_d ? d : V{};
  V log_mass = (log_width + line) - log<T>(bottom_a * bottom_d / width);
  const V right = no_a ? V{} : ea / bottom_a;
  const V left = no_d ? V{} : (below ? one : ed) / bottom_d;
  slopes->by_t = inv * turned<T>(right - left, t);
  slopes->by_log_scale = -(a * right) - d * left - slope;
  if (!exact) {
    const V c = clamped<T>(away * inv, T(0), kHuge<T>), e = exp<T>(-c);
    const BitVec<T> rare = (log_mass <= T(-11.512925464970228420)) & ~pixel.edge;
    const V tanh = (one - e) / (e + T(1));  // of c / 2
    log_mass = rare ? (levels.log_width - log_scale - c) - T(2) * log<T>(e + T(1)) : log_mass;
    slopes->by_t = rare ? -inv * turned<T>(tanh, t) : slopes->by_t;
    slopes->by_log_scale = rare ? c * tanh - T(1) : slopes->by_log_scale;
  }
  slopes->by_log_scale = raw_log_scale < T(kMinLogScale) ? V{} : slopes->by_log_scale;
  return log_mass;
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

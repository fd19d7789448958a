// Draws of fastgen/likelihoods.py, in float64 whatever the parameters are.
#include "common/simd_math.h"
#include "cpu/sampler_parts.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

using namespace engine;

template <class T>
bool any_nan_of(const T* values, int64_t count) {
  BitVec<T> bad = {};
  const int64_t whole = count / kLanes<T> * kLanes<T>;
  for (int64_t i = 0; i < whole; i += kLanes<T>) {
    const Vec<T> x = load_vector<T>(values + i);
    bad |= x != x;
  }
  bool found = false;
  for (int i = 0; i < kLanes<T>; ++i) found |= bad[i] != 0;
  for (int64_t i = whole; i < count; ++i) found |= values[i] != values[i];
  return found;
}

// 9 terms of (2^f - 1) / f on |f| <= 1/2, minimax: 8e-14 relative, far from where a draw changes.
constexpr double kPower[] = {
    0.6931471805599377,     0.24022650695814085,    0.05550410866573465,
    0.009618129159051218,   0.0013333557983826437,  0.00015403456133768182,
    1.5252811943536369e-05, 1.3255160540986273e-06, 1.0178078961999478e-07};

// exp(x * factor / log2(e)) for x <= 0; 0 below 1e-300.
FASTGEN_INLINE Vec<double> weight(Vec<double> x, double factor) {
  using Traits = ExpTraits<double>;
  const Vec<double> y = larger(broadcast(-1000.0), x * factor);
  const Vec<double> shifted = y + Traits::kShift;
  const Vec<double> f = y - (shifted - Traits::kShift);
  const auto bits = ((BitVec<double>)shifted + Traits::kBias) << Traits::kMantissa;
  const Vec<double> scale = (Vec<double>)bits;
  Vec<double> p = broadcast(kPower[8]);
#pragma GCC unroll 8
  for (int i = 7; i >= 0; --i) p = p * f + kPower[i];
  return y <= -1000.0 ? Vec<double>{} : scale * (p * f) + scale;
}

FASTGEN_INLINE Vec<double> load_wide(const double* from) { return load_vector<double>(from); }
FASTGEN_INLINE Vec<double> load_wide(const float* from) {
  typedef float Narrow __attribute__((vector_size(kVectorBytes / 2)));
  Narrow x;
  __builtin_memcpy(&x, from, sizeof x);
  return __builtin_convertvector(x, Vec<double>);
}

template <class T>
double largest(const T* values, int64_t count) {
  T most = values[0];
  const int64_t whole = count / kLanes<T> * kLanes<T>;
  if (whole > 0) {
    Vec<T> lanes = load_vector<T>(values);
    for (int64_t i = kLanes<T>; i < whole; i += kLanes<T>) {
      lanes = larger(lanes, load_vector<T>(values + i));
    }
    for (int i = 0; i < kLanes<T>; ++i) most = lanes[i] > most ? lanes[i] : most;
  }
  for (int64_t i = whole; i < count; ++i) most = values[i] > most ? values[i] : most;
  return static_cast<double>(most);
}

// Sums of exp((logits - largest) / temperature) in ascending order: the additions, one behind the
// other, hide behind the exponentials. Without `add` the weights themselves.
template <bool add, class T>
void weights_of(const T* logits, int64_t count, double temperature, double* weights) {
  const double most = largest(logits, count), factor = kLog2E / temperature;
  double sum = 0;
  for (int64_t k = 0; k < count; k += kLanes<double>) {
    store_vector<double>(weight(load_wide(logits + k) - most, factor), weights + k);
    if (add) {
#pragma GCC unroll 8
      for (int i = 0; i < kLanes<double>; ++i) weights[k + i] = sum += weights[k + i];
    }
  }
}

void add_up(double* weights, int64_t count) {
  double sum = 0;
  for (int64_t k = 0; k < count; ++k) weights[k] = sum += weights[k];
}

// The smallest k with cdf(k) > u, from the sums of the weights.
int64_t inverse_cdf(const double* sums, int64_t count, double u) {
  const double target = u * sums[count - 1];
  int64_t low = 0, high = count - 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sums[middle] <= target) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Indices by descending weight, equal ones by ascending index: a merge sort from the bottom up.
const double* sorted(const double* weights, int64_t count, double* order, double* other) {
  for (int64_t k = 0; k < count; ++k) order[k] = static_cast<double>(k);
  for (int64_t width = 1; width < count; width *= 2) {
    for (int64_t begin = 0; begin < count; begin += 2 * width) {
      const int64_t middle = begin + width < count ? begin + width : count;
      const int64_t end = middle + width < count ? middle + width : count;
      int64_t a = begin, b = middle;
      for (int64_t k = begin; k < end; ++k) {
        const bool first = b == end || (a < middle && weights[static_cast<int64_t>(order[a])] >=
                                                          weights[static_cast<int64_t>(order[b])]);
        other[k] = order[first ? a++ : b++];
      }
    }
    double* swap = order;
    order = other;
    other = swap;
  }
  return order;
}

// Likelihoods' _truncated.
void truncate(const Likelihood& likelihood, double* weights, int64_t count, double* order,
              double* other) {
  const double* by_weight = sorted(weights, count, order, other);
  int64_t kept = count;
  if (likelihood.top_k > 0 && likelihood.top_k < count) kept = likelihood.top_k;
  if (likelihood.top_p > 0) {
    double total = 0, sum = 0;
    for (int64_t k = 0; k < kept; ++k) total += weights[static_cast<int64_t>(by_weight[k])];
    int64_t fewest = 0;
    while (fewest < kept) {
      sum += weights[static_cast<int64_t>(by_weight[fewest++])];
      if (sum >= likelihood.top_p * total) break;
    }
    kept = fewest;
  }
  for (int64_t k = kept; k < count; ++k) weights[static_cast<int64_t>(by_weight[k])] = 0;
}

// A logistic mixture's draw of one code (colors = 1) or of a pixel's three.
template <class T>
void draw_mixture(const Likelihood& likelihood, const T* params, const double* uniforms,
                  int64_t colors, int64_t* out, double* weights) {
  const int64_t m = likelihood.components;
  weights_of<true>(params, m, likelihood.temperature, weights);
  const int64_t chosen = inverse_cdf(weights, m, uniforms[0]);
  const double least = 1.0 / (1 << 24), top = static_cast<double>(likelihood.levels - 1);
  double values[3] = {};
  for (int64_t c = 0; c < colors; ++c) {
    // of a colour: M means, M log-scales and, of several colours, M coefficients
    const T* of_color = params + m + c * (colors > 1 ? 3 : 2) * m + chosen;
    double log_scale = static_cast<double>(of_color[m]);
    log_scale = log_scale < -7 ? -7 : log_scale;
    double u = uniforms[colors + c];
    u = u < least ? least : u > 1 - least ? 1 - least : u;
    const double logit = __builtin_log(u) - __builtin_log1p(-u);
    double y = of_color[0] + __builtin_exp(log_scale) * likelihood.temperature * logit;
    // colour 1 sees colour 0 by coefficient 0, colour 2 sees colours 0 and 1 by 1 and 2
    for (int64_t seen = 0; seen < c; ++seen) {
      const int64_t which = c == 1 ? 0 : 1 + seen;
      const T coefficient = params[m + which * 3 * m + 2 * m + chosen];
      y += __builtin_tanh(static_cast<double>(coefficient)) * values[seen];
    }
    y = y < -1 ? -1 : y > 1 ? 1 : y;
    const double code = __builtin_rint((y + 1) * (top / 2));
    out[c] = static_cast<int64_t>(code);
    values[c] = code * 2 / top - 1;
  }
}

template <class T>
void draw_from(const Likelihood& likelihood, const T* params, int64_t count, const double* uniforms,
               int64_t codes, int64_t* out, const Scratch& scratch) {
  double* weights = scratch.draw;
  const int64_t step = padded(count);
  switch (likelihood.kind) {
    case Likelihood::kCategorical:
      if (likelihood.top_k == 0 && likelihood.top_p == 0) {
        weights_of<true>(params, count, likelihood.temperature, weights);
      } else {
        weights_of<false>(params, count, likelihood.temperature, weights);
        truncate(likelihood, weights, count, weights + step, weights + 2 * step);
        add_up(weights, count);
      }
      out[0] = inverse_cdf(weights, count, uniforms[0]);
      return;
    case Likelihood::kBernoulli: {
      const double x = static_cast<double>(params[0]) / likelihood.temperature;
      out[0] = uniforms[0] >= 1 / (1 + __builtin_exp(x));
      return;
    }
    case Likelihood::kLogisticMixture:
      draw_mixture<T>(likelihood, params, uniforms, codes, out, weights);
      return;
  }
}

}  // namespace

bool any_nan(const float* values, int64_t count) { return any_nan_of<float>(values, count); }
bool any_nan(const double* values, int64_t count) { return any_nan_of<double>(values, count); }

void draw(const Likelihood& likelihood, const float* params, int64_t count, const double* uniforms,
          int64_t codes, int64_t* out, const Scratch& scratch) {
  draw_from<float>(likelihood, params, count, uniforms, codes, out, scratch);
}
void draw(const Likelihood& likelihood, const double* params, int64_t count, const double* uniforms,
          int64_t codes, int64_t* out, const Scratch& scratch) {
  draw_from<double>(likelihood, params, count, uniforms, codes, out, scratch);
}

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

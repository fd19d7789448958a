// Packing a codebook into panels for the search.
#pragma once

#include <limits>

#include "common/pixels.h"
#include "common/simd_math.h"
#include "common/tile_gemm.h"
#include "vq_search.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

template <class T>
FASTGEN_INLINE T absolute(T x) {
  return x < 0 ? -x : x;
}

template <class T>
FASTGEN_INLINE bool is_finite(const T* values, int64_t count) {
  Vec<T> probe{};  // infinity * 0 is NaN
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) probe += load_vector<T>(values + i) * T(0);
  T rest = sum_of_lanes<T>(probe);
  for (; i < count; ++i) rest += values[i] * 0;
  return rest == 0;
}

template <class T>
FASTGEN_INLINE bool are_equal(const T* a, const T* b, int64_t count) {
  int64_t i = 0;
  while (i < count && a[i] == b[i]) ++i;
  return i == count;
}

// The largest |a[i] - b[i]|; infinite if one is, and any number if one is NaN.
template <class T>
FASTGEN_INLINE T largest_difference(const T* a, const T* b, int64_t count) {
  Vec<T> largest{};
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) {
    const Vec<T> difference = load_vector<T>(a + i) - load_vector<T>(b + i);
    largest = larger(larger(difference, largest), -difference);
  }
  T rest = largest_lane<T>(largest);
  for (; i < count; ++i) rest = absolute(a[i] - b[i]) > rest ? absolute(a[i] - b[i]) : rest;
  return rest;
}

// The power of two that brings x to 1/2 .. 1; 1 for 0.
template <class T>
FASTGEN_INLINE T reciprocal_power_of_two(T x) {
  if (!(x > 0)) return 1;
  int exponent;
  __builtin_frexp(static_cast<double>(x), &exponent);
  const int most = std::numeric_limits<T>::max_exponent - 2;  // the reciprocal is finite, too
  exponent = exponent < -most ? -most : exponent > most ? most : exponent;
  return static_cast<T>(__builtin_ldexp(1., -exponent));
}

// Sum of a[i] b[i]: lane by lane, then over the lanes.
template <class T>
FASTGEN_INLINE T dot(const T* a, const T* b, int64_t count) {
  Vec<T> sums{};
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>)
    sums += load_vector<T>(a + i) * load_vector<T>(b + i);
  T total = sum_of_lanes<T>(sums);
  for (; i < count; ++i) total += a[i] * b[i];
  return total;
}

// x / |x| in place; 0 stays 0. Scaled first: squares of what is tiny or huge leave the range.
template <class T>
void normalise(T* x, int64_t values) {
  T largest = 0;
  for (int64_t d = 0; d < values; ++d)
    largest = absolute(x[d]) > largest ? absolute(x[d]) : largest;
  const T scale = reciprocal_power_of_two(largest);
  for (int64_t d = 0; d < values; ++d) x[d] *= scale;
  const double square = dot(x, x, values);
  const T norm = static_cast<T>(__builtin_sqrt(square));
  if (norm == 0) return;
  for (int64_t d = 0; d < values; ++d) x[d] /= norm;
}

// Distances do not change with the origin, their rounding does; and squares of tiny or huge values
// would leave the range. Any centre near the codes will do: the mean of at most 1024 of them.
template <class T>
void prepare(VqCodes<T>& c) {
  for (int64_t d = 0; d < c.values; ++d) c.center[d] = 0;
  c.scale = 1;
  if (c.cosine) return;
  const int64_t step = (c.codes + 1023) / 1024;
  int64_t count = 0;
  for (int64_t k = 0; k < c.codes; k += step) {
    const T* code = c.given + k * c.values;
    if (!is_finite(code, c.values)) continue;
    const T share = T(1) / static_cast<T>(++count);
    for (int64_t d = 0; d < c.values; ++d) c.center[d] += (code[d] - c.center[d]) * share;
  }
  T largest = 0;
  for (int64_t k = 0; k < c.codes; ++k) {
    const T reach = largest_difference(c.given + k * c.values, c.center, c.values);
    if (reach > largest && reach <= std::numeric_limits<T>::max()) largest = reach;
  }
  c.scale = reciprocal_power_of_two(largest);
}

// The nearest bfloat16, ties to even, as the upper half of a word; of finite values.
template <class Bits>
FASTGEN_INLINE Bits rounded_bits(Bits bits) {
  return (bits + 0x7fff + ((bits >> 16) & 1)) & static_cast<int32_t>(0xffff0000);
}

// Two bfloat16 to a word, as the instruction wants them.
FASTGEN_INLINE uint32_t pair_of(uint32_t first, uint32_t second) { return first >> 16 | second; }

FASTGEN_INLINE int64_t pairs_of(int64_t values) { return (values + 1) / 2; }

// A row in pairs; returns the square of what rounding took away.
inline float pack_pairs(const float* x, int64_t values, uint32_t* pairs) {
  constexpr int kStep = 2 * kLanes<float>;
  Vec<float> squares{};
  for (int64_t d = 0; d < values; d += kStep) {
    float part[kStep] = {};
    __builtin_memcpy(part, x + d, sizeof(float) * (values - d < kStep ? values - d : kStep));
    uint32_t bits[kStep];
#pragma GCC unroll 2
    for (int i = 0; i < kStep; i += kLanes<float>) {
      const Vec<float> v = load_vector<float>(part + i);
      const BitVec<float> rounded = rounded_bits((BitVec<float>)v);
      squares += (v - (Vec<float>)rounded) * (v - (Vec<float>)rounded);
      __builtin_memcpy(bits + i, &rounded, sizeof rounded);
    }
    const int64_t left = pairs_of(values) - d / 2;
    for (int i = 0; i < kLanes<float> && i < left; ++i) {
      pairs[d / 2 + i] = pair_of(bits[2 * i], bits[2 * i + 1]);
    }
  }
  return sum_of_lanes<float>(squares);
}

// A panel of `columns` codes in pairs, and the square of what rounding took away of each.
inline void pack_panel_pairs(const float* panel, int64_t values, int columns, uint32_t* pairs,
                             float* lost) {
  const float none[kTileColumns<float>] = {};
  for (int i = 0; i < columns; ++i) lost[i] = 0;
  for (int64_t d = 0; d < values; d += 2, pairs += columns) {
    const float* first = panel + d * columns;
    const float* second = d + 1 < values ? first + columns : none;
    for (int i = 0; i < columns; ++i) {
      const uint32_t a = rounded_bits(bits_of(first[i])), b = rounded_bits(bits_of(second[i]));
      pairs[i] = pair_of(a, b);
      const float u = first[i] - float_of(a), v = second[i] - float_of(b);
      lost[i] += u * u + v * v;
    }
  }
}

// Any odd numbers will do.
template <class T>
FASTGEN_INLINE T mark_weight(int64_t d) {
  return static_cast<T>((static_cast<uint32_t>(d) * 2654435761u + 40503u) >> 12 | 1);
}

template <class T>
void pack(const VqCodes<T>& c, int64_t begin, int64_t end) {
  constexpr int W = kTileColumns<T>;
  for (int64_t p = begin; p < end; ++p) {
    const int64_t first = p * W, left = c.codes - first;
    const int columns = block_vectors<T>(left) * kLanes<T>;
    const int live = static_cast<int>(left < columns ? left : columns);
    T* panel = c.panels + first * c.values;
    transpose<T>(c.given + first * c.values, c.values, panel, columns, live, c.values);
    double square[W] = {};
    T probe[W] = {}, mark[W] = {};
    for (int64_t d = 0; d < c.values; ++d) {
      const T weight = mark_weight<T>(d);
      T* line = panel + d * columns;
      for (int i = live; i < columns; ++i) line[i] = 0;
      for (int i = 0; i < columns; ++i) {
        probe[i] += line[i] * 0;
        line[i] = (line[i] - c.center[d]) * c.scale;
        square[i] += static_cast<double>(line[i]) * line[i];
        mark[i] += line[i] * weight;
      }
    }
    for (int i = 0; i < columns; ++i) {
      const bool can_be_chosen = i < live && probe[i] == 0;
      // the cosine with 0 is 0: no bias, as for all the others whose |c|^2 is 1
      const double offset = c.cosine ? 0 : -0.5 * square[i];
      c.bias[first + i] =
          can_be_chosen ? static_cast<T>(offset) : -std::numeric_limits<T>::infinity();
      c.mark[first + i] = mark[i];
      if (can_be_chosen) continue;
      for (int64_t d = 0; d < c.values; ++d) panel[d * columns + i] = 0;
    }
    if (c.pairs == nullptr) continue;
    if constexpr (sizeof(T) == sizeof(float)) {
      pack_panel_pairs(panel, c.values, columns, c.pairs + first * pairs_of(c.values),
                       c.lost + first);
    }
  }
}

// Of equal codes the first is chosen, so the others need not be looked at; as many as there are
// (codes that were never used, a start from too few rows) they would all be near ties.
template <class T>
void drop_duplicates(VqCodes<T>& c) {
  const uint64_t last = static_cast<uint64_t>(vq_places(c.codes)) - 1;
  for (uint64_t place = 0; place <= last; ++place) c.places[place] = -1;
  for (int64_t k = 0; k < c.codes; ++k) {
    if (!(c.bias[k] >= -std::numeric_limits<T>::max())) continue;
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &c.mark[k], sizeof c.mark[k]);
    uint64_t place = (bits * 0x9E3779B97F4A7C15u) >> 20 & last;
    for (; c.places[place] >= 0; place = (place + 1) & last) {
      if (!are_equal(c.given + c.places[place] * c.values, c.given + k * c.values, c.values))
        continue;
      c.bias[k] = -std::numeric_limits<T>::infinity();
      break;
    }
    if (c.places[place] < 0) c.places[place] = k;
  }
}

// From the bias; a little more for what its rounding may hide.
template <class T>
void measure(VqCodes<T>& c) {
  const int64_t columns = (c.codes + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  T least = 0, lost = 0;
  for (int64_t k = 0; k < columns; ++k) {
    if (c.bias[k] < least && c.bias[k] >= -std::numeric_limits<T>::max()) least = c.bias[k];
  }
  c.longest = c.cosine ? T(1.001) : static_cast<T>(__builtin_sqrt(-2. * least)) * T(1.001);
  if (c.pairs == nullptr) return;
  for (int64_t k = 0; k < columns; ++k) lost = c.lost[k] > lost ? c.lost[k] : lost;
  c.most_lost = static_cast<T>(__builtin_sqrt(1. * lost)) * T(1.001);
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

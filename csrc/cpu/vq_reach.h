// How far computed scores may be from what they stand for.
#pragma once

#include "cpu/vq_panels.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

FASTGEN_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
FASTGEN_INLINE double square_root(double x) { return __builtin_sqrt(x); }

// Of a row: its norm, that of what rounding to bfloat16 took away (for the filter), both at least;
// and what the score of its nearest code is at least.
template <class T>
struct Reach {
  T norm, lost, least;
};

// At least the norm of a packed code; 0 for one that cannot be chosen.
template <class T>
FASTGEN_INLINE T length_of(const VqCodes<T>& codes, int64_t k) {
  if (!(codes.bias[k] >= -std::numeric_limits<T>::max())) return 0;
  return codes.cosine ? T(1.001) : square_root(-2 * codes.bias[k]) * T(1.001);
}

// Of a score x.c - |c|^2 / 2: products, their sum and the bias, each rounded, of values that were
// rounded when centred. u is the unit roundoff; (1 + u)^n - 1 < 1.01 n u here.
template <class T>
FASTGEN_INLINE T score_error(const VqCodes<T>& codes, T norm, T length) {
  const T u = std::numeric_limits<T>::epsilon() / 2;
  return T(1.01) * static_cast<T>(codes.values + 8) * u * (norm + length) * length;
}

// In the first pass. Of a score of bfloat16 roundings x' and c': x.c - x'.c' = (x - x').c +
// x'.(c - c'), and the sum itself, whose terms may be larger than without. bfloat16 has 8 bits.
template <class T>
FASTGEN_INLINE T first_error(const VqCodes<T>& codes, const Reach<T>& row, T length) {
  const T error = score_error(codes, row.norm, length);
  if (codes.pairs == nullptr) return error;
  const T lost = length / 256 < codes.most_lost ? length / 256 : codes.most_lost;
  return 2 * error + row.lost * length + (row.norm + row.lost) * lost;
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

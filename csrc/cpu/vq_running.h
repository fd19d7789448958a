// The running maximum over panels of codes.
#pragma once

#include <limits>

#include "common/simd_math.h"
#include "common/tile_gemm.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// Panels go by in groups of a few. Of a row is known, for each lane, the best score, the group it
// stands in, and the best score of any other group. Which of the lane's codes in that group it was
// is found out at the end: an index for every score would take twice the instructions of its
// maximum, and say nothing about near ties.
template <class T>
struct Running {
  T best[kLanes<T>], other[kLanes<T>];
  LaneMask<T> group[kLanes<T>];
};

// Panels one behind the other. Columns are values in T, or pairs of them in bfloat16.
template <class Column, class T>
struct Group {
  const Column* columns;
  const T* bias;
  int64_t length;  // of a column
  int64_t panels, number;
};

template <class T>
FASTGEN_INLINE void keep_best(Vec<T> top, int64_t group, Running<T>& r) {
  const Vec<T> best = load_vector<T>(r.best);
  const BitVec<T> number = static_cast<LaneMask<T>>(group) - BitVec<T>{};
  const BitVec<T> where = top > best ? number : load_mask<T>(r.group);
  store_vector<T>(larger(smaller(best, top), load_vector<T>(r.other)), r.other);
  store_vector<T>(larger(top, best), r.best);
  __builtin_memcpy(r.group, &where, sizeof where);
}

// Each lane's best score over the panels of a group, for MR rows.
template <class T, int MR>
struct GroupBest {
  Vec<T> top[MR] = {};

  template <int NV>
  FASTGEN_INLINE void see(const Tile<T, MR, NV>& scores, bool is_first) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      top[i] = is_first ? scores.sum[i][0] : larger(scores.sum[i][0], top[i]);
#pragma GCC unroll 4
      for (int v = 1; v < NV; ++v) top[i] = larger(scores.sum[i][v], top[i]);
    }
  }

  FASTGEN_INLINE void keep(int64_t group, Running<T>* running) const {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) keep_best<T>(top[i], group, running[i]);
  }
};

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

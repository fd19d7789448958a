// The running maximum over panels of codes.
#pragma once

#include "common/simd_math.h"
#include "common/tile_gemm.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// What is known of a row while panels go by, for each lane: the best score, the panel it stands in,
// and the best score of any other panel. A lane sees up to kTileVectors codes of a panel; which of
// them it was is found out at the end: 2 instructions a vector of scores, where an index for each
// takes 3 and says nothing about near ties.
template <class T>
struct Running {
  T best[kLanes<T>], other[kLanes<T>];
  LaneMask<T> panel[kLanes<T>];
};

template <class T>
struct Panel {
  const T* columns;
  const T* bias;
  int64_t values, number;
};

template <class T, int MR, int NV>
FASTGEN_INLINE void keep_best(const Vec<T> (&score)[MR][NV], int64_t panel, Running<T>* running) {
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
    Vec<T> top = score[i][0];
#pragma GCC unroll 4
    for (int v = 1; v < NV; ++v) top = larger(score[i][v], top);
    Running<T>& r = running[i];
    const Vec<T> best = load_vector<T>(r.best);
    const BitVec<T> number = static_cast<LaneMask<T>>(panel) - BitVec<T>{};
    const BitVec<T> where = top > best ? number : load_mask<T>(r.panel);
    store_vector<T>(larger(smaller(best, top), load_vector<T>(r.other)), r.other);
    store_vector<T>(larger(top, best), r.best);
    __builtin_memcpy(r.panel, &where, sizeof where);
  }
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

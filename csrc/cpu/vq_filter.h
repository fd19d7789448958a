// The first pass in bfloat16, at twice the speed of float32. What rounding takes away of a row and
// of the codes is known, so is how far scores may be off; more codes are compared again by
// distances.
#pragma once

#include "cpu/vq_panels.h"
#include "cpu/vq_running.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

#if defined(__AVX512F__)

template <int MR, int NV>
struct Filter {
  // The rest of this level's code must run on CPUs without these instructions.
  __attribute__((target("avx512bf16"))) static void run(const uint32_t* rows,
                                                        const Group<uint32_t, float>& group,
                                                        Running<float>* running) {
    constexpr int kColumns = NV * kLanes<float>;
    const uint32_t* columns = group.columns;
    GroupBest<float, MR> best;
    for (int64_t p = 0; p < group.panels; ++p) {
      Tile<float, MR, NV> tile;
      tile.start(group.bias + p * kColumns);
      for (int64_t d = 0; d < group.length; ++d, columns += kColumns) {
        __m512i code[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) code[v] = _mm512_loadu_si512(columns + v * kLanes<float>);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          const int pair = static_cast<int>(rows[i * group.length + d]);
          const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) {
            tile.sum[i][v] =
                (Vec<float>)_mm512_dpbf16_ps((__m512)tile.sum[i][v], x, (__m512bh)code[v]);
          }
        }
      }
      best.see(tile, p == 0);
    }
    best.keep(group.number, running);
  }
};
inline constexpr TileTable<Filter, decltype(&Filter<1, 1>::run)> kFilterTable{};

FASTGEN_INLINE void filter(const uint32_t* rows, const Group<uint32_t, float>& group, int vectors,
                           int height, Running<float>* running) {
  kFilterTable.of[vectors][height](rows, group, running);
}

#else

// Never called: VqCodes has pairs only where multiplies_bfloat16().
inline void filter(const uint32_t*, const Group<uint32_t, float>&, int, int, Running<float>*) {}

#endif

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

// The first pass in bfloat16, at twice the speed of float32: its scores are off by up to 2^-8 |x|
// |c|, so more codes are compared again by their distances; pays for long rows.
#pragma once

#include "cpu/vq_panels.h"
#include "cpu/vq_running.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// Both factors of a product are rounded by up to 2^-9 of themselves.
constexpr float kFilterError = 1.01f / 256;

#if defined(__AVX512F__)

struct FilterPanel {
  const uint32_t* columns;
  const float* bias;
  int64_t pairs, number;
};

template <int MR, int NV>
struct Filter {
  // The rest of this level's code must run on CPUs without these instructions.
  __attribute__((target("avx512bf16"))) static void run(const uint32_t* rows,
                                                        const FilterPanel& panel,
                                                        Running<float>* running) {
    constexpr int kColumns = NV * kLanes<float>;
    Tile<float, MR, NV> tile;
    tile.start(panel.bias);
    const uint32_t* columns = panel.columns;
    for (int64_t d = 0; d < panel.pairs; ++d, columns += kColumns) {
      __m512i code[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) code[v] = _mm512_loadu_si512(columns + v * kLanes<float>);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const __m512bh x = (__m512bh)_mm512_set1_epi32(static_cast<int>(rows[i * panel.pairs + d]));
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          tile.sum[i][v] =
              (Vec<float>)_mm512_dpbf16_ps((__m512)tile.sum[i][v], x, (__m512bh)code[v]);
        }
      }
    }
    keep_best<float, MR, NV>(tile.sum, panel.number, running);
  }
};
inline constexpr TileTable<Filter, decltype(&Filter<1, 1>::run)> kFilterTable{};

FASTGEN_INLINE void filter(const uint32_t* rows, int64_t pairs, const VqCodes<float>& codes,
                           int64_t panel, int vectors, int height, Running<float>* running) {
  const int64_t first = panel * kTileColumns<float>;
  const FilterPanel of{codes.pairs + first * pairs, codes.bias + first, pairs, panel};
  kFilterTable.of[vectors][height](rows, of, running);
}

#else

// Never called: VqCodes has pairs only where multiplies_bfloat16().
inline void filter(const uint32_t*, int64_t, const VqCodes<float>&, int64_t, int, int,
                   Running<float>*) {}

#endif

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

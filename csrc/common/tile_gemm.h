// The register tile of every matrix-product-like kernel: MR rows, each behind a pointer of its own,
// by NV vectors of columns. Every element adds its products one by one in the order of the
// reduction axis, whatever MR and NV are, so that results never depend on how work was split.
#pragma once

#include "common/half.h"
#include "common/simd.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// Columns come in blocks of kTileVectors vectors, packed side by side; what is left at the end is a
// block of fewer vectors, whose tiles are higher. 3x3 convolutions of 64 channels reach 0.92 of the
// FMA peak with 6 x 4 vectors on Zen 4 (AVX-512), 0.90 with 8 x 3 and 0.82 with 12 x 2.
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers
constexpr int kTileVectors = 4;
constexpr int kTileRows[] = {0, 12, 12, 8, 6};  // by the number of vectors
#else                                           // 16 registers
constexpr int kTileVectors = 2;
constexpr int kTileRows[] = {0, 12, 6};
#endif
constexpr int kMostTileRows = 12;
template <class T>
constexpr int kTileColumns = kTileVectors * kLanes<T>;

// Vectors of the block that starts `left` columns before the end.
template <class T>
FASTGEN_INLINE int block_vectors(int64_t left) {
  return left >= kTileColumns<T> ? kTileVectors
                                 : static_cast<int>((left + kLanes<T> - 1) / kLanes<T>);
}

// A vector of T from values stored as T or narrower.
template <class T>
FASTGEN_INLINE Vec<T> load_as(const T* from) {
  return load_vector<T>(from);
}
template <class T>
FASTGEN_INLINE Vec<float> load_as(const BFloat16* from) {
  typedef uint16_t Narrow __attribute__((vector_size(kVectorBytes / 2)));
  Narrow bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return (Vec<float>)(__builtin_convertvector(bits, BitVec<float>) << 16);
}

template <class T, int MR, int NV>
struct Tile {
  Vec<T> sum[MR][NV];

  FASTGEN_INLINE void clear() {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][v] = Vec<T>{};
  }

  FASTGEN_INLINE void start(const T* bias) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][v] = load_vector<T>(bias + v * kLanes<T>);
  }

  // sum[i] += a[i][at + n * a_step] * b[n * b_step ...], n = 0 .. count - 1
  template <class W>
  FASTGEN_INLINE void add(const T* const (&a)[MR], int64_t at, int64_t a_step, const W* b,
                          int64_t b_step, int64_t count) {
    for (; count != 0; --count, at += a_step, b += b_step) {
      Vec<T> column[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) column[v] = load_as<T>(b + v * kLanes<T>);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const Vec<T> x = broadcast<T>(a[i][at]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[i][v] += x * column[v];
      }
    }
  }

  // The same where lanes of `mask` are all ones; other lanes keep their sum even if a is NaN. b is
  // 0 in those lanes.
  FASTGEN_INLINE void add_masked(const T* const (&a)[MR], int64_t at, const T* b,
                                 const LaneMask<T>* mask, int64_t step, int64_t count) {
    for (int64_t end = at + count; at != end; ++at, b += step, mask += step) {
      Vec<T> column[NV];
      BitVec<T> live[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        column[v] = load_vector<T>(b + v * kLanes<T>);
        live[v] = load_mask<T>(mask + v * kLanes<T>);
      }
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const BitVec<T> x = (BitVec<T>)broadcast<T>(a[i][at]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[i][v] += (Vec<T>)(x & live[v]) * column[v];
      }
    }
  }

  // Row i goes to out[i]; the last vector may have fewer than kLanes columns.
  FASTGEN_INLINE void store(T* const (&out)[MR], int columns) const {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const int left = columns - v * kLanes<T>;
        if (v + 1 < NV || left >= kLanes<T>) {
          store_vector<T>(sum[i][v], out[i] + v * kLanes<T>);
        } else {
          store_first<T>(sum[i][v], left, out[i] + v * kLanes<T>);
        }
      }
  }

  FASTGEN_INLINE void add_rows(const T* from, int64_t step) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][v] += load_vector<T>(from + i * step + v * kLanes<T>);
  }

  // Row i goes, or is added, to out + i * step.
  FASTGEN_INLINE void store_rows(T* out, int64_t step, bool add) {
    if (add) add_rows(out, step);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) store_vector<T>(sum[i][v], out + i * step + v * kLanes<T>);
  }
};

// Rows the next tile takes of `left`: full tiles, and the last two of equal height.
FASTGEN_INLINE int next_tile_rows(int64_t left, int vectors) {
  const int most = kTileRows[vectors];
  if (left >= 2 * most || left == most) return most;
  return static_cast<int>(left > most ? (left + 1) / 2 : left);
}

// Kernel<MR, NV>::run for every tile: of[vectors][rows].
template <template <int, int> class Kernel, class Function>
struct TileTable {
  Function of[kTileVectors + 1][kMostTileRows + 1] = {};

  constexpr TileTable() { fill<kTileVectors, kTileRows[kTileVectors]>(); }

 private:
  template <int NV, int MR>
  constexpr void fill() {
    of[NV][MR] = Kernel<MR, NV>::run;
    if constexpr (MR > 1) {
      fill<NV, MR - 1>();
    } else if constexpr (NV > 1) {
      fill<NV - 1, kTileRows[NV - 1]>();
    }
  }
};

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

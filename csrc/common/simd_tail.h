// The first lanes of a vector to and from memory that ends there.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/simd.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// All ones in the first `count` lanes.
template <class T>
FASTGEN_INLINE BitVec<T> first_lanes(int64_t count) {
  BitVec<T> lane;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
  return lane < static_cast<LaneMask<T>>(count);
}

// 0 in the other lanes; 0 < count < kLanes.
template <class T>
FASTGEN_INLINE Vec<T> load_part(const T* from, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_maskz_loadu_ps((1u << count) - 1, from);
  if constexpr (sizeof(T) == 8) return _mm512_maskz_loadu_pd((1u << count) - 1, from);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return _mm256_maskload_ps(from, (__m256i)first_lanes<T>(count));
  if constexpr (sizeof(T) == 8) return _mm256_maskload_pd(from, (__m256i)first_lanes<T>(count));
#else
  T values[kLanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = from[i];
  return load_vector<T>(values);
#endif
}

template <class T>
FASTGEN_INLINE void store_part(Vec<T> v, int64_t count, T* to) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(to, (1u << count) - 1, v);
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(to, (1u << count) - 1, v);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) _mm256_maskstore_ps(to, (__m256i)first_lanes<T>(count), v);
  if constexpr (sizeof(T) == 8) _mm256_maskstore_pd(to, (__m256i)first_lanes<T>(count), v);
#else
  store_first<T>(v, static_cast<int>(count), to);
#endif
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

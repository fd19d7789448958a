// Vectors of the level's native width as compiler vector extensions: one source for AVX-512, AVX2,
// SSE2 and NEON. Arithmetic is written with operators; here are only the memory accesses and the
// shuffle that transposition needs.
#pragma once

#include <cstdint>

#define FASTGEN_INLINE inline __attribute__((always_inline))

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Int = int32_t;
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  using Int = int64_t;
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t bits __attribute__((vector_size(kVectorBytes)));
};

template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
using BitVec = typename VectorOf<T>::bits;  // all ones or all zeros in each lane
template <class T>
using LaneMask = typename VectorOf<T>::Int;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <class T>
FASTGEN_INLINE Vec<T> load_vector(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
FASTGEN_INLINE BitVec<T> load_mask(const LaneMask<T>* from) {
  BitVec<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
FASTGEN_INLINE void store_vector(Vec<T> v, T* to) {
  __builtin_memcpy(to, &v, sizeof v);
}

// The first `count` lanes, 0 <= count < kLanes.
template <class T>
FASTGEN_INLINE void store_first(Vec<T> v, int count, T* to) {
  for (int i = 0; i < count; ++i) to[i] = v[i];
}

// All lanes, or the first `left` of them if there are fewer.
template <class T>
FASTGEN_INLINE void store_up_to(Vec<T> v, int64_t left, T* to) {
  if (left >= kLanes<T>) {
    store_vector<T>(v, to);
  } else if (left > 0) {
    store_first<T>(v, static_cast<int>(left), to);
  }
}

// Lines of `count` elements into the second-level cache; any address will do.
template <class T>
FASTGEN_INLINE void prefetch(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(from + i, 0, 2);
}

// Lines of `count` elements that will be written.
template <class T>
FASTGEN_INLINE void prefetch_write(T* to, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(to + i, 1, 3);
}

template <class T>
FASTGEN_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // x - 0 is x also for x = -0, so compilers drop the subtraction
}

// (a0 b0 a1 b1 ...) of the lower (half = 0) or upper (half = 1) halves of a and b.
template <class T>
FASTGEN_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, int half) {
  constexpr int n = kLanes<T>;
#if defined(__clang__)
  Vec<T> out;
  for (int i = 0; i < n; ++i) out[i] = (i & 1 ? b : a)[half * n / 2 + i / 2];
  return out;
#else
  BitVec<T> from;
  for (int i = 0; i < n; ++i) from[i] = (i & 1) * n + half * n / 2 + i / 2;
  return __builtin_shuffle(a, b, from);
#endif
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

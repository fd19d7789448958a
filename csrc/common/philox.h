// Philox4x32-10 on whole vectors, and the uniforms and normals of tensor elements that are drawn
// from it: element i has lane i % 4 of the block of key `seed` and counter (i // 4, 0, 0).
#pragma once

#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "common/simd_math.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

typedef uint32_t WordVec __attribute__((vector_size(kVectorBytes)));
typedef uint64_t WideVec __attribute__((vector_size(kVectorBytes)));
constexpr int kWideLanes = kVectorBytes / 8;

// The lower halves of a's lanes times `by`. Words live in the lower halves of 64-bit lanes, since
// the multiplication ignores the upper ones: no masks, no shuffles, 6 instructions a round.
FASTGEN_INLINE WideVec product(WideVec a, uint32_t by) {
#if defined(__AVX512F__)
  return (WideVec)_mm512_maskz_mul_epu32(__mmask8(-1), (__m512i)a, _mm512_set1_epi64(by));
#elif defined(__AVX2__)
  return (WideVec)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(by));
#elif defined(__SSE2__)
  return (WideVec)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(by));
#elif defined(__ARM_NEON)
  return (WideVec)vmull_n_u32(vmovn_u64((uint64x2_t)a), by);
#else
  for (int i = 0; i < kWideLanes; ++i) a[i] = (a[i] & 0xffffffff) * by;
  return a;
#endif
}

FASTGEN_INLINE WideVec exclusive_or(WideVec a, WideVec b, WideVec c) {
#if defined(__AVX512F__)
  return (WideVec)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#else
  return a ^ b ^ c;
#endif
}

// The even words of `even`, and in the odd places those of `odd`.
FASTGEN_INLINE WordVec packed(WideVec even, WideVec odd) {
#if defined(__AVX512F__)
  return (WordVec)_mm512_mask_shuffle_epi32((__m512i)even, 0xaaaa, (__m512i)odd, _MM_PERM_CCAA);
#elif defined(__AVX2__)
  return (WordVec)_mm256_blend_epi32((__m256i)even, _mm256_slli_epi64((__m256i)odd, 32), 0xaa);
#else
  return (WordVec)((even & 0xffffffff) | odd << 32);
#endif
}

// What blocks with the same upper half of their number share: the keys of the rounds, and the half
// of the second round that does not depend on the lower half. Vectors in memory: the rounds take
// them as operands, where copies of scalars took a tenth of the time.
class PhiloxKey {
 public:
  PhiloxKey(uint64_t seed, uint64_t block) : seed_(seed), upper_(block >> 32) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    const uint64_t shared = (upper_ ^ k0) * kMultiplier0;
    for (int i = 0; i < kRounds; ++i, k0 += 0x9e3779b9, k1 += 0xbb67ae85) {
      key0_[i] = WideVec{} + k0;
      key1_[i] = WideVec{} + k1;
    }
    key1_[1] ^= shared >> 32;
    shared_low_ = WideVec{} + (shared & 0xffffffff);
  }

  // The key for `block`, whose upper half changes every 2^34 elements.
  void move_to(uint64_t block) {
    if (block >> 32 != upper_) *this = PhiloxKey(seed_, block);
  }

  // The blocks of these numbers, whose upper halves are those of this key; words in the lower
  // halves of the lanes, rubbish above. Of 1, 2 and 4 vectors at once, 4 hide the latency of the
  // products best: 0.40 ns a uniform with 2, 0.34 with 4 (Zen 4, AVX-512).
  template <int N>
  FASTGEN_INLINE void run(const WideVec (&block)[N], WideVec (&c)[4][N]) const {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const WideVec first = product(block[n], kMultiplier0);
      const WideVec second = product(first >> 32 ^ key1_[0], kMultiplier1);
      c[0][n] = second >> 32 ^ key0_[1];
      c[1][n] = second;
      c[2][n] = first ^ key1_[1];
      c[3][n] = shared_low_;
    }
#pragma GCC unroll 10
    for (int i = 2; i < kRounds; ++i) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const WideVec p0 = product(c[0][n], kMultiplier0), p1 = product(c[2][n], kMultiplier1);
        c[0][n] = exclusive_or(p1 >> 32, c[1][n], key0_[i]);
        c[2][n] = exclusive_or(p0 >> 32, c[3][n], key1_[i]);
        c[1][n] = p1;
        c[3][n] = p0;
      }
    }
  }

 private:
  static constexpr int kRounds = 10;
  static constexpr uint32_t kMultiplier0 = 0xd2511f53, kMultiplier1 = 0xcd9e8d57;
  uint64_t seed_, upper_;
  WideVec shared_low_, key0_[kRounds], key1_[kRounds];
};

// Numbers are made for 2 kLanes<T> blocks at once, eight vectors of adjacent elements; the first
// block is a multiple of that.
template <class T>
constexpr int kPhiloxGroup = 8 * kLanes<T>;

// words[h][j]: word j of the h-th kLanes blocks. A quarter of a vector is as long as the 128 bits
// within which shuffles are cheap, so lane 4 l + t works for block t * kLanes / 4 + l: 4x4
// transpositions within 128 bits then put all in order.
FASTGEN_INLINE void philox_words(const PhiloxKey& key, uint64_t block, WordVec (&words)[2][4]) {
  constexpr int n = kLanes<float>;
  WideVec even, odd, out[4][4];
#pragma GCC unroll 8
  for (int i = 0; i < kWideLanes; ++i) {
    even[i] = i % 2 * 2 * (n / 4) + i / 2;
    odd[i] = (i % 2 * 2 + 1) * (n / 4) + i / 2;
  }
  key.run<4>({even + block, odd + block, even + (block + n), odd + (block + n)}, out);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    words[0][j] = packed(out[j][0], out[j][1]);
    words[1][j] = packed(out[j][2], out[j][3]);
  }
}

FASTGEN_INLINE void philox_words(const PhiloxKey& key, uint64_t block, WideVec (&words)[2][4]) {
  WideVec lane, out[4][2];
#pragma GCC unroll 8
  for (int i = 0; i < kWideLanes; ++i) lane[i] = i;
  key.run<2>({lane + block, lane + (block + kWideLanes)}, out);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    words[0][j] = out[j][0];
    words[1][j] = out[j][1];
  }
}

// (a0 b0 a1 b1) of the lower or upper half of each 128 bits.
FASTGEN_INLINE Vec<float> interleave_quarters(Vec<float> a, Vec<float> b, int half) {
  constexpr int n = kLanes<float>;
#if defined(__clang__)
  Vec<float> out;
  for (int i = 0; i < n; ++i) out[i] = (i & 1 ? b : a)[i / 4 * 4 + half * 2 + i % 4 / 2];
  return out;
#else
  BitVec<float> from;
  for (int i = 0; i < n; ++i) from[i] = (i & 1) * n + i / 4 * 4 + half * 2 + i % 4 / 2;
  return __builtin_shuffle(a, b, from);
#endif
}

// From one vector for each of a block's four words to adjacent elements.
FASTGEN_INLINE void in_element_order(Vec<float>* x) {
  const Vec<float> p0 = interleave_quarters(x[0], x[2], 0), p1 = interleave_quarters(x[0], x[2], 1),
                   q0 = interleave_quarters(x[1], x[3], 0), q1 = interleave_quarters(x[1], x[3], 1);
  x[0] = interleave_quarters(p0, q0, 0);
  x[1] = interleave_quarters(p0, q0, 1);
  x[2] = interleave_quarters(p1, q1, 0);
  x[3] = interleave_quarters(p1, q1, 1);
}

FASTGEN_INLINE void in_element_order(Vec<double>* x) {
  const Vec<double> p0 = interleave<double>(x[0], x[2], 0), p1 = interleave<double>(x[0], x[2], 1),
                    q0 = interleave<double>(x[1], x[3], 0), q1 = interleave<double>(x[1], x[3], 1);
  x[0] = interleave<double>(p0, q0, 0);
  x[1] = interleave<double>(p0, q0, 1);
  x[2] = interleave<double>(p1, q1, 0);
  x[3] = interleave<double>(p1, q1, 1);
}

// The upper kBits of each word as an integer.
template <int kBits>
FASTGEN_INLINE Vec<float> upper_bits(WordVec word) {
  return __builtin_convertvector((BitVec<float>)(word >> (32 - kBits)), Vec<float>);
}

template <int kBits>
FASTGEN_INLINE Vec<double> upper_bits(WideVec word) {
  const WideVec bits = (word & 0xffffffff) >> (32 - kBits);
  return (Vec<double>)(bits | 0x4330000000000000) - 0x1p52;
}

// By ascending powers.
template <class T, int N>
FASTGEN_INLINE Vec<T> polynomial(Vec<T> x, const T (&terms)[N]) {
  Vec<T> p = broadcast<T>(terms[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) p = p * x + terms[i];
  return p;
}

template <class T>
struct NormalTerms;

template <>
struct NormalTerms<float> {  // minimax
  // sin(pi/2 x) / x and (cos(pi/2 x) - 1) / x^2 by powers of x^2 up to 1/4: 3e-9, 6e-10
  static constexpr float kSin[] = {0x1.921fb6p+0, -0x1.4abbbap-1, 0x1.465e92p-4, -0x1.2d9302p-8};
  static constexpr float kCos[] = {-0x1.3bd3ccp+0, 0x1.03c1eap-2, -0x1.55cb88p-6, 0x1.db5fa8p-11};
  // -2 log(1 + x) / x on [-1/4, 1/2): 2.7e-8, of which the square root keeps half
  static constexpr float kLog[] = {-0x1.000000p+1, 0x1.000016p+0,  -0x1.555604p-1,
                                   0x1.ffdc72p-2,  -0x1.991b50p-2, 0x1.588fd8p-2,
                                   -0x1.331658p-2, 0x1.eea994p-3,  -0x1.bb4886p-4};
};

template <>
struct NormalTerms<double> {  // 3e-18, 4e-19
  static constexpr double kSin[] = {
      0x1.921fb54442d18p+0,  -0x1.4abbce625be41p-1,  0x1.466bc67758700p-4, -0x1.32d2cce2d538ep-8,
      0x1.50782fca3b22ap-13, -0x1.e30063a1fae0ep-19, 0x1.e3eed64f39fa7p-25};
  static constexpr double kCos[] = {
      -0x1.3bd3cc9be45dep+0,  0x1.03c1f081b5ac0p-2,  -0x1.55d3c7e3cb212p-6, 0x1.e1f5068682975p-11,
      -0x1.a6d1eeee7677fp-16, 0x1.f9ce1f05eb860p-22, -0x1.b2f223d9a3ac2p-28};
  // 2 atanh(x) / x by powers of x^2 up to 1/25: 1e-19
  static constexpr double kAtanh[] = {
      0x1.0000000000000p+1, 0x1.555555555554cp-1, 0x1.999999999c912p-2,
      0x1.249249219ba54p-2, 0x1.c71c74bd7388cp-3, 0x1.745c42be3c86cp-3,
      0x1.3b36921d83322p-3, 0x1.0dc06d5decee5p-3, 0x1.1bc0180272dbfp-3};
};

constexpr double kLn2 = 0.693147180559945309417;

// -2 log(1 - u), with 1 - u = (2^24 - word / 2^8) / 2^24 exact. The exponent e is that of
// m = (1 - u) / 2^e in [3/4, 3/2), so that there is none near u = 0, where the logarithm is small.
FASTGEN_INLINE Vec<float> minus_twice_log(WordVec word) {
  const Vec<float> w =
      __builtin_convertvector((BitVec<float>)(0x1000000 - (word >> 8)), Vec<float>);
  const WordVec bits = (WordVec)w, exponent = (bits - (0x3f400000 + (24 << 23))) & 0xff800000;
  const Vec<float> x = (Vec<float>)(bits - exponent) * 0x1p-24f - 1.f;
  const Vec<float> e = __builtin_convertvector((BitVec<float>)exponent, Vec<float>);
  return x * polynomial<float>(x, NormalTerms<float>::kLog) + e * float(-2 * kLn2 * 0x1p-23);
}

FASTGEN_INLINE Vec<double> minus_twice_log(WideVec word) {
  const Vec<double> w = 0x1p24 - upper_bits<24>(word);
  const WideVec bits = (WideVec)w,
                exponent = (bits - (0x3fe8000000000000 + (24ull << 52))) & 0xfff0000000000000;
  const Vec<double> f = (Vec<double>)(bits - exponent) * 0x1p-24 - 1., x = f / (f + 2.);
  // -32 < e <= 0 in the upper 12 bits, as an integer beside the shift that makes it a double
  const WideVec integer = ((exponent >> 52) - 0x1000) | 0xfffffffffffff000;
  const Vec<double> e =
      (Vec<double>)((BitVec<double>)integer + 0x4338000000000000) - ExpTraits<double>::kShift;
  const Vec<double> zero_or_e = exponent == 0 ? Vec<double>{} : e;
  return x * polynomial<double>(x * x, NormalTerms<double>::kAtanh) * -2. + zero_or_e * (-2 * kLn2);
}

// Cosine and sine of word / 2^32 turns: of what is left to the nearest quarter turn, exchanged and
// with their signs turned as the quarter says.
FASTGEN_INLINE void cos_sin(WordVec word, Vec<float>* cosine, Vec<float>* sine) {
  const Vec<float> x = (Vec<float>)((word >> 7 & 0x7ffffe) ^ 0x3fc00000) - 1.5f, x2 = x * x;
  const Vec<float> s = x * polynomial<float>(x2, NormalTerms<float>::kSin);
  const Vec<float> c = x2 * polynomial<float>(x2, NormalTerms<float>::kCos) + 1.f;
  const WordVec quarter = word + 0x20000000, next = word + 0x60000000;
  const auto odd = (quarter & 0x40000000) != 0;
  *cosine = (Vec<float>)((WordVec)(odd ? s : c) ^ (next & 0x80000000));
  *sine = (Vec<float>)((WordVec)(odd ? c : s) ^ (quarter & 0x80000000));
}

FASTGEN_INLINE void cos_sin(WideVec word, Vec<double>* cosine, Vec<double>* sine) {
  const WideVec fraction = (word & 0x3fffff00) << 22;
  const Vec<double> x = (Vec<double>)(fraction ^ 0x3ff8000000000000) - 1.5, x2 = x * x;
  const Vec<double> s = x * polynomial<double>(x2, NormalTerms<double>::kSin);
  const Vec<double> c = x2 * polynomial<double>(x2, NormalTerms<double>::kCos) + 1.;
  const WideVec quarter = (word + 0x20000000) << 32, next = (word + 0x60000000) << 32;
  constexpr uint64_t kSign = 0x8000000000000000;
  const auto odd = (quarter & (kSign >> 1)) != 0;
  *cosine = (Vec<double>)((WideVec)(odd ? s : c) ^ (next & kSign));
  *sine = (Vec<double>)((WideVec)(odd ? c : s) ^ (quarter & kSign));
}

template <class T>
struct WordsOf {
  using type = WordVec;
};
template <>
struct WordsOf<double> {
  using type = WideVec;
};

// The uniforms of the elements of 2 kLanes<T> blocks from `block` on, to kBits bits.
template <class T, int kBits>
FASTGEN_INLINE void philox_uniforms(const PhiloxKey& key, uint64_t block, Vec<T> (&out)[8]) {
  typename WordsOf<T>::type words[2][4];
  philox_words(key, block, words);
  constexpr T kStep = T(1) / (1 << kBits);
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) out[4 * h + j] = upper_bits<kBits>(words[h][j]) * kStep;
    in_element_order(out + 4 * h);
  }
}

// Their normals.
template <class T>
FASTGEN_INLINE void philox_normals(const PhiloxKey& key, uint64_t block, Vec<T> (&out)[8]) {
  typename WordsOf<T>::type words[2][4];
  philox_words(key, block, words);
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
#pragma GCC unroll 2
    for (int j = 0; j < 4; j += 2) {
      Vec<T>*cosine = &out[4 * h + j], *sine = cosine + 1;
      const Vec<T> r = square_root(minus_twice_log(words[h][j]));
      cos_sin(words[h][j + 1], cosine, sine);
      *cosine *= r;
      *sine *= r;
    }
    in_element_order(out + 4 * h);
  }
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

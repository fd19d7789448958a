#include "bernoulli_nll.h"

#include <type_traits>

#include "common/lane_sum.h"
#include "common/pixels.h"
#include "common/simd_log.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// Compilers widen bytes in twice the time of all the rest.
template <class T>
FASTGEN_INLINE Vec<T> load_target(const uint8_t* from) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return __builtin_convertvector((BitVec<T>)_mm512_maskz_cvtepu8_epi32(__mmask16(-1), bytes),
                                   Vec<T>);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return __builtin_convertvector((BitVec<T>)_mm256_cvtepu8_epi32(bytes), Vec<T>);
  }
#endif
  typedef uint8_t Bytes __attribute__((vector_size(kLanes<T>)));
  Bytes bytes;
  __builtin_memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, Vec<T>);
}
template <class T, class X>
FASTGEN_INLINE Vec<T> load_target(const X* from) {
  return load_converted<T>(from);
}

// exp(-x) of x >= 0, and 0 below e^-87 (double: e^-708); NaN stays NaN.
template <class T>
FASTGEN_INLINE Vec<T> decay(Vec<T> x) {
  const T limit = sizeof(T) == 4 ? T(87) : T(708);
  const Vec<T> value = bounded_exp<T>(smaller(broadcast<T>(limit), x), -kLog2E);
  return x > limit ? Vec<T>{} : value;
}

// Every term is |x| w + log(1 + t), t = exp(-|x|), with w the probability of the other answer than
// x's sign gives. Of the logarithms a lane keeps product - 1 for kTerms terms, which loses no digit
// of a small t: q + 1 = (1 + t_1) ... (1 + t_n) <= 2^32.
template <class T>
struct Terms {
  Vec<T> q{};
  LaneSum<T> linear, total;
  BitVec<T> outside{};

  static constexpr int kTerms = 32;

  FASTGEN_INLINE void add(Vec<T> x, Vec<T> y) {
    const Vec<T> a = absolute<T>(x), t = decay<T>(a);
    const Vec<T> w = (BitVec<T>)x < 0 ? y : T(1) - y;
    linear.add(w == T(0) ? Vec<T>{} : a * w);  // also where x is infinite
    q += t * (q + T(1));
    outside |= ~((y >= T(0)) & (y <= T(1)));
  }
  FASTGEN_INLINE void take_logarithm() {
    total.add(log1p<T>(q));
    q = Vec<T>{};
  }
};

template <class S, class X>
void forward_piece(const BernoulliArgs& args, int64_t unit) {
  using T = typename Arithmetic<S>::type;
  constexpr int64_t n = kLanes<T>;
  const Piece piece(unit, args.values);
  const S* x = piece.in<S>(args.logits);
  const X* y = piece.in<X>(args.target);
  const int64_t whole = piece.count / n * n;
  Terms<T> terms;
  for (int64_t i = 0; i < whole;) {
    const int64_t left = whole - i, step = n * Terms<T>::kTerms;
    const int64_t end = i + (left < step ? left : step);
    for (; i < end; i += n) terms.add(load_converted<T>(x + i), load_target<T>(y + i));
    terms.take_logarithm();
  }
  if (whole < piece.count) {
    S last_x[n];
    X last_y[n] = {};
    for (int64_t i = 0; i < n; ++i) store(T(-100), last_x + i);  // costs nothing
    for (int64_t i = whole; i < piece.count; ++i) {
      last_x[i - whole] = x[i];
      last_y[i - whole] = y[i];
    }
    terms.add(load_converted<T>(last_x), load_target<T>(last_y));
    terms.take_logarithm();
  }
  args.sums[unit] = static_cast<double>(sum_of_lanes<T>(terms.linear.lanes())) +
                    static_cast<double>(sum_of_lanes<T>(terms.total.lanes()));
  if (lane_bits<T>(terms.outside) != 0) args.outside->store(true, std::memory_order_relaxed);
}

// sigmoid(x) - y without cancelling: (a - t b) / (1 + t) with x's sign, where a = 1 - y, b = y for
// positive x and the other way round for negative.
template <class T>
FASTGEN_INLINE Vec<T> excess(Vec<T> x, Vec<T> y) {
  const BitVec<T> negative = (BitVec<T>)x < 0;
  const Vec<T> t = decay<T>(absolute<T>(x)), other = T(1) - y;
  const Vec<T> a = negative ? y : other, b = negative ? other : y;
  return turned<T>((a - t * b) / (t + T(1)), x);
}

// f(i, load, store) for vectors of a piece; the last one goes through arrays of whole vectors.
template <class T, class S, class X, class Y, class F>
FASTGEN_INLINE void map(const S* x, const X* y, Y* out, int64_t count, F f) {
  constexpr int64_t n = kLanes<T>;
  int64_t i = 0;
  for (; i + n <= count; i += n) {
    store_converted<T>(f(load_converted<T>(x + i), load_target<T>(y + i)), out + i);
  }
  if (i == count) return;
  S last_x[n] = {};
  X last_y[n] = {};
  Y last_out[n];
  for (int64_t k = i; k < count; ++k) last_x[k - i] = x[k], last_y[k - i] = y[k];
  store_converted<T>(f(load_converted<T>(last_x), load_target<T>(last_y)), last_out);
  for (int64_t k = i; k < count; ++k) out[k] = last_out[k - i];
}

template <class S, class X>
void backward_piece(const BernoulliArgs& args, int64_t unit) {
  using T = typename Arithmetic<S>::type;
  const Piece piece(unit, args.values);
  const S* x = piece.in<S>(args.logits);
  const X* y = piece.in<X>(args.target);
  const T g = static_cast<const T*>(args.grad_nll.data)[piece.sample * args.grad_nll.step];
  if (args.grad_logits.data != nullptr) {
    map<T>(x, y, piece.in<S>(args.grad_logits), piece.count,
           [g](Vec<T> x, Vec<T> y) { return g * excess<T>(x, y); });
  }
  if constexpr (!std::is_same_v<X, uint8_t>) {
    if (args.grad_target.data != nullptr) {
      map<T>(x, y, piece.in<X>(args.grad_target), piece.count,
             [g](Vec<T> x, Vec<T>) { return -g * x; });
    }
  }
}

template <class S, class X, bool kBackward>
void pieces(const BernoulliArgs& args, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    kBackward ? backward_piece<S, X>(args, unit) : forward_piece<S, X>(args, unit);
  }
}

template <class S, bool kBackward>
void range(const BernoulliArgs& args, int64_t begin, int64_t end) {
  switch (args.target_type) {
    case TargetType::kUint8:
      return pieces<S, uint8_t, kBackward>(args, begin, end);
    case TargetType::kFloat:
      return pieces<S, float, kBackward>(args, begin, end);
    default:
      return pieces<S, S, kBackward>(args, begin, end);
  }
}

}  // namespace

const BernoulliKernels bernoulli_nll_kernels = {
    {range<float, false>, range<float, true>},
    {range<double, false>, range<double, true>},
    {range<BFloat16, false>, range<BFloat16, true>},
    {range<Float16, false>, range<Float16, true>},
};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

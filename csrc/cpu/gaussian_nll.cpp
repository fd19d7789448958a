#include "gaussian_nll.h"

#include <cmath>
#include <type_traits>

#include "common/lane_sum.h"
#include "common/pixels.h"
#include "common/simd_math.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

constexpr double kLog2Pi = 1.83787706640934548356;

// No log-variances: one for all.
struct None {};

// A vector of values and what they are in units of their deviation. The deviation's inverse is
// applied twice rather than squared: it overflows later.
template <class T>
struct Residual {
  Vec<T> inverse, scaled;  // 1 / deviation, (target - mean) / deviation

  FASTGEN_INLINE Residual(Vec<T> mean, Vec<T> target, Vec<T> inverse) : inverse(inverse) {
    const Vec<T> r = target - mean;
    scaled = r == T(0) ? Vec<T>{} : r * inverse;  // an exact mean of variance 0 costs nothing
  }
  // (target - mean) / variance
  FASTGEN_INLINE Vec<T> pull() const { return scaled == T(0) ? Vec<T>{} : scaled * inverse; }
};

// Rows of a piece. Values beyond whole vectors go through arrays of one vector, filled up with
// mean = target and a log-variance of 0.
template <class S, class X, class L>
struct Values {
  using T = typename Arithmetic<S>::type;
  static constexpr int64_t n = kLanes<T>;
  static constexpr bool kOne = std::is_same_v<L, None>;
  const S* mean;
  const X* target;
  const L* logvar = nullptr;
  Vec<T> one_inverse;
  int64_t count;

  Values(const GaussianArgs& args, const Piece& piece)
      : mean(piece.in<S>(args.mean)),
        target(piece.in<X>(args.target)),
        one_inverse(broadcast<T>(static_cast<T>(std::exp(-0.5 * args.log_variance)))),
        count(piece.count) {
    if constexpr (!kOne) logvar = piece.in<L>(args.logvar);
  }

  // f(i, residual, log-variances, lanes)
  template <class F>
  FASTGEN_INLINE void for_each(F f) const {
    int64_t i = 0;
    for (; i + n <= count; i += n) {
      if constexpr (kOne) {
        f(i, residual(mean + i, target + i, one_inverse), Vec<T>{}, n);
      } else {
        const Vec<T> l = load_converted<T>(logvar + i);
        f(i, residual(mean + i, target + i, exp<T>(T(-0.5) * l)), l, n);
      }
    }
    if (i == count) return;
    S last_mean[n] = {};
    X last_target[n] = {};
    T last_logvar[n] = {};
    for (int64_t k = i; k < count; ++k) {
      last_mean[k - i] = mean[k];
      last_target[k - i] = target[k];
      if constexpr (!kOne) last_logvar[k - i] = load(logvar[k]);
    }
    const Vec<T> l = load_vector<T>(last_logvar);
    const Vec<T> inverse = kOne ? one_inverse : exp<T>(T(-0.5) * l);
    f(i, residual(last_mean, last_target, inverse), l, count - i);
  }

 private:
  FASTGEN_INLINE Residual<T> residual(const S* mean, const X* target, Vec<T> inverse) const {
    return Residual<T>(load_converted<T>(mean), load_converted<T>(target), inverse);
  }
};

template <class S, class X, class L>
void forward_piece(const GaussianArgs& args, int64_t unit) {
  using T = typename Arithmetic<S>::type;
  const Piece piece(unit, args.values);
  const Values<S, X, L> values(args, piece);
  LaneSum<T> squares, logs;
  values.for_each([&](int64_t, const Residual<T>& r, Vec<T> logvar, int64_t) {
    squares.add(r.scaled * r.scaled);
    if constexpr (!values.kOne) logs.add(logvar);
  });
  double constant = kLog2Pi;
  if (values.kOne) constant += args.log_variance;
  args.sums[unit] = 0.5 * (constant * static_cast<double>(piece.count) +
                           static_cast<double>(sum_of_lanes<T>(squares.lanes())) +
                           static_cast<double>(sum_of_lanes<T>(logs.lanes())));
}

template <class T, class S>
FASTGEN_INLINE void put(Vec<T> value, int64_t lanes, S* to) {
  if (lanes == kLanes<T>) {
    store_converted<T>(value, to);
    return;
  }
  for (int64_t k = 0; k < lanes; ++k) store(static_cast<T>(value[k]), to + k);
}

template <class S, class X, class L>
void backward_piece(const GaussianArgs& args, int64_t unit) {
  using T = typename Arithmetic<S>::type;
  const Piece piece(unit, args.values);
  const Values<S, X, L> values(args, piece);
  const T g = static_cast<const T*>(args.grad_nll.data)[piece.sample * args.grad_nll.step];
  S* by_mean = args.grad_mean.data == nullptr ? nullptr : piece.in<S>(args.grad_mean);
  X* by_target = args.grad_target.data == nullptr ? nullptr : piece.in<X>(args.grad_target);
  L* by_logvar = nullptr;
  if constexpr (!values.kOne) {
    if (args.grad_logvar.data != nullptr) by_logvar = piece.in<L>(args.grad_logvar);
  }
  LaneSum<T> squares;
  values.for_each([&](int64_t i, const Residual<T>& r, Vec<T>, int64_t lanes) {
    const Vec<T> pull = g * r.pull(), square = r.scaled * r.scaled;
    if (by_mean != nullptr) put<T>(-pull, lanes, by_mean + i);
    if (by_target != nullptr) put<T>(pull, lanes, by_target + i);
    if constexpr (values.kOne) {
      squares.add(square);
    } else {
      if (by_logvar != nullptr) put<T>(T(0.5) * g * (T(1) - square), lanes, by_logvar + i);
    }
  });
  if (args.sums != nullptr) {
    args.sums[unit] =
        0.5 * static_cast<double>(g) *
        (static_cast<double>(piece.count) - static_cast<double>(sum_of_lanes<T>(squares.lanes())));
  }
}

template <class S, class X, class L, bool kBackward>
void pieces(const GaussianArgs& args, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    kBackward ? backward_piece<S, X, L>(args, unit) : forward_piece<S, X, L>(args, unit);
  }
}

template <class S, class X, bool kBackward>
void of_logvar(const GaussianArgs& args, int64_t begin, int64_t end) {
  if (args.one_logvar) return pieces<S, X, None, kBackward>(args, begin, end);
  if (args.logvar_type == ValueType::kSame) return pieces<S, X, S, kBackward>(args, begin, end);
  pieces<S, X, float, kBackward>(args, begin, end);
}

template <class S, bool kBackward>
void range(const GaussianArgs& args, int64_t begin, int64_t end) {
  if (args.target_type == ValueType::kSame) return of_logvar<S, S, kBackward>(args, begin, end);
  of_logvar<S, float, kBackward>(args, begin, end);
}

}  // namespace

const GaussianKernels gaussian_nll_kernels = {
    {range<float, false>, range<float, true>},
    {range<double, false>, range<double, true>},
    {range<BFloat16, false>, range<BFloat16, true>},
    {range<Float16, false>, range<Float16, true>},
};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

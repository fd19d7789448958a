// Straight-line code over rows that lie in first-level cache: one pass over the rows per function.
#include "common/simd_math.h"
#include "cpu/sampler_parts.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

using namespace engine;

// Where an argument's rows are: behind pointers, or a fixed step apart.
template <class T>
struct Operand {
  const T* const* rows;
  const T* base;
  int64_t step, channel;
  bool broadcast;

  FASTGEN_INLINE const T* row(int64_t r) const {
    return (rows != nullptr ? rows[r] : base + r * step) + channel;
  }
  FASTGEN_INLINE Vec<T> load(const T* row, int64_t c) const {
    return broadcast ? fastgen::FASTGEN_ISA_NS::broadcast<T>(row[0]) : load_vector<T>(row + c);
  }
};

template <class T>
struct Pass {
  Operand<T> arguments[3];
  T* const* rows;  // the result's, or null
  T* base;         // padded, a fixed step apart
  int64_t step, count, channels;
};

template <class T, int kArguments, class F>
FASTGEN_INLINE void apply(const Pass<T>& pass, F f) {
  const Operand<T>&a = pass.arguments[0], &b = pass.arguments[1], &c = pass.arguments[2];
  const bool exact = pass.rows != nullptr;  // nothing behind the channels may be written
  for (int64_t r = 0; r < pass.count; ++r) {
    const T* from_a = a.row(r);
    const T* from_b = kArguments > 1 ? b.row(r) : nullptr;
    const T* from_c = kArguments > 2 ? c.row(r) : nullptr;
    T* to = exact ? pass.rows[r] : pass.base + r * pass.step;
    for (int64_t n = 0; n < pass.channels; n += kLanes<T>) {
      Vec<T> x = a.load(from_a, n), y = x, z = x;
      if constexpr (kArguments > 1) y = b.load(from_b, n);
      if constexpr (kArguments > 2) z = c.load(from_c, n);
      const Vec<T> result = f(x, y, z);
      const int64_t left = pass.channels - n;
      if (exact && left < kLanes<T>) {
        store_first<T>(result, static_cast<int>(left), to + n);
      } else {
        store_vector<T>(result, to + n);
      }
    }
  }
}

template <class T>
FASTGEN_INLINE Vec<T> one_where(BitVec<T> mask) {
  return mask ? broadcast<T>(T(1)) : Vec<T>{};
}

// torch's: NaN if either is.
template <class T>
FASTGEN_INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
  return a != a ? a : (b > a ? b : (b != b ? b : a));
}
template <class T>
FASTGEN_INLINE Vec<T> minimum(Vec<T> a, Vec<T> b) {
  return a != a ? a : (b < a ? b : (b != b ? b : a));
}

template <class T>
FASTGEN_INLINE Vec<T> sqrt(Vec<T> x) {
  return each_lane<T>(x, [](T v) { return static_cast<T>(__builtin_sqrt(v)); });
}
template <>
FASTGEN_INLINE Vec<float> sqrt<float>(Vec<float> x) {
  return each_lane<float>(x, [](float v) { return __builtin_sqrtf(v); });
}

template <class T>
FASTGEN_INLINE Vec<T> power(Vec<T> x, Vec<T> y) {
  T values[kLanes<T>], exponents[kLanes<T>];
  store_vector<T>(x, values);
  store_vector<T>(y, exponents);
  for (int i = 0; i < kLanes<T>; ++i) {
    values[i] = static_cast<T>(__builtin_pow(values[i], exponents[i]));
  }
  return load_vector<T>(values);
}

// The library's double functions: exact enough for float, and these are rare.
#define FASTGEN_BY_LANE(name) \
  each_lane<T>(x, [](T v) { return static_cast<T>(__builtin_##name(static_cast<double>(v))); })

template <class T>
FASTGEN_INLINE Vec<T> erf(Vec<T> x) {
  return FASTGEN_BY_LANE(erf);
}

// GELU's, hence worth a vector form: up to 1 the Maclaurin series, beyond it Abramowitz and Stegun
// 7.1.26; off by 2e-7 at most.
template <>
FASTGEN_INLINE Vec<float> erf<float>(Vec<float> x) {
  constexpr float series[] = {1.1283791671f,     -3.7612638903e-1f, 1.1283791671e-1f,
                              -2.6866170645e-2f, 5.2239776255e-3f,  -8.5483270235e-4f,
                              1.2055332982e-4f,  -1.4925650358e-5f, 1.6462114366e-6f,
                              -1.6365844691e-7f};
  constexpr float tail[] = {0.254829592f, -0.284496736f, 1.421413741f, -1.453152027f, 1.061405429f};
  const Vec<float> size = x < 0.f ? -x : x, square = x * x;
  Vec<float> near = broadcast(series[9]), far = broadcast(tail[4]);
  for (int n = 8; n >= 0; --n) near = near * square + series[n];
  const Vec<float> t = 1.f / (1.f + 0.3275911f * size);
  for (int n = 3; n >= 0; --n) far = far * t + tail[n];
  far = 1.f - far * t * exp<float>(-square);
  return size < 1.f ? near * x : (x < 0.f ? -far : far);
}

template <class T>
void run_pass(Pointwise function, const Pass<T>& pass) {
  using V = Vec<T>;
#define FASTGEN_CASE(name, arguments, expression)                              \
  case Pointwise::k_##name:                                                    \
    return apply<T, arguments>(pass, [](V x, V y, V z) FASTGEN_LAMBDA_INLINE { \
      (void)y, (void)z;                                                        \
      return expression;                                                       \
    });
#define FASTGEN_LAMBDA_INLINE __attribute__((always_inline))
  switch (function) {
    FASTGEN_CASE(copy, 1, x)
    FASTGEN_CASE(relu, 1, relu<T>(x))
    FASTGEN_CASE(elu, 1, elu<T>(x))
    FASTGEN_CASE(tanh, 1, tanh<T>(x))
    FASTGEN_CASE(sigmoid, 1, sigmoid<T>(x))
    FASTGEN_CASE(exp, 1, exp<T>(x))
    FASTGEN_CASE(expm1, 1, expm1<T>(x))
    FASTGEN_CASE(log, 1, FASTGEN_BY_LANE(log))
    FASTGEN_CASE(log1p, 1, FASTGEN_BY_LANE(log1p))
    FASTGEN_CASE(sqrt, 1, sqrt<T>(x))
    FASTGEN_CASE(rsqrt, 1, T(1) / sqrt<T>(x))
    FASTGEN_CASE(reciprocal, 1, T(1) / x)
    FASTGEN_CASE(abs, 1, x < T(0) ? -x : (x == T(0) ? V{} : x))
    FASTGEN_CASE(neg, 1, -x)
    FASTGEN_CASE(sign, 1, one_where<T>(x > T(0)) - one_where<T>(x < T(0)))
    FASTGEN_CASE(floor, 1, FASTGEN_BY_LANE(floor))
    FASTGEN_CASE(ceil, 1, FASTGEN_BY_LANE(ceil))
    FASTGEN_CASE(round, 1, FASTGEN_BY_LANE(rint))
    FASTGEN_CASE(sin, 1, FASTGEN_BY_LANE(sin))
    FASTGEN_CASE(cos, 1, FASTGEN_BY_LANE(cos))
    FASTGEN_CASE(erf, 1, erf<T>(x))
    FASTGEN_CASE(add, 2, x + y)
    FASTGEN_CASE(sub, 2, x - y)
    FASTGEN_CASE(mul, 2, x * y)
    FASTGEN_CASE(div, 2, x / y)
    FASTGEN_CASE(maximum, 2, maximum<T>(x, y))
    FASTGEN_CASE(minimum, 2, minimum<T>(x, y))
    FASTGEN_CASE(pow, 2, power<T>(x, y))
    FASTGEN_CASE(eq, 2, one_where<T>(x == y))
    FASTGEN_CASE(ne, 2, one_where<T>(x != y))
    FASTGEN_CASE(lt, 2, one_where<T>(x < y))
    FASTGEN_CASE(le, 2, one_where<T>(x <= y))
    FASTGEN_CASE(gt, 2, one_where<T>(x > y))
    FASTGEN_CASE(ge, 2, one_where<T>(x >= y))
    FASTGEN_CASE(where, 3, x != T(0) ? y : z)
    case Pointwise::kCount:
      return;
  }
#undef FASTGEN_CASE
}

template <class T>
void run_code_as(const Instruction& i, const CodeRows<T>& rows) {
  const int64_t temporary_step = padded(i.nch);
  for (const CodeStep* line = i.code; line != i.code + i.code_count; ++line) {
    Pass<T> pass;
    pass.count = rows.count;
    pass.channels = i.nch;
    for (int n = 0; n < 3; ++n) {
      const Argument& argument = line->arguments[n];
      Operand<T>& operand = pass.arguments[n];
      operand = {nullptr, nullptr, 0, argument.channel, false};
      switch (argument.source) {
        case Argument::kAcc:
          operand.base = rows.acc;
          operand.step = rows.acc_step;
          break;
        case Argument::kOperand:
          operand.rows = rows.operands + argument.index * kChunkRows;
          operand.broadcast = i.columns[i.first_operand + argument.index].broadcast;
          if (operand.broadcast) operand.channel = 0;
          break;
        case Argument::kConst:
          operand.base = static_cast<const T*>(i.consts) + argument.index * i.const_step;
          break;
        case Argument::kTemporary:
          operand.base = rows.temporaries + argument.index * kCodeRows * temporary_step;
          operand.step = temporary_step;
          break;
      }
    }
    pass.rows = line->result < 0 ? rows.out + (-1 - line->result) * kChunkRows : nullptr;
    pass.step = temporary_step;
    pass.base =
        line->result < 0 ? nullptr : rows.temporaries + line->result * kCodeRows * temporary_step;
    run_pass<T>(line->function, pass);
  }
}

}  // namespace

void run_code(const Instruction& i, const CodeRows<float>& rows) { run_code_as<float>(i, rows); }
void run_code(const Instruction& i, const CodeRows<double>& rows) { run_code_as<double>(i, rows); }

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

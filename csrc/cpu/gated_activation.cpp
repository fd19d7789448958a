#include "gated_activation.h"

#include "common/vec_math.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// One run of consecutive elements: a and b are half a channel count apart, so is the condition,
// which advances with the elements (stride 1) or stays (0). Float32 results are as good as with
// separate tanh and sigmoid, at two exponentials and one division an element.
template <int kStride, bool kConditioned, class S>
inline void forward_run(const S* __restrict a, const S* __restrict b, const S* ca, const S* cb,
                        S* __restrict y, int64_t n) {
  using T = typename Arithmetic<S>::type;
  for (int64_t i = 0; i < n; ++i) {
    T u = load(a[i]), v = load(b[i]);
    if (kConditioned) u += load(ca[i * kStride]), v += load(cb[i * kStride]);
    store(Gate<T>(u, v).value(), y + i);
  }
}

template <int kStride, bool kConditioned, class S>
inline void backward_run(const S* __restrict a, const S* __restrict b, const S* ca, const S* cb,
                         const S* __restrict grad, S* __restrict grad_a, S* __restrict grad_b,
                         int64_t n) {
  using T = typename Arithmetic<S>::type;
  for (int64_t i = 0; i < n; ++i) {
    T u = load(a[i]), v = load(b[i]);
    if (kConditioned) u += load(ca[i * kStride]), v += load(cb[i * kStride]);
    const Gate<T> gate(u, v);
    const T g = load(grad[i]);
    store(g * gate.d_tanh(), grad_a + i);
    store(g * gate.d_sigmoid(), grad_b + i);
  }
}

// Where unit u begins, in each tensor; a unit is `length` elements of a and as many of b.
template <class S>
struct Unit {
  int64_t a, b, condition_a, condition_b, y, length;
  bool condition_moves;

  Unit(const GatedActivationArgs<S>& args, int64_t u) {
    const int64_t c = args.channels, p = args.pixels;
    if (args.channels_last) {
      const int64_t sample = u / p;
      length = c;
      a = u * 2 * c, b = a + c, y = u * c;
      condition_moves = true;
      condition_a = args.kind == Condition::kPerPixel ? a : sample * 2 * c;
      condition_b = condition_a + c;
    } else {
      const int64_t sample = u / c, channel = u % c;
      length = p;
      a = (sample * 2 * c + channel) * p, b = a + c * p, y = u * p;
      condition_moves = args.kind == Condition::kPerPixel;
      condition_a = condition_moves ? a : sample * 2 * c + channel;
      condition_b = condition_moves ? b : condition_a + c;
    }
  }
};

template <class S>
void forward(const GatedActivationArgs<S>& args, int64_t begin, int64_t end) {
  for (int64_t u = begin; u < end; ++u) {
    const Unit<S> at(args, u);
    const S *a = args.x + at.a, *b = args.x + at.b;
    const S *ca = args.condition + at.condition_a, *cb = args.condition + at.condition_b;
    S* y = args.y + at.y;
    if (args.kind == Condition::kNone) {
      forward_run<0, false>(a, b, a, b, y, at.length);
    } else if (at.condition_moves) {
      forward_run<1, true>(a, b, ca, cb, y, at.length);
    } else {
      forward_run<0, true>(a, b, ca, cb, y, at.length);
    }
  }
}

template <class S>
inline void gradient_of_unit(const GatedActivationArgs<S>& args, const Unit<S>& at, int64_t from,
                             int64_t n) {
  const S *a = args.x + at.a + from, *b = args.x + at.b + from, *grad = args.grad_y + at.y + from;
  S *grad_a = args.grad_x + at.a + from, *grad_b = args.grad_x + at.b + from;
  if (args.kind == Condition::kNone) {
    backward_run<0, false>(a, b, a, b, grad, grad_a, grad_b, n);
    return;
  }
  const int64_t moved = at.condition_moves ? from : 0;
  const S *ca = args.condition + at.condition_a + moved,
          *cb = args.condition + at.condition_b + moved;
  if (at.condition_moves) {
    backward_run<1, true>(a, b, ca, cb, grad, grad_a, grad_b, n);
  } else {
    backward_run<0, true>(a, b, ca, cb, grad, grad_a, grad_b, n);
  }
}

template <class S>
inline void add(const S* __restrict other, S* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(load(out[i]) + load(other[i]), out + i);
}

template <class S>
inline void add_grad_pre(const GatedActivationArgs<S>& args, const Unit<S>& at, int64_t from,
                         int64_t n) {
  if (args.grad_pre == nullptr) return;
  add(args.grad_pre + at.a + from, args.grad_x + at.a + from, n);
  add(args.grad_pre + at.b + from, args.grad_x + at.b + from, n);
}

// Sums over pixels run in double and in pixel order: the same bits for any split.
template <class S>
inline void sum_row(const S* values, int64_t n, S* out) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += load(values[i]);
  store(static_cast<typename Arithmetic<S>::type>(total), out);
}

template <class S>
void backward_block_with_sums(const GatedActivationArgs<S>& args, int64_t unit) {
  const int64_t c = args.channels, blocks = (c + kGateChannelBlock - 1) / kGateChannelBlock;
  const int64_t sample = unit / blocks, from = unit % blocks * kGateChannelBlock;
  const int64_t n = c - from < kGateChannelBlock ? c - from : kGateChannelBlock;
  double sum_a[kGateChannelBlock] = {}, sum_b[kGateChannelBlock] = {};
  for (int64_t p = 0; p < args.pixels; ++p) {
    const Unit<S> at(args, sample * args.pixels + p);
    gradient_of_unit(args, at, from, n);
    const S *grad_a = args.grad_x + at.a + from, *grad_b = args.grad_x + at.b + from;
    for (int64_t i = 0; i < n; ++i) sum_a[i] += load(grad_a[i]), sum_b[i] += load(grad_b[i]);
    add_grad_pre(args, at, from, n);
  }
  using T = typename Arithmetic<S>::type;
  S* out = args.grad_condition + sample * 2 * c + from;
  for (int64_t i = 0; i < n; ++i) {
    store(static_cast<T>(sum_a[i]), out + i);
    store(static_cast<T>(sum_b[i]), out + c + i);
  }
}

template <class S>
void backward(const GatedActivationArgs<S>& args, int64_t begin, int64_t end) {
  for (int64_t u = begin; u < end; ++u) {
    if (args.channels_last && args.grad_condition != nullptr) {
      backward_block_with_sums(args, u);
      continue;
    }
    const Unit<S> at(args, u);
    gradient_of_unit(args, at, 0, at.length);
    if (args.grad_condition != nullptr) {
      sum_row(args.grad_x + at.a, at.length, args.grad_condition + at.condition_a);
      sum_row(args.grad_x + at.b, at.length, args.grad_condition + at.condition_b);
    }
    add_grad_pre(args, at, 0, at.length);
  }
}

}  // namespace

const GatedActivationKernels gated_activation_kernels = {
    {forward<float>, backward<float>},
    {forward<double>, backward<double>},
    {forward<BFloat16>, backward<BFloat16>},
    {forward<Float16>, backward<Float16>},
};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

#include "vq_quantize_backward.h"

#include <type_traits>

#include "common/pixels.h"
#include "common/simd_math.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

constexpr int64_t kAhead = 4;  // rows whose codes are fetched before they are needed

// Rows of adjacent values in arithmetic type, in place or in scratch memory.
template <class T>
struct DenseRows {
  T* data;
  int64_t step;

  T* at(int64_t row) const { return data + row * step; }
};

template <class S, class T>
bool in_place(const StridedRows& rows) {
  return std::is_same_v<S, T> && rows.axes == 1 && rows.value == 1;
}

template <class S, class T>
DenseRows<const T> import_rows(const StridedRows& from, int64_t head, int64_t begin, int64_t end,
                               int64_t values, T* scratch) {
  const S* data = static_cast<const S*>(from.data) + head;
  if constexpr (std::is_same_v<S, T>) {
    if (in_place<S, T>(from)) return {data + begin * from.steps[0], from.steps[0]};
  }
  for_each_run(from, begin, end, [&](int64_t offset, int64_t step, int64_t count, int64_t row) {
    copy_pixels<T>(data + offset, from.value, step, scratch + (row - begin) * values, int64_t{1},
                   values, values, count);
  });
  return {scratch, values};
}

template <class S, class T>
void export_rows(const T* scratch, const StridedRows& to, int64_t head, int64_t begin, int64_t end,
                 int64_t values) {
  S* data = static_cast<S*>(to.data) + head;
  for_each_run(to, begin, end, [&](int64_t offset, int64_t step, int64_t count, int64_t row) {
    copy_pixels<T>(scratch + (row - begin) * values, int64_t{1}, values, data + offset, to.value,
                   step, values, count);
  });
}

// How sums read: a vector from element i on, or element i.
template <class T>
struct VectorAt {
  int64_t i;
  FASTGEN_INLINE Vec<T> operator()(const T* values) const { return load_vector<T>(values + i); }
};
template <class T>
struct ElementAt {
  int64_t i;
  FASTGEN_INLINE T operator()(const T* values) const { return values[i]; }
};

// N sums over n elements at once, in an order that depends on n alone: add(at, totals) adds the
// terms of what `at` reads.
template <int N, class T, class F>
FASTGEN_INLINE void sum_over(int64_t n, T* sums, F add) {
  Vec<T> totals[N] = {};
  for (int k = 0; k < N; ++k) sums[k] = 0;
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) add(VectorAt<T>{i}, totals);
  for (; i < n; ++i) add(ElementAt<T>{i}, sums);
  for (int k = 0; k < N; ++k) sums[k] += sum_of_lanes<T>(totals[k]);
}

constexpr double kLeastNorm = 1e-6;  // that the rotation divides by

// grad_x = of_g g + of_x x + of_q q
template <class T>
struct Turn {
  T of_g, of_x, of_q;
};

// The transpose of the rotation and scaling that takes x to its code q, both held constant:
// s (g - 2 (g w) w + 2 (g v) u) with u = x / |x|, v = q / |q|, w = (u + v) / |u + v|,
// s = |q| / |x|.
template <class T>
Turn<T> turn_back(const T* g, const T* x, const T* q, int64_t n) {
  const auto inverse = [](T norm) { return 1 / (norm < T(kLeastNorm) ? T(kLeastNorm) : norm); };
  T dots[5];  // x x, q q, x q, g x, g q
  sum_over<5>(n, dots, [&](auto at, auto* totals) {
    const auto a = at(x), b = at(q), c = at(g);
    totals[0] += a * a;
    totals[1] += b * b;
    totals[2] += a * b;
    totals[3] += c * a;
    totals[4] += c * b;
  });
  const T x_norm = __builtin_sqrt(dots[0]), q_norm = __builtin_sqrt(dots[1]);
  const T per_x = inverse(x_norm), per_q = inverse(q_norm);
  T sums[2] = {dots[0] * per_x * per_x + 2 * dots[2] * per_x * per_q + dots[1] * per_q * per_q,
               dots[3] * per_x + dots[4] * per_q};  // |u + v|^2, g (u + v)
  if (!(sums[0] > T(0.5))) {  // they are nearly opposite: the terms above cancel
    sum_over<2>(n, sums, [&](auto at, auto* totals) {
      const auto w = at(x) * per_x + at(q) * per_q;
      totals[0] += w * w;
      totals[1] += at(g) * w;
    });
  }
  // opposite vectors have no such rotation: they are left scaled
  const bool opposite = sums[0] < T(kLeastNorm * kLeastNorm);
  const T of_w = opposite ? T(0) : 2 * sums[1] / sums[0], of_u = 2 * dots[4] * per_q;
  const T scale = q_norm * per_x;
  return {scale, scale * (of_u - of_w) * per_x, -scale * of_w * per_q};
}

template <class T>
void turned(const Turn<T>& turn, const T* __restrict g, const T* __restrict x,
            const T* __restrict q, T pull, T* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = turn.of_g * g[i] + turn.of_x * x[i] + turn.of_q * q[i] + pull * (x[i] - q[i]);
  }
}

template <class T>
void straight_through(const T* __restrict g, const T* __restrict x, const T* __restrict q, T pull,
                      T* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = g[i] + pull * (x[i] - q[i]);
}

template <class S, class T>
void unit(const VqQuantizeBackwardArgs& args, int64_t head, int64_t begin, int64_t end,
          void* scratch) {
  const int64_t n = args.values, count = end - begin;
  int64_t* indices = static_cast<int64_t*>(scratch);
  T* pulls = reinterpret_cast<T*>(indices + args.block);
  T* copies = pulls + args.block;
  const int64_t size = args.block * n;

  for_each_run(args.indices, begin, end, [&](int64_t offset, int64_t step, int64_t run, int64_t r) {
    offset += head * args.index_head;
    const int64_t* from = static_cast<const int64_t*>(args.indices.data) + offset;
    for (int64_t i = 0; i < run; ++i) indices[r - begin + i] = from[i * step];
    if (args.weight == nullptr) return;
    const T* weight = static_cast<const T*>(args.weight) + offset * args.weight_step;
    for (int64_t i = 0; i < run; ++i) {
      pulls[r - begin + i] = T(2) / n * weight[i * step * args.weight_step];
    }
  });
  const auto x = import_rows<S, T>(args.x, head * args.x_head, begin, end, n, copies);
  DenseRows<const T> grad{};
  if (args.grad.data != nullptr) {
    grad = import_rows<S, T>(args.grad, head * args.grad_head, begin, end, n, copies + size);
  }
  DenseRows<T> out{copies + 2 * size, n};
  const bool direct = in_place<S, T>(args.grad_x);
  if (direct) {
    const int64_t step = args.grad_x.steps[0];
    out = {static_cast<T*>(args.grad_x.data) + head * args.grad_x_head + begin * step, step};
  }

  const T* codes = static_cast<const T*>(args.codes) + head * args.codes_per_head * n;
  for (int64_t r = 0; r < count; ++r) {
    if (r + kAhead < count && indices[r + kAhead] >= 0)
      prefetch(codes + indices[r + kAhead] * n, n);
    T* to = out.at(r);
    const T *from = x.at(r), *code = codes + (indices[r] < 0 ? 0 : indices[r]) * n;
    if (indices[r] < 0 || (grad.data == nullptr && args.weight == nullptr)) {
      for (int64_t i = 0; i < n; ++i) to[i] = 0;
    } else if (grad.data == nullptr) {
      for (int64_t i = 0; i < n; ++i) to[i] = pulls[r] * (from[i] - code[i]);
    } else if (args.rotation) {
      const T pull = args.weight != nullptr ? pulls[r] : T(0);
      turned(turn_back(grad.at(r), from, code, n), grad.at(r), from, code, pull, to, n);
    } else if (args.weight != nullptr) {
      straight_through(grad.at(r), from, code, pulls[r], to, n);
    } else {
      __builtin_memcpy(to, grad.at(r), n * sizeof(T));
    }
  }
  if (!direct) export_rows<S, T>(out.data, args.grad_x, head * args.grad_x_head, begin, end, n);
}

template <class S, class T>
void backward(const VqQuantizeBackwardArgs& args, int64_t begin, int64_t end, void* scratch) {
  const int64_t blocks = (args.rows + args.block - 1) / args.block;
  for (int64_t u = begin; u < end; ++u) {
    const int64_t first = u % blocks * args.block, last = first + args.block;
    unit<S, T>(args, u / blocks, first, last < args.rows ? last : args.rows, scratch);
  }
}

}  // namespace

const VqQuantizeBackwardKernels vq_quantize_backward_kernels = {FASTGEN_VQ_KERNELS(backward)};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

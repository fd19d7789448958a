#include "reparam_kl.h"

#include <algorithm>
#include <type_traits>

#include "common/simd_tail.h"
#include "philox_stream.h"
#include "reparam_latent.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// What a loop over columns works on at a time: its arrays stay in the first-level cache.
constexpr int64_t kSpan = 512;
// Rows are taken together up to so many columns, one draw of z after the other: noise is made in
// the order of z's elements.
constexpr int64_t kBlock = kReparamPiece;
// z - mu has as many digits as z, so eps is taken from z while mu is below so many standard
// deviations. The error of logvar's gradient there is 3e-7 of its largest value, at 32 6e-7;
// PyTorch's own is 1e-7.
constexpr int kFarMean = 16;

// The lanes of one step of a loop over a span: all, or at the span's end the first few.
template <class T>
struct WholeStep {
  FASTGEN_INLINE Vec<T> load(const T* from) const { return load_vector<T>(from); }
  FASTGEN_INLINE void store(Vec<T> v, T* to) const { store_vector<T>(v, to); }
  FASTGEN_INLINE Vec<T> or_zero(Vec<T> v) const { return v; }
};

template <class T>
struct LastStep {
  int64_t count;

  FASTGEN_INLINE Vec<T> load(const T* from) const { return load_part<T>(from, count); }
  FASTGEN_INLINE void store(Vec<T> v, T* to) const { store_part<T>(v, count, to); }
  FASTGEN_INLINE Vec<T> or_zero(Vec<T> v) const { return first_lanes<T>(count) ? v : Vec<T>{}; }
};

// f(i, step) for the columns i, i + 1 ... of each step.
template <class T, class F>
FASTGEN_INLINE void for_each_step(int64_t count, F f) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) f(i, WholeStep<T>());
  if (i < count) f(i, LastStep<T>{count - i});
}

// A run of columns of one row, in arithmetic type.
template <class T>
struct Span {
  const T *mu, *raw, *prior_mu, *prior_raw;
  int64_t count;

  template <bool kPrior, class Step>
  FASTGEN_INLINE LatentInputs<T> load(int64_t i, Step step) const {
    LatentInputs<T> in{step.load(mu + i), step.load(raw + i), {}, {}};
    if constexpr (kPrior) {
      in.prior_mu = step.load(prior_mu + i);
      in.prior_raw = step.load(prior_raw + i);
    }
    return in;
  }
};

// The results for one variable of a row: z and the doubled divergence, or two gradients.
template <class T>
struct Results {
  Vec<T> first, second;
};

// The careful functions take and give vectors: what has an address is stored in every step.
template <class T>
__attribute__((noinline)) Results<T> careful_forward(Vec<T> mu, Vec<T> raw, Vec<T> prior_mu,
                                                     Vec<T> prior_raw, Vec<T> eps, bool prior,
                                                     const LatentSettings<T>& settings,
                                                     uint32_t usual, Vec<T> first, Vec<T> second) {
  for (int i = 0; i < kLanes<T>; ++i) {
    if (usual >> i & 1) continue;
    const CarefulLatent latent(mu[i], raw[i], prior_mu[i], prior_raw[i], prior, settings);
    first[i] = static_cast<T>(mu[i] + CarefulLatent::product(latent.std, eps[i]));
    const double kl = settings.free > 0 && latent.kl < settings.free ? settings.free : latent.kl;
    second[i] = static_cast<T>(2 * kl);
  }
  return {first, second};
}

// z, and the sum of the doubled divergences.
template <class T, bool kPrior, bool kPlain>
FASTGEN_INLINE Vec<T> forward_span(const Span<T> span, const T* eps,
                                   const LatentSettings<T>& settings, T* z) {
  Vec<T> total{};
  for_each_step<T>(span.count, [&](int64_t i, auto step) __attribute__((always_inline)) {
    const LatentInputs<T> in = span.template load<kPrior>(i, step);
    const Latent<T, kPrior, kPlain> latent(in, settings);
    const Vec<T> noise = step.load(eps + i);
    Results<T> results{in.mu + latent.std * noise, latent.twice_kl};
    if constexpr (!kPlain) {
      const Vec<T> least = broadcast<T>(2 * settings.least);
      if (settings.free > 0) results.second = results.second < least ? least : results.second;
    }
    if (__builtin_expect(latent.usual != kAllLanes<T>, 0)) {
      results = careful_forward<T>(in.mu, in.raw, in.prior_mu, in.prior_raw, noise, kPrior,
                                   settings, latent.usual, results.first, results.second);
    }
    step.store(results.first, z + i);
    total += step.or_zero(results.second);
  });
  return total;
}

// A span's upstream gradients: of the divergence, and of z with its products with eps, or with z.
template <class T>
struct Upstream {
  T kl;
  const T *z, *eps_product, *drawn;
  int64_t first;  // the span's first element of z
};

template <class T>
__attribute__((noinline)) Results<T> careful_backward(Vec<T> mu, Vec<T> raw, Vec<T> prior_mu,
                                                      Vec<T> prior_raw, Vec<T> g,
                                                      Vec<T> eps_product, T k, bool prior,
                                                      const LatentSettings<T>& settings,
                                                      uint32_t usual, Vec<T> first, Vec<T> second) {
  for (int i = 0; i < kLanes<T>; ++i) {
    if (usual >> i & 1) continue;
    const CarefulLatent latent(mu[i], raw[i], prior_mu[i], prior_raw[i], prior, settings);
    const double wanted = settings.free > 0 && latent.kl < settings.free ? 0 : k;
    const double through = CarefulLatent::product(eps_product[i], latent.std) +
                           CarefulLatent::product(wanted, latent.expm1);
    first[i] = static_cast<T>(g[i] + CarefulLatent::product(wanted, latent.over_variance));
    second[i] = latent.clamped_away
                    ? T(0)
                    : static_cast<T>(CarefulLatent::product(through, latent.half_slope));
  }
  return {first, second};
}

template <class T>
FASTGEN_INLINE Vec<T> product_or_zero(Vec<T> a, Vec<T> b) {
  return ((a == T(0)) | (b == T(0))) ? Vec<T>{} : a * b;
}

template <class T, bool kPrior, bool kPlain, bool kFromZ>
FASTGEN_INLINE void backward_span(const Span<T> span, const Upstream<T> upstream,
                                  const LatentSettings<T>& settings, NormalStream<T>& stream,
                                  T* grad_mu, T* grad_raw) {
  const Vec<T> k = broadcast<T>(upstream.kl);
  const uint32_t finite_k = lanes_below<T>(k, T(INFINITY));
  const T* eps = nullptr;
  for_each_step<T>(span.count, [&](int64_t i, auto step) __attribute__((always_inline)) {
    const LatentInputs<T> in = span.template load<kPrior>(i, step);
    const Latent<T, kPrior, kPlain> latent(in, settings);
    const Vec<T> g = step.load(upstream.z + i);
    uint32_t usual = latent.usual & finite_k & lanes_below<T>(g, T(INFINITY));
    Vec<T> eps_product{}, through;
    if constexpr (kFromZ) {
      through = g * (step.load(upstream.drawn + i) - in.mu);
      const BitVec<T> near = absolute<T>(in.mu) < latent.std * T(kFarMean);
      if ((lane_bits<T>(near) & usual) != kAllLanes<T>) {  // near: mu is finite too
        usual &= lanes_below<T>(in.mu, T(INFINITY));
        if (eps == nullptr) eps = stream.read(upstream.first, span.count);
        eps_product = product_or_zero<T>(g, step.load(eps + i));
        through = near ? through : eps_product * latent.std;
      }
    } else {
      usual &= lanes_below<T>(in.mu, T(INFINITY));
      eps_product = step.load(upstream.eps_product + i);
      through = eps_product * latent.std;
    }
    Vec<T> wanted = k;
    if constexpr (!kPlain) {
      if (settings.free > 0) wanted = latent.twice_kl < 2 * settings.least ? Vec<T>{} : k;
    }
    Results<T> results{g + wanted * latent.over_variance,
                       (through + wanted * latent.expm1) * half_slope<T, kPlain>(in.raw, settings)};
    if constexpr (!kPlain) results.second = latent.clamped_away ? Vec<T>{} : results.second;
    if (__builtin_expect(usual != kAllLanes<T>, 0)) {
      results =
          careful_backward<T>(in.mu, in.raw, in.prior_mu, in.prior_raw, g, eps_product, upstream.kl,
                              kPrior, settings, usual, results.first, results.second);
    }
    if (grad_mu != nullptr) step.store(results.first, grad_mu + i);
    if (grad_raw != nullptr) step.store(results.second, grad_raw + i);
  });
}

template <class T>
__attribute__((noinline)) Results<T> careful_prior(Vec<T> mu, Vec<T> raw, Vec<T> prior_mu,
                                                   Vec<T> prior_raw, T k,
                                                   const LatentSettings<T>& settings,
                                                   uint32_t usual, Vec<T> first, Vec<T> second) {
  for (int i = 0; i < kLanes<T>; ++i) {
    if (usual >> i & 1) continue;
    const CarefulLatent latent(mu[i], raw[i], prior_mu[i], prior_raw[i], true, settings);
    const double wanted = settings.free > 0 && latent.kl < settings.free ? 0 : k;
    const double r = mu[i] == prior_mu[i] ? 0 : double(mu[i]) - prior_mu[i];
    const double squares = CarefulLatent::product(r, latent.over_variance);
    first[i] = static_cast<T>(-CarefulLatent::product(wanted, latent.over_variance));
    second[i] = static_cast<T>(-CarefulLatent::product(
        CarefulLatent::product(wanted, latent.expm1 + squares), latent.prior_half_slope));
  }
  return {first, second};
}

// Adds one sample's gradients of the prior.
template <class T, bool kPlain>
void prior_span(const Span<T> span, T k_of_sample, const LatentSettings<T>& settings, T* sum_mu,
                T* sum_raw) {
  const Vec<T> k = broadcast<T>(k_of_sample);
  const uint32_t finite_k = lanes_below<T>(k, T(INFINITY));
  for_each_step<T>(span.count, [&](int64_t i, auto step) __attribute__((always_inline)) {
    const LatentInputs<T> in = span.template load<true>(i, step);
    const Latent<T, true, kPlain> latent(in, settings);
    const uint32_t usual = latent.usual & finite_k & lanes_below<T>(in.mu, T(INFINITY)) &
                           lanes_below<T>(latent.squares, T(INFINITY));
    Vec<T> wanted = k;
    if constexpr (!kPlain) {
      if (settings.free > 0) wanted = latent.twice_kl < 2 * settings.least ? Vec<T>{} : k;
    }
    Results<T> results{-(wanted * latent.over_variance),
                       -(wanted * (latent.expm1 + latent.squares) *
                         half_slope<T, kPlain>(in.prior_raw, settings))};
    if (__builtin_expect(usual != kAllLanes<T>, 0)) {
      results = careful_prior<T>(in.mu, in.raw, in.prior_mu, in.prior_raw, k_of_sample, settings,
                                 usual, results.first, results.second);
    }
    store_vector<T>(load_vector<T>(sum_mu + i) + results.first, sum_mu + i);
    store_vector<T>(load_vector<T>(sum_raw + i) + results.second, sum_raw + i);
  });
}

// `count` values in arithmetic type: where they are, or converted into scratch.
template <class T, class S>
FASTGEN_INLINE const T* widened(const S* from, int64_t count, T* scratch) {
  if constexpr (std::is_same_v<S, T>) {
    return from;
  } else {
    for (int64_t i = 0; i < count; ++i) scratch[i] = load(from[i]);
    return scratch;
  }
}

template <class T, class S>
FASTGEN_INLINE void narrowed(const T* from, int64_t count, S* to) {
  for (int64_t i = 0; i < count; ++i) store(from[i], to + i);
}

// Where results of arithmetic type go: to memory itself, or by way of scratch.
template <class T, class S>
FASTGEN_INLINE T* target(S* to, T* scratch) {
  if constexpr (std::is_same_v<S, T>) {
    return to;
  } else {
    return to == nullptr ? nullptr : scratch;
  }
}

template <class T, class S>
FASTGEN_INLINE void finish_target(const T* scratch, int64_t count, S* to) {
  if constexpr (!std::is_same_v<S, T>) {
    if (to != nullptr) narrowed(scratch, count, to);
  }
}

template <class S, class T>
struct Inputs {
  const ReparamKlArgs<S, T>& args;
  T scratch[4][kSpan];

  explicit Inputs(const ReparamKlArgs<S, T>& args) : args(args) {}

  FASTGEN_INLINE Span<T> span(int64_t row, int64_t column, int64_t count) {
    Span<T> span{};
    span.count = count;
    span.mu = widened(args.mu + row * args.mu_step + column, count, scratch[0]);
    span.raw = widened(args.logvar + row * args.logvar_step + column, count, scratch[1]);
    if (args.prior_mu != nullptr) {
      const int64_t at = args.prior_index != nullptr ? args.prior_index[row] : row;
      span.prior_mu = widened(args.prior_mu + at * args.prior_mu_step + column, count, scratch[2]);
      span.prior_raw =
          widened(args.prior_logvar + at * args.prior_logvar_step + column, count, scratch[3]);
    }
    return span;
  }
};

// Units (row, piece of its columns).
struct Pieces {
  int64_t columns, count;

  explicit Pieces(int64_t columns)
      : columns(columns),
        count(std::max<int64_t>(1, (columns + kReparamPiece - 1) / kReparamPiece)) {}

  int64_t row(int64_t unit) const { return unit / count; }
  int64_t begin(int64_t unit) const { return unit % count * kReparamPiece; }
  int64_t end(int64_t unit) const { return std::min(columns, begin(unit) + kReparamPiece); }
  int64_t units_in_block() const {
    return std::max<int64_t>(1, kBlock / std::max<int64_t>(1, std::min(columns, kReparamPiece)));
  }

  // f(row, column, count) for the spans of units [begin, end)
  template <class F>
  FASTGEN_INLINE void for_each_span(int64_t first, int64_t last, F f) const {
    for (int64_t unit = first; unit < last; ++unit) {
      for (int64_t c = begin(unit); c < end(unit); c += kSpan) {
        f(row(unit), c, std::min(kSpan, end(unit) - c));
      }
    }
  }
};

template <class S, class T, bool kPrior, bool kPlain>
void forward(const ReparamKlArgs<S, T>& args, int64_t begin, int64_t end) {
  const LatentSettings<T> settings(args);
  const Pieces pieces(args.columns);
  Inputs<S, T> inputs(args);
  NormalStream<T> stream(args.seed);
  T eps_scratch[kSpan], z_scratch[kSpan];
  const auto draw = [&](int64_t sample, int64_t row, int64_t column, int64_t count) {
    const int64_t first = (sample * args.rows + row) * args.columns + column;
    const T* eps = args.eps != nullptr ? widened(args.eps + first, count, eps_scratch)
                                       : stream.read(first, count);
    S* z = args.z + first;
    const Vec<T> twice_kl = forward_span<T, kPrior, kPlain>(inputs.span(row, column, count), eps,
                                                            settings, target<T>(z, z_scratch));
    finish_target(z_scratch, count, z);
    return twice_kl;
  };
  const auto last_element = [&](int64_t sample, int64_t last_unit) {
    const int64_t unit = last_unit - 1;
    return (sample * args.rows + pieces.row(unit)) * args.columns + pieces.end(unit);
  };
  for (int64_t first = begin, last; first < end; first = last) {
    last = args.samples == 1 ? end : std::min(end, first + pieces.units_in_block());
    stream.stop_at(last_element(0, last));
    for (int64_t unit = first; unit < last; ++unit) {
      Vec<T> sum{};
      pieces.for_each_span(unit, unit + 1, [&](int64_t row, int64_t column, int64_t count) {
        sum += draw(0, row, column, count);
      });
      const T total = sum_of_lanes<T>(sum);
      if (args.sums != nullptr) {
        args.sums[unit] = 0.5 * static_cast<double>(total);
      } else {
        args.kl[unit] = T(0.5) * total;
      }
    }
    for (int64_t sample = 1; sample < args.samples; ++sample) {
      stream.stop_at(last_element(sample, last));
      pieces.for_each_span(first, last, [&](int64_t row, int64_t column, int64_t count) {
        draw(sample, row, column, count);
      });
    }
  }
}

// The sums over the draws of z's gradients, and of their products with eps, for units in a block.
template <class S, class T>
struct DrawSums {
  T gradient[kBlock], product[kBlock];

  void take(const ReparamKlArgs<S, T>& args, const Pieces& pieces, int64_t first, int64_t last,
            NormalStream<T>& stream) {
    T g_scratch[kSpan], eps_scratch[kSpan];
    for (int64_t sample = 0; sample < args.samples; ++sample) {
      const int64_t unit = last - 1;
      stream.stop_at((sample * args.rows + pieces.row(unit)) * args.columns + pieces.end(unit));
      int64_t at = 0;
      pieces.for_each_span(first, last, [&](int64_t row, int64_t column, int64_t count) {
        const int64_t element = (sample * args.rows + row) * args.columns + column;
        const T* g = widened(args.grad_z + (sample * args.rows + row) * args.grad_z_step + column,
                             count, g_scratch);
        const T* eps = args.eps != nullptr ? widened(args.eps + element, count, eps_scratch)
                                           : stream.read(element, count);
        for (int64_t i = 0; i < count; ++i) {
          // 0 times infinity is 0
          const T product = (g[i] == 0 || eps[i] == 0) ? T(0) : g[i] * eps[i];
          gradient[at + i] = sample == 0 ? g[i] : gradient[at + i] + g[i];
          this->product[at + i] = sample == 0 ? product : this->product[at + i] + product;
        }
        at += count;
      });
    }
  }
};

template <class S, class T, bool kPrior, bool kPlain, bool kFromZ>
void backward(const ReparamKlArgs<S, T>& args, int64_t begin, int64_t end) {
  const LatentSettings<T> settings(args);
  const Pieces pieces(args.columns);
  Inputs<S, T> inputs(args);
  NormalStream<T> stream(args.seed);
  DrawSums<S, T> sums;
  T mu_scratch[kSpan], logvar_scratch[kSpan];
  if (args.grad_z == nullptr) {
    std::fill_n(sums.gradient, kBlock, T(0));
    std::fill_n(sums.product, kBlock, T(0));
  }
  for (int64_t first = begin, last; first < end; first = last) {
    last = kFromZ ? end : std::min(end, first + pieces.units_in_block());
    if (!kFromZ && args.grad_z != nullptr) sums.take(args, pieces, first, last, stream);
    int64_t at = 0;
    pieces.for_each_span(first, last, [&](int64_t row, int64_t column, int64_t count) {
      const int64_t element = row * args.columns + column;
      Upstream<T> upstream{T(0), sums.gradient + at, sums.product + at, nullptr, element};
      if (args.grad_kl != nullptr) upstream.kl = args.grad_kl[row * args.grad_kl_step];
      if constexpr (kFromZ) {
        upstream.z = args.grad_z + row * args.grad_z_step + column;
        upstream.drawn = args.from_z + element;
      }
      S* grad_mu = args.grad_mu == nullptr ? nullptr : args.grad_mu + element;
      S* grad_logvar = args.grad_logvar == nullptr ? nullptr : args.grad_logvar + element;
      backward_span<T, kPrior, kPlain, kFromZ>(inputs.span(row, column, count), upstream, settings,
                                               stream, target<T>(grad_mu, mu_scratch),
                                               target<T>(grad_logvar, logvar_scratch));
      finish_target(mu_scratch, count, grad_mu);
      finish_target(logvar_scratch, count, grad_logvar);
      at += count;
    });
  }
}

template <class S, class T, bool kPlain>
void prior_chunks(const ReparamKlArgs<S, T>& args, int64_t begin, int64_t end) {
  const LatentSettings<T> settings(args);
  Inputs<S, T> inputs(args);
  T sum_mu[kSpan], sum_raw[kSpan];
  for (int64_t at = begin; at < end; ++at) {
    const PriorChunk& chunk = args.chunks[at];
    for (int64_t column = 0; column < args.columns; column += kSpan) {
      const int64_t count = std::min(kSpan, args.columns - column);
      std::fill_n(sum_mu, kSpan, T(0));
      std::fill_n(sum_raw, kSpan, T(0));
      for (int64_t i = chunk.begin; i < chunk.end; ++i) {
        const int64_t row = args.order != nullptr ? args.order[i] : i;
        const T k = args.grad_kl[row * args.grad_kl_step];
        prior_span<T, kPlain>(inputs.span(row, column, count), k, settings, sum_mu, sum_raw);
      }
      if (chunk.partial != nullptr) {
        for (int64_t i = 0; i < count; ++i) {
          chunk.partial[column + i] = sum_mu[i];
          chunk.partial[args.columns + column + i] = sum_raw[i];
        }
        continue;
      }
      const int64_t to = chunk.row * args.columns + column;
      if (args.grad_prior_mu != nullptr) narrowed(sum_mu, count, args.grad_prior_mu + to);
      if (args.grad_prior_logvar != nullptr) narrowed(sum_raw, count, args.grad_prior_logvar + to);
    }
  }
}

// The rows of several chunks: partial sums in order.
template <class S, class T>
void prior_sums(const ReparamKlArgs<S, T>& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = args.first_chunk[row], last = args.first_chunk[row + 1];
    if (last - first < 2) continue;
    const auto add = [&](int64_t offset, S* to) {
      if (to == nullptr) return;
      for (int64_t column = 0; column < args.columns; ++column) {
        double sum = 0;
        for (int64_t i = first; i < last; ++i) sum += args.chunks[i].partial[offset + column];
        store(static_cast<T>(sum), to + row * args.columns + column);
      }
    };
    add(0, args.grad_prior_mu);
    add(args.columns, args.grad_prior_logvar);
  }
}

// f(kPrior, kPlain) for the arguments at hand.
template <class S, class T, class F>
FASTGEN_INLINE void for_variant(const ReparamKlArgs<S, T>& args, F f) {
  const bool plain = LatentSettings<T>(args).is_plain();
  const std::true_type yes;
  const std::false_type no;
  if (args.prior_mu == nullptr) {
    plain ? f(no, yes) : f(no, no);
  } else {
    plain ? f(yes, yes) : f(yes, no);
  }
}

template <class S, class T>
void any_forward(const ReparamKlArgs<S, T>& args, int64_t begin, int64_t end) {
  for_variant(args, [&](auto prior, auto plain) {
    forward<S, T, prior.value, plain.value>(args, begin, end);
  });
}

template <class S, class T>
void any_backward(const ReparamKlArgs<S, T>& args, int64_t begin, int64_t end) {
  for_variant(args, [&](auto prior, auto plain) {
    if constexpr (std::is_same_v<S, T>) {  // halves have too few digits in z
      if (args.from_z != nullptr) {
        return backward<S, T, prior.value, plain.value, true>(args, begin, end);
      }
    }
    backward<S, T, prior.value, plain.value, false>(args, begin, end);
  });
}

template <class S, class T>
void any_prior(const ReparamKlArgs<S, T>& args, int64_t begin, int64_t end) {
  if (LatentSettings<T>(args).is_plain()) {
    prior_chunks<S, T, true>(args, begin, end);
  } else {
    prior_chunks<S, T, false>(args, begin, end);
  }
}

template <class S, class T>
constexpr ReparamKlKernels::PerType<S, T> kKernels = {any_forward<S, T>, any_backward<S, T>,
                                                      any_prior<S, T>, prior_sums<S, T>};

}  // namespace

const ReparamKlKernels reparam_kl_kernels = {kKernels<float, float>, kKernels<double, double>,
                                             kKernels<BFloat16, float>, kKernels<Float16, float>};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

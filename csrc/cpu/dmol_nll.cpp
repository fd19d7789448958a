#include "dmol_nll.h"

#include <cmath>
#include <type_traits>

#include "common/pixels.h"
#include "cpu/dmol_bins.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// Pixels go in blocks of this many vectors, component by component: what a block reads and writes
// of each channel is then a few adjacent lines of memory. One vector at a time took 5 % longer, two
// nearly twice as long: then every other line was awaited.
constexpr int kVectors = 8;
template <class T>
constexpr int kBlockPixels = kVectors * (kVectorBytes / sizeof(T));

// From one channel to the next in scratch: a multiple of 512 bytes would use an eighth of the
// cache.
template <class T>
constexpr int64_t kChannelStep = kBlockPixels<T> + kLanes<T>;

// A block's parameters, or their gradients: channel i at data + i * step.
template <class T>
struct Channels {
  T* data;
  int64_t step;

  FASTGEN_INLINE T* at(int64_t channel, int vector) const {
    return data + channel * step + vector * kLanes<std::remove_const_t<T>>;
  }
};

// Which channel holds component k's mean, log-scale and coefficient; its logit is channel k. Of one
// colour there are no coefficients.
struct Order {
  int64_t components;

  int64_t mean(int color, int64_t k) const { return (1 + 3 * color) * components + k; }
  int64_t log_scale(int color, int64_t k) const { return mean(color, k) + components; }
  int64_t coefficient(int color, int64_t k) const { return mean(color, k) + 2 * components; }
};

// What the backward pass keeps of a component, as vectors: by_t and by_log_scale of each colour and
// 1 - tanh^2 of each coefficient.
template <int kColors>
constexpr int kKept = kColors == 3 ? 9 : 2;

// All of whole blocks.
template <class T>
struct Scratch {
  T *params, *grads;  // channels
  T *line, *ratio;    // components
  T* kept;            // components, kKept each
  T* codes;           // colours
};

int64_t channels_of(const DmolArgs& args) {
  const bool chained = args.coupled && args.colors == 3;
  return chained ? 10 * args.components : 3 * args.components * args.colors;
}

int64_t scratch_bytes(const DmolArgs& args) {
  const int64_t lines = 11 * args.components + args.colors;
  return (2 * channels_of(args) * (kVectors + 1) + lines * kVectors) * kVectorBytes;
}

template <class T>
Scratch<T> scratch_in(const DmolArgs& args, void* memory) {
  T* next = static_cast<T*>(memory);
  const auto take = [&](int64_t lines, int64_t step = kBlockPixels<T>) {
    T* from = next;
    next += lines * step;
    return from;
  };
  Scratch<T> s;
  s.params = take(channels_of(args), kChannelStep<T>);
  s.grads = take(channels_of(args), kChannelStep<T>);
  s.line = take(args.components);
  s.ratio = take(args.components);
  s.kept = take(9 * args.components);
  s.codes = take(args.colors);
  return s;
}

template <class T>
Levels<T> levels_of(const DmolArgs& args) {
  Levels<T> levels;
  levels.half = T(1) / (args.levels - 1);
  levels.log_half = static_cast<T>(std::log(1.0 / (args.levels - 1)));
  levels.log_width = static_cast<T>(std::log(2.0 / (args.levels - 1)));
  levels.floor_is_fast = std::exp(-kMinLogScale) <= kMostHalf * (args.levels - 1);
  levels.least_log_scale =
      static_cast<T>(-std::log(static_cast<double>(kMostHalf) * (args.levels - 1)));
  return levels;
}

template <class T>
Pixel<T> pixel_of(const T* codes, const DmolArgs& args) {
  const Vec<T> code = load_vector<T>(codes);
  const T last = static_cast<T>(args.levels - 1);
  Pixel<T> pixel;
  pixel.x = (code * T(2) - last) / last;
  pixel.highest = code == last;
  pixel.edge = pixel.highest | (code == T(0));
  pixel.has_edges = lane_bits<T>(pixel.edge) != 0;
  return pixel;
}

// ---- one mixture: the masses of its components, then what they make together

// A block of pixels of a mixture of kColors coupled colours.
template <class T, int kColors>
struct Mixture {
  Channels<const T> params;
  Channels<T> grads;
  Order order;
  Levels<T> levels;
  bool exact;
  Scratch<T> scratch;
  int vectors;
  Pixel<T> pixels[kVectors][kColors];

  FASTGEN_INLINE Vec<T> load(int64_t channel, int v) const {
    return load_vector<T>(params.at(channel, v));
  }
  FASTGEN_INLINE T* line(int64_t k, int v) const {
    return scratch.line + (k * kVectors + v) * kLanes<T>;
  }
  FASTGEN_INLINE T* ratio(int64_t k, int v) const {
    return scratch.ratio + (k * kVectors + v) * kLanes<T>;
  }
  FASTGEN_INLINE T* kept(int64_t k, int v) const {
    return scratch.kept + (k * kVectors + v) * kKept<kColors> * kLanes<T>;
  }
};

// tanh of a component's three coefficients.
template <class T>
struct Coefficients {
  Vec<T> of[3];

  // x - mean of a colour; in this order a narrow scale meets the least rounding.
  FASTGEN_INLINE Vec<T> distance(int color, Vec<T> mean, const Pixel<T>* pixels) const {
    const Vec<T> t = pixels[color].x - mean;
    if (color == 0) return t;
    return color == 1 ? t - of[0] * pixels[0].x : t - of[1] * pixels[0].x - of[2] * pixels[1].x;
  }
};

template <class T, int kColors>
FASTGEN_INLINE void keep(const Slopes<T> (&slopes)[kColors], const Coefficients<T>& tanhs, T* to) {
#pragma GCC unroll 3
  for (int c = 0; c < kColors; ++c) {
    store_vector<T>(slopes[c].by_t, to + c * kLanes<T>);
    store_vector<T>(slopes[c].by_log_scale, to + (kColors + c) * kLanes<T>);
  }
  if constexpr (kColors == 3) {
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      store_vector<T>(T(1) - tanhs.of[i] * tanhs.of[i], to + (6 + i) * kLanes<T>);
    }
  }
}

// The scales of each colour, and of chained colours the tanh of the coefficients:
// tanh|a| = -m / (2 + m) with m = expm1(-2 |a|).
template <int kColors>
FASTGEN_INLINE void fast_exponentials(const Mixture<float, kColors>& m, int64_t k, int v,
                                      Colors<kColors>* colors, Coefficients<float>* tanhs) {
  using V = Vec<float>;
  constexpr int count = kColors == 3 ? 6 : 1;
  V x[count], scale[count], e[count], coefficient[3];
  float factor[count];
#pragma GCC unroll 3
  for (int c = 0; c < kColors; ++c) {
    x[c] = larger(broadcast<float>(kMinLogScale), m.load(m.order.log_scale(c, k), v));
    colors->log_scale[c] = x[c];
    factor[c] = kMinusLog2E;
    if constexpr (kColors == 3) {
      coefficient[c] = m.load(m.order.coefficient(c, k), v);
      x[3 + c] = smaller(broadcast<float>(kTanhLimit<float>), absolute<float>(coefficient[c]));
      factor[3 + c] = 2 * kMinusLog2E;
    }
  }
  split_powers(x, factor, scale, e);
#pragma GCC unroll 3
  for (int c = 0; c < kColors; ++c) {
    colors->inv[c] = scale[c] * e[c] + scale[c];
    if constexpr (kColors == 3) {
      const V expm1 = scale[3 + c] * e[3 + c] + (scale[3 + c] - 1.f);
      tanhs->of[c] = turned<float>(-expm1 / (expm1 + 2.f), coefficient[c]);
    }
  }
}

// False where a log-scale is above kMostLogScale: what was written means nothing then.
template <int kColors, bool kGradient>
bool fast_components(const Mixture<float, kColors>& m) {
  using V = Vec<float>;
  V most = broadcast<float>(kMinLogScale);
  for (int64_t k = 0; k < m.order.components; ++k) {
    for (int v = 0; v < m.vectors; ++v) {
      V line = m.load(k, v), ratio;
      Colors<kColors> colors;
      Slopes<float> slopes[kColors];
      Coefficients<float> tanhs;
      fast_exponentials(m, k, v, &colors, &tanhs);
#pragma GCC unroll 3
      for (int c = 0; c < kColors; ++c) {
        colors.t[c] = tanhs.distance(c, m.load(m.order.mean(c, k), v), m.pixels[v]);
        most = larger(colors.log_scale[c], most);
      }
      fast_bins<kColors, kGradient>(m.pixels[v], colors, m.levels, &line, &ratio, slopes);
      if constexpr (kGradient) {
#pragma GCC unroll 3
        for (int c = 0; c < kColors; ++c) {
          const BitVec<float> floor = m.load(m.order.log_scale(c, k), v) < float(kMinLogScale);
          slopes[c].by_log_scale = floor ? V{} : slopes[c].by_log_scale;
        }
        keep(slopes, tanhs, m.kept(k, v));
      }
      store_vector<float>(line, m.line(k, v));
      store_vector<float>(ratio, m.ratio(k, v));
    }
  }
  return lane_bits<float>(most > kMostLogScale) == 0;
}

template <class T, int kColors, bool kGradient>
void wide_components(const Mixture<T, kColors>& m) {
  for (int64_t k = 0; k < m.order.components; ++k) {
    for (int v = 0; v < m.vectors; ++v) {
      Vec<T> line = m.load(k, v);
      Slopes<T> slopes[kColors];
      Coefficients<T> tanhs;
      for (int c = 0; c < kColors; ++c) {
        if (kColors == 3) tanhs.of[c] = tanh<T>(m.load(m.order.coefficient(c, k), v));
      }
      for (int c = 0; c < kColors; ++c) {
        const Vec<T> t = tanhs.distance(c, m.load(m.order.mean(c, k), v), m.pixels[v]);
        const Vec<T> log_scale = m.load(m.order.log_scale(c, k), v);
        line += wide_bin<T>(m.pixels[v][c], t, log_scale, m.levels, m.exact, &slopes[c]);
      }
      if constexpr (kGradient) keep(slopes, tanhs, m.kept(k, v));
      store_vector<T>(line, m.line(k, v));
      store_vector<T>(broadcast<T>(T(1)), m.ratio(k, v));
    }
  }
}

template <int kColors>
bool scales_are_fast(const Mixture<float, kColors>& m) {
  if (m.levels.floor_is_fast) return true;
  Vec<float> least = broadcast<float>(kMostLogScale);
  for (int c = 0; c < kColors; ++c) {
    for (int64_t k = 0; k < m.order.components; ++k) {
      for (int v = 0; v < m.vectors; ++v) {
        least = smaller(m.load(m.order.log_scale(c, k), v), least);
      }
    }
  }
  return lane_bits<float>(least < m.levels.least_log_scale) == 0;
}

// Whether the components are in the fast form, whose ratios lack half a bin for each colour.
template <class T, int kColors, bool kGradient>
bool components(const Mixture<T, kColors>& m) {
  if constexpr (sizeof(T) == 4) {
    if (m.exact && scales_are_fast(m) && fast_components<kColors, kGradient>(m)) return true;
  }
  wide_components<T, kColors, kGradient>(m);
  return false;
}

// exp(-gap), gap >= 0, and 0 where float32 has hardly more.
template <class T>
FASTGEN_INLINE Vec<T> weight(Vec<T> gap) {
  const T limit = sizeof(T) == 4 ? T(86) : T(707);
  return gap > limit ? Vec<T>{} : bounded_exp<T>(smaller(broadcast<T>(limit), gap), -kLog2E);
}

// Sums of exp(value - most) ratio over components.
template <class T, int kColors>
struct Sums {
  Vec<T> most_line, most_logit, joint, prior;

  // Leaves the summands in scratch, joint ones as lines and prior ones as ratios.
  template <bool kStore>
  FASTGEN_INLINE void add_up(const Mixture<T, kColors>& m, int v) {
    most_line = load_vector<T>(m.line(0, v));
    most_logit = m.load(0, v);
    for (int64_t k = 1; k < m.order.components; ++k) {
      most_line = larger(load_vector<T>(m.line(k, v)), most_line);
      most_logit = larger(m.load(k, v), most_logit);
    }
    joint = prior = Vec<T>{};
    for (int64_t k = 0; k < m.order.components; ++k) {
      T *line = m.line(k, v), *ratio = m.ratio(k, v);
      const Vec<T> w = weight<T>(most_line - load_vector<T>(line)) * load_vector<T>(ratio);
      const Vec<T> u = weight<T>(most_logit - m.load(k, v));
      joint += w;
      prior += u;
      if constexpr (kStore) {
        store_vector<T>(w, line);
        store_vector<T>(u, ratio);
      }
    }
  }
};

template <class T, int kColors>
void add_nll(const Mixture<T, kColors>& m, Vec<T>* nll) {
  const bool fast = components<T, kColors, false>(m);
  const T unit = fast ? kColors * m.levels.log_half : T(0);
  for (int v = 0; v < m.vectors; ++v) {
    Sums<T, kColors> sums;
    sums.template add_up<false>(m, v);
    nll[v] += (sums.most_logit - sums.most_line) + (log<T>(sums.prior / sums.joint) - unit);
  }
}

// v to an aligned address, without reading the line of memory first.
template <class T>
FASTGEN_INLINE void stream(Vec<T> v, T* to) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)v);
#elif defined(__AVX__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)v);
#else
  store_vector<T>(v, to);
#endif
}

FASTGEN_INLINE void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <bool kStream, class T, int kColors>
void put_gradient(const Mixture<T, kColors>& m, const Vec<T>* grad) {
  using V = Vec<T>;
  components<T, kColors, true>(m);
  V joint[kVectors], prior[kVectors];
  for (int v = 0; v < m.vectors; ++v) {
    Sums<T, kColors> sums;
    sums.template add_up<true>(m, v);
    joint[v] = grad[v] / sums.joint;
    prior[v] = grad[v] / sums.prior;
  }
  const Order order = m.order;
  const Channels<T> out = m.grads;
  const int vectors = m.vectors;
  // A channel's lines of memory one after the other: halves of lines in turn would each be sent.
  const auto put = [&](int64_t channel, auto value) {
    T* to = out.at(channel, 0);
    for (int v = 0; v < vectors; ++v, to += kLanes<T>) {
      kStream ? stream<T>(value(v), to) : store_vector<T>(value(v), to);
    }
  };
  for (int64_t k = 0; k < order.components; ++k) {
    V share[kVectors], by_mean[kColors][kVectors];
    const auto of = [&](int i, int v) { return load_vector<T>(m.kept(k, v) + i * kLanes<T>); };
    put(k, [&](int v) {
      share[v] = load_vector<T>(m.line(k, v)) * joint[v];
      return load_vector<T>(m.ratio(k, v)) * prior[v] - share[v];
    });
    for (int c = 0; c < kColors; ++c) {
      put(order.mean(c, k), [&](int v) { return by_mean[c][v] = share[v] * of(c, v); });
      put(order.log_scale(c, k), [&](int v) { return -share[v] * of(kColors + c, v); });
    }
    if constexpr (kColors == 3) {
      const auto by_tanh = [&](int i, int color, int other) {
        put(order.coefficient(i, k),
            [&](int v) { return by_mean[color][v] * m.pixels[v][other].x * of(6 + i, v); });
      };
      by_tanh(0, 1, 0);
      by_tanh(1, 2, 0);
      by_tanh(2, 2, 1);
    }
  }
}

// ---- pixels and parameters from memory and gradients to it

template <class T, class X>
bool load_levels(const X* from, int64_t step, int64_t count, int levels, T* to) {
  bool outside = false;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t code = from[i * step];
    outside |= code < 0 || code >= levels;
    to[i] = static_cast<T>(code);
  }
  return outside;
}

// Floats are rounded to the nearest level, which is at most 1e-3 away.
template <class T, class X>
bool load_values(const X* from, int64_t step, int64_t count, int levels, T* to) {
  const double last = levels - 1, shift = ExpTraits<double>::kShift;
  bool outside = false;
  for (int64_t i = 0; i < count; ++i) {
    const double x = load(from[i * step]);
    const double code = ((x + 1) * (last / 2) + shift) - shift;
    outside |= !(std::fabs(x - (code * 2 / last - 1)) <= 1e-3) || code < 0 || code > last;
    to[i] = static_cast<T>(code);
  }
  return outside;
}

// Of a block, filled up with a level in the middle.
template <class T>
bool load_codes(const DmolArgs& args, int64_t from, int64_t count, T* to) {
  const int64_t step = args.x_at.pixel;
  for (int64_t i = count; i < kBlockPixels<T>; ++i) to[i] = static_cast<T>(args.levels / 2);
  const auto integers = [&](const auto* x) {
    return load_levels(x + from, step, count, args.levels, to);
  };
  const auto floats = [&](const auto* x) {
    return load_values(x + from, step, count, args.levels, to);
  };
  switch (args.x_type) {
    case PixelType::kUint8:
      return integers(static_cast<const uint8_t*>(args.x));
    case PixelType::kInt8:
      return integers(static_cast<const int8_t*>(args.x));
    case PixelType::kInt16:
      return integers(static_cast<const int16_t*>(args.x));
    case PixelType::kInt32:
      return integers(static_cast<const int32_t*>(args.x));
    case PixelType::kInt64:
      return integers(static_cast<const int64_t*>(args.x));
    case PixelType::kFloat:
      return floats(static_cast<const float*>(args.x));
    case PixelType::kDouble:
      return floats(static_cast<const double*>(args.x));
    case PixelType::kBFloat16:
      return floats(static_cast<const BFloat16*>(args.x));
    default:
      return floats(static_cast<const Float16*>(args.x));
  }
}

// The channels of one pixel: `groups` of `channels`, in memory and in scratch.
struct Shape {
  int64_t channels, groups;
  bool chained;  // groups are adjacent within a channel, channels within a pixel

  Shape(const DmolArgs& args, const DmolSteps& at)
      : channels(channels_of(args)), groups(1), chained(false) {
    if (args.coupled) return;
    groups = args.colors;
    channels /= groups;
    chained = at.color == 1 && at.channel == groups && at.pixel != 1;
  }
  template <class T>
  DmolSteps in_scratch() const {
    const int64_t line = kChannelStep<T>;
    return {0, (chained ? groups : 1) * line, (chained ? 1 : channels) * line, 1};
  }
};

// `count` pixels into scratch; lanes beyond are 0.
template <class T, class S>
void gather(const S* from, const DmolSteps& at, const Shape& shape, int64_t count, T* to) {
  constexpr int64_t step = kChannelStep<T>;
  const int64_t all = shape.channels * shape.groups;
  if (count < kBlockPixels<T>) {
    for (int64_t i = 0; i < all * step; ++i) to[i] = 0;
  }
  if (shape.chained) {
    transpose<T>(from, at.pixel, to, step, count, all);
    return;
  }
  for (int64_t g = 0; g < shape.groups; ++g) {
    const S* group = from + g * at.color;
    T* lines = to + g * shape.channels * step;
    if (at.channel == 1 && at.pixel != 1) {
      transpose<T>(group, at.pixel, lines, step, count, shape.channels);
      continue;
    }
    for (int64_t i = 0; i < shape.channels; ++i) {
      const S* line = group + i * at.channel;
      T* lane = lines + i * step;
      int64_t p = 0;
      if (at.pixel == 1) {
        for (; p + kLanes<T> <= count; p += kLanes<T>) {
          store_vector<T>(load_converted<T>(line + p), lane + p);
        }
      }
      for (; p < count; ++p) lane[p] = load(line[p * at.pixel]);
    }
  }
}

// Channels of a block as pixels of adjacent channels: a vector of pixels at a time, each of them
// whole while it is in the first cache.
template <class T, class S>
void pixels_of_lines(const T* from, int64_t channels, int64_t count, S* to, int64_t pixel) {
  for (int64_t p = 0; p < count; p += kLanes<T>) {
    const int64_t left = count - p < kLanes<T> ? count - p : kLanes<T>;
    transpose<T>(from + p, kChannelStep<T>, to + p * pixel, pixel, channels, left);
  }
}

template <class T, class S>
void scatter(const T* from, const Shape& shape, int64_t count, S* to, const DmolSteps& at) {
  constexpr int64_t step = kChannelStep<T>;
  if (shape.chained) {
    pixels_of_lines<T>(from, shape.channels * shape.groups, count, to, at.pixel);
    return;
  }
  for (int64_t g = 0; g < shape.groups; ++g) {
    const T* lines = from + g * shape.channels * step;
    S* group = to + g * at.color;
    if (at.channel == 1 && at.pixel != 1) {
      pixels_of_lines<T>(lines, shape.channels, count, group, at.pixel);
      continue;
    }
    for (int64_t i = 0; i < shape.channels; ++i) {
      const T* lane = lines + i * step;
      S* line = group + i * at.channel;
      int64_t p = 0;
      if (at.pixel == 1) {
        for (; p + kLanes<T> <= count; p += kLanes<T>) {
          store_converted<T>(load_vector<T>(lane + p), line + p);
        }
      }
      for (; p < count; ++p) store(lane[p], line + p * at.pixel);
    }
  }
}

int64_t offset(const DmolSteps& at, int64_t sample, int64_t pixel) {
  return sample * at.sample + pixel * at.pixel;
}

// A block of `count` pixels.
template <class S, bool kGradient>
struct Block {
  using T = typename Arithmetic<S>::type;
  const DmolArgs& args;
  Scratch<T> scratch;
  Levels<T> levels;
  Shape shape, grad_shape;

  Block(const DmolArgs& args, void* memory)
      : args(args),
        scratch(scratch_in<T>(args, memory)),
        levels(levels_of<T>(args)),
        shape(args, args.params_at),
        grad_shape(args, args.grad_params_at) {}

  // Adds each pixel's -log p to nll; or, if kGradient, writes the gradient.
  void operator()(int64_t sample, int64_t pixel, int64_t count, Vec<T>* nll) const {
    load_pixels(sample, pixel, count);
    const S* params = static_cast<const S*>(args.params) + offset(args.params_at, sample, pixel);
    const bool straight = in_place(args.params_at, count);
    if (!straight) gather<T>(params, args.params_at, shape, count, scratch.params);
    const T* from = straight ? reinterpret_cast<const T*>(params) : scratch.params;
    const DmolSteps at = straight ? args.params_at : shape.in_scratch<T>();
    if constexpr (kGradient) {
      Vec<T> grad[kVectors];
      load_grad(sample, pixel, count, grad);
      S* grads = static_cast<S*>(args.grad_params) + offset(args.grad_params_at, sample, pixel);
      const bool direct = in_place(args.grad_params_at, count);
      T* to = direct ? reinterpret_cast<T*>(grads) : scratch.grads;
      const DmolSteps to_at = direct ? args.grad_params_at : grad_shape.template in_scratch<T>();
      const bool streams = args.large && direct && aligned(to) && aligned(to + to_at.channel) &&
                           aligned(to + to_at.color);
      for_each_mixture(from, at, to, to_at, count, [&](const auto& m) {
        streams ? put_gradient<true>(m, grad) : put_gradient<false>(m, grad);
      });
      if (!direct) scatter<T>(scratch.grads, grad_shape, count, grads, args.grad_params_at);
    } else {
      for_each_mixture(from, at, nullptr, at, count, [&](const auto& m) { add_nll(m, nll); });
    }
  }

 private:
  void load_pixels(int64_t sample, int64_t pixel, int64_t count) const {
    bool outside = false;
    for (int64_t c = 0; c < args.colors; ++c) {
      const int64_t at = offset(args.x_at, sample, pixel) + c * args.x_at.color;
      outside |= load_codes<T>(args, at, count, scratch.codes + c * kBlockPixels<T>);
    }
    if (outside) args.outside->store(true, std::memory_order_relaxed);
  }

  static bool in_place(const DmolSteps& at, int64_t count) {
    return std::is_same_v<S, T> && at.pixel == 1 && count % kLanes<T> == 0;
  }

  static bool aligned(const T* at) { return reinterpret_cast<uintptr_t>(at) % kVectorBytes == 0; }

  template <class F>
  void for_each_mixture(const T* from, const DmolSteps& at, T* to, const DmolSteps& to_at,
                        int64_t count, F f) const {
    const int vectors = static_cast<int>((count + kLanes<T> - 1) / kLanes<T>);
    if (args.coupled && args.colors == 3) {
      f(mixture<3>({from, at.channel}, {to, to_at.channel}, 0, vectors));
      return;
    }
    for (int64_t c = 0; c < args.colors; ++c) {
      T* grads = to == nullptr ? nullptr : to + c * to_at.color;
      f(mixture<1>({from + c * at.color, at.channel}, {grads, to_at.channel}, c, vectors));
    }
  }

  template <int kColors>
  Mixture<T, kColors> mixture(Channels<const T> params, Channels<T> grads, int64_t color,
                              int vectors) const {
    Mixture<T, kColors> m{params,     grads,   {args.components}, levels,
                          args.exact, scratch, vectors,           {}};
    for (int v = 0; v < vectors; ++v) {
      for (int c = 0; c < kColors; ++c) {
        const int64_t at = (color + c) * kBlockPixels<T> + v * kLanes<T>;
        m.pixels[v][c] = pixel_of<T>(scratch.codes + at, args);
      }
    }
    return m;
  }

  void load_grad(int64_t sample, int64_t pixel, int64_t count, Vec<T>* grad) const {
    const T* from = static_cast<const T*>(args.grad_nll) + sample * args.grad_nll_sample;
    const int64_t step = args.grad_nll_pixel;
    T values[kBlockPixels<T>] = {};
    for (int64_t i = 0; i < count; ++i) values[i] = from[(pixel + i) * step];
    for (int v = 0; v < kVectors; ++v) grad[v] = load_vector<T>(values + v * kLanes<T>);
  }
};

template <class S, bool kGradient>
void range(const DmolArgs& args, int64_t begin, int64_t end, void* memory) {
  const Block<S, kGradient> block(args, memory);
  using T = typename Arithmetic<S>::type;
  constexpr int64_t step = kBlockPixels<T>;
  const int64_t pieces = dmol_pieces(args.pixels);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / pieces, first = unit % pieces * kDmolPiece;
    const int64_t left = args.pixels - first,
                  last = first + (left < kDmolPiece ? left : kDmolPiece);
    Vec<T> total{};
    for (int64_t pixel = first; pixel < last; pixel += step) {
      const int64_t count = last - pixel < step ? last - pixel : step;
      Vec<T> nll[kVectors] = {};
      block(sample, pixel, count, nll);
      if constexpr (kGradient) continue;
      T values[step];
      for (int v = 0; v < kVectors; ++v) store_vector<T>(nll[v], values + v * kLanes<T>);
      for (int64_t i = count; i < step; ++i) values[i] = 0;
      if (args.per_pixel == nullptr) {
        for (int v = 0; v < kVectors; ++v) total += load_vector<T>(values + v * kLanes<T>);
        continue;
      }
      T* out = static_cast<T*>(args.per_pixel) + sample * args.pixels + pixel;
      for (int64_t i = 0; i < count; ++i) out[i] = values[i];
    }
    if (!kGradient && args.per_pixel == nullptr) args.sums[unit] = sum_of_lanes<T>(total);
  }
  if (kGradient) finish_streams();
}

}  // namespace

const DmolKernels dmol_nll_kernels = {
    {range<float, false>, range<float, true>},
    {range<double, false>, range<double, true>},
    {range<BFloat16, false>, range<BFloat16, true>},
    {range<Float16, false>, range<Float16, true>},
    scratch_bytes,
};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

// gated_activation's CPU kernels: y = tanh(a) sigmoid(b), a and b the halves of x's channels.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/isa.h"

namespace fastgen {

enum class Condition { kNone, kPerSample, kPerPixel };

// Tensors are dense, channels-first (batch, channels, pixels) or channels-last (batch, pixels,
// channels); x, grad_x and a per-pixel condition have 2 * channels, y and grad_y have channels.
template <class S>
struct GatedActivationArgs {
  const S* x;
  const S* condition;  // null, [batch, 2 channels] or like x
  S* y;                // forward's output
  const S* grad_y;     // backward's inputs ...
  const S* grad_pre;   // ... and what to add to grad_x, or null
  S* grad_x;           // backward's outputs ...
  S* grad_condition;   // ... and the per-sample sums [batch, 2 channels], or null
  int64_t channels;
  int64_t pixels;
  Condition kind;
  bool channels_last;
};

// A kernel does units [begin, end): rows of one sample and channel (channels-first), pixels
// (channels-last), or, for channels-last sums over pixels, one sample's block of channels.
constexpr int64_t kGateChannelBlock = 32;

struct GatedActivationKernels {
  template <class S>
  using Range = void (*)(const GatedActivationArgs<S>&, int64_t begin, int64_t end);
  template <class S>
  struct PerType {
    Range<S> forward, backward;
  };
  PerType<float> float32;
  PerType<double> float64;
  PerType<BFloat16> bfloat16;
  PerType<Float16> float16;
};

FASTGEN_DECLARE_KERNELS(GatedActivationKernels, gated_activation)

}  // namespace fastgen

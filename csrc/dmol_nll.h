// dmol_nll's CPU kernels: pixels under mixtures of discretised logistics.
#pragma once

#include <atomic>
#include <cstdint>

#include "common/half.h"
#include "common/isa.h"

namespace fastgen {

enum class PixelType { kUint8, kInt8, kInt16, kInt32, kInt64, kFloat, kDouble, kBFloat16, kHalf };

// Where element (sample, channel, colour, pixel) stands, in elements.
struct DmolSteps {
  int64_t sample, channel, color, pixel;
};

struct DmolArgs {
  const void* params;
  DmolSteps params_at;
  const void* x;
  DmolSteps x_at;
  PixelType x_type;
  int64_t pixels, colors, components;
  int levels;
  bool coupled, exact;
  std::atomic<bool>* outside;  // set where a pixel is none of the levels
  // forward: sums of the pieces [sample][piece], or each pixel's (sample, pixel), in T
  double* sums;
  void* per_pixel;
  // backward
  const void* grad_nll;
  int64_t grad_nll_sample, grad_nll_pixel;
  void* grad_params;
  DmolSteps grad_params_at;
  bool large;  // no cache will hold the gradient
};

// A kernel does units [begin, end): pieces of this many pixels, the sample's last one shorter.
constexpr int64_t kDmolPiece = 256;

inline int64_t dmol_pieces(int64_t pixels) { return (pixels + kDmolPiece - 1) / kDmolPiece; }

struct DmolKernels {
  using Range = void (*)(const DmolArgs&, int64_t begin, int64_t end, void* scratch);
  struct PerType {
    Range forward, backward;
  };
  PerType float32, float64, bfloat16, float16;
  // Bytes that a range needs, at any alignment of 64.
  int64_t (*scratch_bytes)(const DmolArgs&);
};

FASTGEN_DECLARE_KERNELS(DmolKernels, dmol_nll)

}  // namespace fastgen

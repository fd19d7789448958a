// masked_conv2d as its kernels see it; torch-free. Strides and offsets are in elements.
//
// Nothing is padded: a tap that falls outside the image takes no part. Taps are displacements, so
// that the input gradient is the same convolution with the taps negated and the weight transposed.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/strided_images.h"

namespace fastgen {

struct ConvTap {
  int64_t dy, dx;   // output (y, x) sees input (y + dy, x + dx)
  int64_t weight;   // where the tap's (out, in) matrix starts in the weight
  int64_t partial;  // where its mask starts in `partial`; -1: nothing is masked
};

struct MaskedConv2d {
  int64_t batch, height, width;
  int64_t in, out;  // channels read and written
  StridedImages x, y;
  void* weight;  // read; or the weight's gradient, written
  int64_t weight_out, weight_in;
  const void* bias;        // (out,) dense, or null
  const uint8_t* partial;  // 1 = unmasked
  int64_t partial_out, partial_in;
  const ConvTap* taps;  // ascending (dy, dx)
  int64_t tap_count;
  // Rows [row_cut[i], row_cut[i + 1]) see the same taps inside the image; columns alike.
  const int64_t* row_cut;
  const int64_t* column_cut;
  int64_t row_cuts, column_cuts;
};

// A unit of work: `images` whole images, or with images = 1 a band of `rows` rows of one image.
struct ConvUnits {
  int64_t images, rows, bands, count;
};

struct MaskedConv2dFunctions {
  // Output channels are worked on in blocks of this many.
  int64_t block;
  int64_t (*packed_bytes)(const MaskedConv2d&);
  // Packs the weights, masks and bias of blocks [begin, end).
  void (*pack)(const MaskedConv2d&, int64_t begin, int64_t end, void* packed);
  int64_t (*scratch_bytes)(const MaskedConv2d&, const ConvUnits&);
  // y of units [begin, end). Scratch belongs to one caller at a time.
  void (*convolve)(const MaskedConv2d&, const void* packed, const ConvUnits&, int64_t begin,
                   int64_t end, void* scratch);
};

// One set for each storage type.
struct MaskedConv2dKernels {
  MaskedConv2dFunctions float32, float64, bfloat16, float16;
};

FASTGEN_DECLARE_KERNELS(MaskedConv2dKernels, masked_conv2d)

// The weight's gradient: x is the convolution's input, y the gradient of its output.
struct WeightGradientFunctions {
  int64_t block;
  int64_t (*sums_bytes)(const MaskedConv2d&);
  int64_t (*scratch_bytes)(const MaskedConv2d&, const ConvUnits&);
  // Adds up units [begin, end) of blocks [block_begin, block_end) of output channels in `sums`.
  void (*accumulate)(const MaskedConv2d&, const ConvUnits&, int64_t begin, int64_t end,
                     int64_t block_begin, int64_t block_end, bool with_weight, bool with_bias,
                     void* sums, void* scratch);
  // Adds the `chunks` sums that lie behind each other, and writes the unmasked entries of input
  // channels [begin, end) of the weight's gradient.
  void (*finish)(const MaskedConv2d&, const void* sums, int64_t chunks, int64_t begin, int64_t end);
  void (*finish_bias)(const MaskedConv2d&, const void* sums, int64_t chunks, void* bias);
};

struct MaskedConv2dWeightGradientKernels {
  WeightGradientFunctions float32, float64, bfloat16, float16;
};

FASTGEN_DECLARE_KERNELS(MaskedConv2dWeightGradientKernels, masked_conv2d_weight_gradient)

}  // namespace fastgen

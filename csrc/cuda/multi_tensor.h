// The updates of many tensors at once on a GPU, for the glue and for tests; no torch and no CUDA
// types. Pointers are of the device. A launcher returns null, or what went wrong in CUDA's words.
#pragma once

#include <cstdint>

#include "update_rules.h"

namespace fastgen {
namespace cuda {

constexpr int kMaxOperands = 5;
constexpr int kMaxDims = 4;

enum class Storage : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

// At one step of one tensor, as of csrc/update_rules.h.
struct AdamFactors {
  double minus_step_size, correction;
};

// One tensor of an update with what else the update reads and writes of its shape, or a part of
// them. Operands, null where absent:
//   clip_weights_  weights
//   rmsprop_clip_  param, grad, square_avg, momentum_buffer, grad_avg
//   adam_clip_     param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq
//   ema_update_    target, source
// `cut_into_rows` makes them.
struct Row {
  void* data[kMaxOperands];
  int64_t elements;  // less than 2^31
  Storage storage;
  int32_t dims;  // 0: flat, all operands lie densely in the same order
  int64_t sizes[kMaxDims], strides[kMaxOperands][kMaxDims];
  float* step;                 // rmsprop_clip_: counts the tensor's steps; null: nothing does
  const AdamFactors* factors;  // adam_clip_: the tensor's
};

// What the kernels read themselves, so that the host need not wait; null where absent.
struct DeviceNumbers {
  const float* rate;  // in place of settings.lr
  const double* double_rate;
  const float* grad_scale;
  const float* found_inf;  // not 0: only the clip is done, and no step is counted
};

// A tensor's step: on the device, where the one before is counted up, or else its number.
struct AdamStep {
  float* at;
  float value;
};

// All work on `stream`, a cudaStream_t. `count` (of the device) gets the number of weights that are
// at a bound.
const char* clip_weights_(const Row* rows, int64_t row_count, const ClipSettings& settings,
                          int64_t* count, void* stream);
const char* rmsprop_clip_(const Row* rows, int64_t row_count, const RmspropSettings& settings,
                          bool momentum, bool centered, const DeviceNumbers& numbers,
                          int64_t* count, void* stream);
// `factors` (of the device): room for one for each of `steps`.
const char* adam_clip_(const Row* rows, int64_t row_count, const AdamStep* steps,
                       int64_t step_count, AdamFactors* factors, const AdamSettings& settings,
                       bool amsgrad, const DeviceNumbers& numbers, int64_t* count, void* stream);
const char* ema_update_(const Row* rows, int64_t row_count, const EmaSettings& settings,
                        void* stream);

}  // namespace cuda
}  // namespace fastgen

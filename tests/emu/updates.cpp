// The launchers of csrc/cuda/multi_tensor.h for ctypes. Compiled once for each of them, as
// FASTGEN_OP, beside its .cu.
#include <string>
#include <vector>

#include "cuda/multi_tensor.h"
#include "cuda/rows.h"
#include "cuda_on_cpu.h"

using namespace fastgen;
using namespace fastgen::cuda;

namespace {

constexpr int kDims = 8;

struct Tensor {
  void* data[kMaxOperands];
  int32_t storage, dims;
  int64_t item_size, sizes[kDims], strides[kMaxOperands][kDims];
  float* step;
  const AdamFactors* factors;
};

std::vector<Row> rows_of(const Tensor* tensors, int64_t count) {
  std::vector<Row> rows;
  for (const Tensor* t = tensors; t < tensors + count; ++t) {
    Row row = {};
    std::vector<Dim> dims(t->dims);
    for (int j = 0; j < kMaxOperands; ++j) {
      row.data[j] = t->data[j];
      for (int d = 0; d < t->dims; ++d) dims[d].strides[j] = t->strides[j][d];
    }
    for (int d = 0; d < t->dims; ++d) dims[d].size = t->sizes[d];
    row.storage = static_cast<Storage>(t->storage);
    row.step = t->step;
    row.factors = t->factors;
    cut_into_rows(row, t->item_size, dims, &rows);
  }
  return rows;
}

}  // namespace

extern "C" {

void set_order(bool reverse, int blocks) {
  cuda_on_cpu::settings().reverse = reverse;
  cuda_on_cpu::settings().blocks = blocks;
}

// How many rows there are, and in `*strided` how many of them are not flat.
int64_t count_rows(const Tensor* tensors, int64_t count, int64_t* strided) {
  const std::vector<Row> rows = rows_of(tensors, count);
  *strided = 0;
  for (const Row& row : rows) *strided += row.dims > 0;
  return static_cast<int64_t>(rows.size());
}

#define CLIP_WEIGHTS_ 1
#define EMA_UPDATE_ 2
#define RMSPROP_CLIP_ 3
#define ADAM_CLIP_ 4

const char* launch(const Tensor* tensors, int64_t count,
#if FASTGEN_OP == CLIP_WEIGHTS_
                   const ClipSettings* settings, int64_t* at_bound) {
  const std::vector<Row> rows = rows_of(tensors, count);
  return clip_weights_(rows.data(), rows.size(), *settings, at_bound, nullptr);
#elif FASTGEN_OP == EMA_UPDATE_
                   const EmaSettings* settings) {
  const std::vector<Row> rows = rows_of(tensors, count);
  return ema_update_(rows.data(), rows.size(), *settings, nullptr);
#elif FASTGEN_OP == RMSPROP_CLIP_
                   const RmspropSettings* settings, bool momentum, bool centered,
                   const DeviceNumbers* numbers, int64_t* at_bound) {
  const std::vector<Row> rows = rows_of(tensors, count);
  return rmsprop_clip_(rows.data(), rows.size(), *settings, momentum, centered, *numbers, at_bound,
                       nullptr);
#else
                   const AdamStep* steps, AdamFactors* factors, const AdamSettings* settings,
                   bool amsgrad, const DeviceNumbers* numbers, int64_t* at_bound) {
  const std::vector<Row> rows = rows_of(tensors, count);
  return adam_clip_(rows.data(), rows.size(), steps, count, factors, *settings, amsgrad, *numbers,
                    at_bound, nullptr);
#endif
}

}  // extern "C"

// What the sampler's kernel files share: functions of one file used in another, and how rows are
// found.
#pragma once

#include "common/half.h"
#include "common/simd_math.h"
#include "engine/sampler.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {

// Rows of an expression: acc (rows, acc_step), if any; then [operand][kChunkRows] and, of what it
// writes, [1 + side][kChunkRows].
template <class T>
struct CodeRows {
  int64_t count;
  const T* acc;
  int64_t acc_step;
  const T* const* operands;
  T* const* out;
  T* temporaries;
};

void run_code(const engine::Instruction&, const CodeRows<float>&);
void run_code(const engine::Instruction&, const CodeRows<double>&);

void run_row(const engine::Instruction&, int64_t first, int64_t count,
             const engine::Images<float>&);
void run_row(const engine::Instruction&, int64_t first, int64_t count,
             const engine::Images<double>&);

void run_attention(const engine::Instruction&, int64_t first, int64_t count,
                   const engine::Images<float>&);
void run_attention(const engine::Instruction&, int64_t first, int64_t count,
                   const engine::Images<double>&);

void run_linear(const engine::Instruction&, int64_t first, int64_t count,
                const engine::Images<float>&);
void run_linear(const engine::Instruction&, int64_t first, int64_t count,
                const engine::Images<double>&);
void run_linear_bfloat16(const engine::Instruction&, int64_t first, int64_t count,
                         const engine::Images<float>&);

// packed_bytes and pack of SamplerFunctions for weights stored as W.
template <class W>
int64_t packed_bytes(const engine::Instruction&);
template <class W>
void pack(const engine::Instruction&, const double* weight, const double* bias, void* packed);

bool any_nan(const float* values, int64_t count);
bool any_nan(const double* values, int64_t count);
void draw(const Likelihood&, const float* params, int64_t count, const double* uniforms,
          int64_t codes, int64_t* out, const engine::Scratch&);
void draw(const Likelihood&, const double* params, int64_t count, const double* uniforms,
          int64_t codes, int64_t* out, const engine::Scratch&);

namespace {

// Rows are (position, image) pairs, images innermost. Some of an entry's:
template <class T>
struct Rows {
  const engine::Images<T>& images;
  const int32_t* table;  // of the first row's position
  int64_t step, image, count;

  Rows(const engine::Instruction& instruction, const engine::Images<T>& of, int64_t first,
       int64_t begin, int64_t rows)
      : images(of), step(instruction.table_step), image(begin), count(rows) {
    int64_t position = first;
    if (begin >= of.count) {
      position += begin / of.count;
      image = begin % of.count;
    }
    table = instruction.table + position * step;
  }

  // Where each row's cell of a column is: column 0 of the table is the one written.
  template <class Pointer>
  FASTGEN_INLINE void find(int64_t column, int64_t width, int64_t channel, Pointer* to) const {
    const int32_t* slot = table + column;
    int64_t b = image;
    for (int64_t left = count; left > 0; slot += step, b = 0) {
      const int64_t n = images.count - b < left ? images.count - b : left;
      T* cell = images.arena + *slot * images.count + b * width + channel;
      for (int64_t i = 0; i < n; ++i) to[i] = cell + i * width;
      to += n;
      left -= n;
    }
  }
};

template <class T>
FASTGEN_INLINE T dot(const T* x, const T* y, int64_t count) {
  const int64_t whole = count / kLanes<T> * kLanes<T>;
  Vec<T> sum = {};
  for (int64_t k = 0; k < whole; k += kLanes<T>) {
    sum += load_vector<T>(x + k) * load_vector<T>(y + k);
  }
  T total = sum_of_lanes<T>(sum);
  for (int64_t k = whole; k < count; ++k) total += x[k] * y[k];
  return total;
}

// out = sum over j of weight(j) * cell(j)[:channels], a block of channels at a time; where cell(j)
// is null there is no such term.
template <class T, class Weight, class Cell>
FASTGEN_INLINE void weighted_sum(int64_t terms, Weight weight, Cell cell, int64_t channels,
                                 T* out) {
  constexpr int kAtOnce = 4;
  for (int64_t c = 0; c < channels; c += kAtOnce * kLanes<T>) {
    const int64_t left = channels - c;
    Vec<T> sum[kAtOnce] = {};
    for (int64_t j = 0; j < terms; ++j) {
      const T* from = cell(j);
      if (from == nullptr) continue;
      const Vec<T> w = broadcast<T>(weight(j));
#pragma GCC unroll 4
      for (int v = 0; v < kAtOnce; ++v) {
        if (v * kLanes<T> < left) sum[v] += w * load_vector<T>(from + c + v * kLanes<T>);
      }
    }
    for (int v = 0; v < kAtOnce; ++v) {
      store_up_to<T>(sum[v], left - v * kLanes<T>, out + c + v * kLanes<T>);
    }
  }
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

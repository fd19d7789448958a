// The search for nearest codes: the CPU kernels behind vq_nearest and vq_quantize.
//
// Codes lie packed in panels of adjacent columns, centred and scaled, so that a register tile of
// rows by codes holds scores x.c - |c|^2 / 2, of which only each lane's running maximum is kept.
// Scores are not the answer: whatever lies within their rounding error of the best is compared
// again by its distance, and in float64 where distances are as close.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/isa.h"
#include "common/strided_rows.h"

namespace fastgen {

// Storage types of rows: indices into the kernels' tables.
enum VqStorage { kVqFloat32, kVqFloat64, kVqBFloat16, kVqFloat16, kVqStorages };

// The codebook of one head, ready for the search.
template <class T>
struct VqCodes {
  int64_t codes, values;
  bool cosine;
  const T* given;   // [codes][values]; for cosine normalised
  T* center;        // [values]: about the mean of the finite codes; for cosine 0
  T scale;          // a power of two that brings the largest packed value to about 1
  T longest;        // at least the norm of every packed code
  T* panels;        // [panel][value][column]: (given - center) * scale
  T* bias;          // [panel][column]: -|packed code|^2 / 2; what cannot be chosen: -infinity
  T* mark;          // [panel][column]: equal for equal codes, and hardly ever for others
  int64_t* places;  // [vq_places(codes)]: where to look for a code by its mark
  uint32_t* pairs;  // the panels in bfloat16, [panel][pair of values][column]; or null: no filter
  T* lost;          // [panel][column]: the square of what that took away; beside pairs
  T most_lost;      // at least the norm of that of every code
};

// The rows of one head, and where results go. Row r's place among results is
// (r / inner * heads) * inner + r % inner.
template <class T>
struct VqRows {
  StridedRows x;
  VqStorage storage;  // of x and quantized
  int64_t heads, inner;
  const bool* mask;  // [rows], or null
  int64_t* indices;
  T* commitment;          // or null: the indices alone
  StridedRows quantized;  // where commitment is wanted
};

// A power of two that leaves at least every second place free.
inline int64_t vq_places(int64_t codes) {
  int64_t places = 2;
  while (places < 2 * codes) places *= 2;
  return places;
}

template <class T>
struct VqSearchKernels {
  int panel_columns;
  void (*normalise)(T* x, int64_t values);  // x / |x| in place; 0 stays 0
  void (*prepare)(VqCodes<T>& codes);       // fills center and scale
  // Packs panels [begin, end), with their bias and pairs.
  void (*pack)(const VqCodes<T>& codes, int64_t begin, int64_t end);
  void (*drop_duplicates)(VqCodes<T>& codes);  // by their bias: an equal one has a lower index
  void (*measure)(VqCodes<T>& codes);          // fills longest and most_lost
  int64_t (*block_rows)(int64_t values);
  int64_t (*scratch_bytes)(int64_t rows, int64_t values);
  // Rows [begin, end), at most block_rows of them; returns how many took a second pass.
  int64_t (*search)(const VqCodes<T>& codes, const VqRows<T>& rows, int64_t begin, int64_t end,
                    void* scratch);
};

struct VqKernels {
  VqSearchKernels<float> float32;
  VqSearchKernels<double> float64;
};

FASTGEN_DECLARE_KERNELS(VqKernels, vq_search)

}  // namespace fastgen

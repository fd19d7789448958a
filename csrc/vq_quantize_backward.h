// vq_quantize's gradient: grad_x = grad, or grad turned by the rotation trick, plus
// 2 / D weight (x - code).
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/isa.h"
#include "common/strided_rows.h"
#include "vq_types.h"

namespace fastgen {

struct VqQuantizeBackwardArgs {
  StridedRows x, grad, grad_x;             // of the storage type; grad.data may be null
  int64_t x_head, grad_head, grad_x_head;  // from one head to the next
  StridedRows indices;                     // of int64; -1: masked, no gradient
  int64_t index_head;
  const void* weight;  // of the arithmetic type, for each index; may be null
  int64_t weight_step;
  const void* codes;  // dense [heads][codes_per_head][values], of the arithmetic type
  int64_t rows, values, codes_per_head;
  int64_t block;  // rows of a unit
  bool rotation;
};

// Bytes a thread needs for a unit: its indices, weights, x, grad and grad_x.
inline int64_t vq_quantize_backward_scratch(int64_t block, int64_t values, int64_t element) {
  return block * (8 + (1 + 3 * values) * element);
}

struct VqQuantizeBackwardKernels {
  // Units [begin, end): `block` rows of a head each, the heads outermost.
  using Range = void (*)(const VqQuantizeBackwardArgs&, int64_t begin, int64_t end, void* scratch);
  VqKernelsByType<Range> backward;
};

FASTGEN_DECLARE_KERNELS(VqQuantizeBackwardKernels, vq_quantize_backward)

}  // namespace fastgen

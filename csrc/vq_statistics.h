// What a step of a codebook needs to know: how often each code was chosen, and the sum of the rows
// that chose it. Every sum is added up in float64 in the order of the rows, whatever the threads.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/isa.h"
#include "common/strided_rows.h"
#include "vq_types.h"

namespace at {
class Tensor;
}

namespace fastgen {

struct VqShape;

struct VqStatisticsArgs {
  StridedRows x;  // of the storage type
  int64_t x_head;
  StridedRows indices;  // of int64; negative: left out
  int64_t index_head;
  const void* commitment;  // of the arithmetic type, stands like the indices; NaN: left out
  int64_t rows, values, codes;
  int64_t value_parts, part_values, code_parts, part_codes;  // how a head is cut into units
  int64_t* counts;                                           // dense [heads][codes]
  double* sums;                                              // dense [heads][codes][values]
};

constexpr int64_t kVqStatisticsBlock = 256;       // rows copied together
constexpr int64_t kVqStatisticsSorted = 1 << 15;  // rows sorted together

// Bytes a thread needs.
inline int64_t vq_statistics_scratch(int64_t rows, int64_t part_values, int64_t part_codes) {
  const int64_t sorted = rows < kVqStatisticsSorted ? rows : kVqStatisticsSorted;
  const int64_t copied = kVqStatisticsBlock * 8 * part_values,
                order = 4 * (sorted + part_codes + 1);
  return 8 * (kVqStatisticsBlock + sorted) + (copied > order ? copied : order);
}

struct VqStatisticsKernels {
  // Units [begin, end): (head, part of the codes, part of the values), the last one fastest. Each
  // sees all rows of its head.
  using Range = void (*)(const VqStatisticsArgs&, int64_t begin, int64_t end, void* scratch);
  VqKernelsByType<Range> statistics;
};

FASTGEN_DECLARE_KERNELS(VqStatisticsKernels, vq_statistics)

// Of x's rows, without those whose index is negative or whose commitment is NaN. indices and
// commitment are contiguous; counts (int64) and sums (float64) are contiguous and get all their
// values here.
void vq_statistics(const at::Tensor& x, const at::Tensor& indices, const at::Tensor& commitment,
                   const VqShape& shape, at::Tensor& counts, at::Tensor& sums);

}  // namespace fastgen

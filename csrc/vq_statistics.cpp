#include "vq_statistics.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>

#include "vq_indices.h"

namespace fastgen {
namespace {

// Values a thread should add: below this the other threads cost more than they bring.
constexpr int64_t kGrain = 1 << 16;
constexpr int64_t kLine = 8;  // float64 values of a cache line, which no two threads should share

int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace

void vq_statistics(const at::Tensor& x, const at::Tensor& indices, const at::Tensor& commitment,
                   const VqShape& shape, at::Tensor& counts, at::Tensor& sums) {
  VqStatisticsArgs args{};
  args.x = strided_rows(x, shape);
  args.x_head = head_step(x, shape);
  args.indices = index_rows(indices, shape);
  args.index_head = shape.inner;
  args.commitment = commitment.const_data_ptr();
  args.rows = shape.rows;
  args.values = shape.values;
  args.codes = shape.codes;
  args.counts = counts.mutable_data_ptr<int64_t>();
  args.sums = sums.mutable_data_ptr<double>();

  const int64_t work = shape.heads * (shape.rows + shape.codes) * shape.values;
  const int64_t threads = std::clamp<int64_t>(work / kGrain, 1, at::get_num_threads());
  // Parts of the values first: what they read does not overlap.
  const int64_t wanted = parts_of(threads, shape.heads);
  const int64_t lines = parts_of(shape.values, kLine);
  args.part_values = parts_of(lines, std::min(wanted, lines)) * kLine;
  args.value_parts = parts_of(shape.values, args.part_values);
  args.part_codes = parts_of(shape.codes, parts_of(wanted, args.value_parts));
  args.code_parts = parts_of(shape.codes, args.part_codes);

  const auto kernel = vq_kernel("vq_quantize", FASTGEN_KERNELS(vq_statistics).statistics,
                                x.scalar_type(), commitment.scalar_type());
  const int64_t units = shape.heads * args.code_parts * args.value_parts;
  at::parallel_for(0, units, threads > 1 ? 1 : units, [&](int64_t begin, int64_t end) {
    const c10::DataPtr scratch = c10::GetCPUAllocator()->allocate(
        vq_statistics_scratch(args.rows, args.part_values, args.part_codes));
    kernel(args, begin, end, scratch.get());
  });
}

}  // namespace fastgen

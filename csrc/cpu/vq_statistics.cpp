#include "vq_statistics.h"

#include <type_traits>

#include "common/pixels.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

constexpr int64_t kAhead = 6;  // rows whose sums are fetched before they are needed

// The codes that rows [begin, end) chose, counted from `first`; -1 for what is left out or is not
// among `count` codes.
template <class T>
void choices(const VqStatisticsArgs& args, int64_t head, int64_t begin, int64_t end, int64_t first,
             int64_t count, int64_t* chosen) {
  const T* commitment = static_cast<const T*>(args.commitment);
  const int64_t* indices = static_cast<const int64_t*>(args.indices.data);
  for_each_run(args.indices, begin, end, [&](int64_t offset, int64_t step, int64_t run, int64_t r) {
    offset += head * args.index_head;
    for (int64_t i = 0; i < run; ++i) {
      const int64_t at = offset + i * step, code = indices[at] - first;
      const bool counted = indices[at] >= 0 && commitment[at] == commitment[at];
      chosen[r - begin + i] = counted && code >= 0 && code < count ? code : -1;
    }
  });
}

template <class S>
void add_rows(const S* rows, int64_t row_step, const int64_t* chosen, int64_t count, double* sums,
              int64_t sums_step, int64_t values) {
  for (int64_t r = 0; r < count; ++r) {
    if (r + kAhead < count && chosen[r + kAhead] >= 0) {
      prefetch_write(sums + chosen[r + kAhead] * sums_step, values);
    }
    if (chosen[r] < 0) continue;
    double* __restrict to = sums + chosen[r] * sums_step;
    const S* __restrict row = rows + r * row_step;
    for (int64_t i = 0; i < values; ++i) to[i] += load(row[i]);
  }
}

template <class S, class T>
void unit(const VqStatisticsArgs& args, int64_t u, void* scratch) {
  using A = typename Arithmetic<S>::type;
  const int64_t value_part = u % args.value_parts, above = u / args.value_parts;
  const int64_t head = above / args.code_parts;
  const int64_t first = above % args.code_parts * args.part_codes;
  const int64_t codes = args.codes - first < args.part_codes ? args.codes - first : args.part_codes;
  const int64_t value = value_part * args.part_values, left = args.values - value;
  const int64_t values = left < args.part_values ? left : args.part_values;

  int64_t* counts = args.counts + head * args.codes + first;
  double* sums = args.sums + (head * args.codes + first) * args.values + value;
  for (int64_t c = 0; c < codes; ++c) {
    for (int64_t i = 0; i < values; ++i) sums[c * args.values + i] = 0;
    if (value_part == 0) counts[c] = 0;
  }
  int64_t* chosen = static_cast<int64_t*>(scratch);
  A* copies = reinterpret_cast<A*>(chosen + kVqStatisticsBlock);
  const S* x = static_cast<const S*>(args.x.data) + head * args.x_head + value * args.x.value;
  for (int64_t begin = 0; begin < args.rows; begin += kVqStatisticsBlock) {
    const int64_t rest = args.rows - begin;
    const int64_t end = begin + (rest < kVqStatisticsBlock ? rest : kVqStatisticsBlock);
    choices<T>(args, head, begin, end, first, codes, chosen);
    for (int64_t r = 0; value_part == 0 && r < end - begin; ++r) {
      if (chosen[r] >= 0) ++counts[chosen[r]];
    }
    for_each_run(args.x, begin, end, [&](int64_t offset, int64_t step, int64_t count, int64_t r) {
      const int64_t* of_run = chosen + (r - begin);
      if (args.x.value == 1) {
        add_rows(x + offset, step, of_run, count, sums, args.values, values);
      } else {
        copy_pixels<A>(x + offset, args.x.value, step, copies, int64_t{1}, values, values, count);
        add_rows(copies, values, of_run, count, sums, args.values, values);
      }
    });
  }
}

template <class S, class T>
void statistics(const VqStatisticsArgs& args, int64_t begin, int64_t end, void* scratch) {
  for (int64_t u = begin; u < end; ++u) unit<S, T>(args, u, scratch);
}

}  // namespace

const VqStatisticsKernels vq_statistics_kernels = {FASTGEN_VQ_KERNELS(statistics)};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

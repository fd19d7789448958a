#include "vq_statistics.h"

#include <type_traits>

#include "common/pixels.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

constexpr int64_t kAhead = 8;  // rows fetched, or whose sums are, before they are needed
constexpr int kTile = 4;       // vectors of sums in registers

// What a unit is about: some codes and some values of a head.
template <class S>
struct Part {
  int64_t head, first, codes, values;
  const S* x;
  int64_t* counts;  // null: another unit of these codes counts
  double* sums;     // of the first code, at the first value
  int64_t step;     // from one code's sums to the next

  Part(const VqStatisticsArgs& args, int64_t unit) {
    const int64_t value_part = unit % args.value_parts, above = unit / args.value_parts;
    const int64_t value = value_part * args.part_values, left = args.values - value;
    head = above / args.code_parts;
    first = above % args.code_parts * args.part_codes;
    codes = args.codes - first < args.part_codes ? args.codes - first : args.part_codes;
    values = left < args.part_values ? left : args.part_values;
    x = static_cast<const S*>(args.x.data) + head * args.x_head + value * args.x.value;
    counts = value_part == 0 ? args.counts + head * args.codes + first : nullptr;
    sums = args.sums + (head * args.codes + first) * args.values + value;
    step = args.values;
  }
};

// The codes that rows [begin, end) chose, counted from the part's first; -1 for what is left out or
// is not among its codes.
template <class S, class T>
void choices(const VqStatisticsArgs& args, const Part<S>& part, int64_t begin, int64_t end,
             int64_t* chosen) {
  const T* commitment = static_cast<const T*>(args.commitment);
  const int64_t* indices = static_cast<const int64_t*>(args.indices.data);
  for_each_run(args.indices, begin, end, [&](int64_t offset, int64_t step, int64_t run, int64_t r) {
    offset += part.head * args.index_head;
    for (int64_t i = 0; i < run; ++i) {
      const int64_t at = offset + i * step, code = indices[at] - part.first;
      const bool counted = indices[at] >= 0 && commitment[at] == commitment[at];
      chosen[r - begin + i] = counted && code >= 0 && code < part.codes ? code : -1;
    }
  });
}

// sums += the rows order[0 .. count), one after the other; or = if they are the first.
template <class S>
void add_code(const S* x, int64_t row_step, const int32_t* order, int64_t count, int64_t ahead,
              bool first, double* sums, int64_t values) {
  constexpr int n = kLanes<double>;
  int64_t i = 0;
  for (; i + kTile * n <= values; i += kTile * n) {
    Vec<double> total[kTile] = {};
    for (int v = 0; v < kTile && !first; ++v) total[v] = load_vector<double>(sums + i + v * n);
    for (int64_t r = 0; r < count; ++r) {
      if (i == 0 && r + kAhead < ahead) prefetch(x + order[r + kAhead] * row_step, values);
      const S* row = x + order[r] * row_step + i;
#pragma GCC unroll 4
      for (int v = 0; v < kTile; ++v) total[v] += load_converted<double>(row + v * n);
    }
    for (int v = 0; v < kTile; ++v) store_vector<double>(total[v], sums + i + v * n);
  }
  for (; i < values; i += n) {
    const int64_t width = values - i < n ? values - i : n;
    double total[n] = {};
    for (int64_t v = 0; v < width && !first; ++v) total[v] = sums[i + v];
    for (int64_t r = 0; r < count; ++r) {
      const S* row = x + order[r] * row_step + i;
      for (int64_t v = 0; v < width; ++v) total[v] += load(row[v]);
    }
    for (int64_t v = 0; v < width; ++v) sums[i + v] = total[v];
  }
}

// Rows of adjacent values: sorted by their codes, so that a code's sums stay in registers.
template <class S, class T>
void sorted_unit(const VqStatisticsArgs& args, const Part<S>& part, void* scratch) {
  const int64_t most = args.rows < kVqStatisticsSorted ? args.rows : kVqStatisticsSorted;
  int64_t* chosen = static_cast<int64_t*>(scratch);
  int32_t* order = reinterpret_cast<int32_t*>(chosen + most);
  int32_t* ends = order + most;  // of each code's rows in `order`
  int64_t begin = 0;
  do {
    const int64_t count = args.rows - begin < most ? args.rows - begin : most;
    choices<S, T>(args, part, begin, begin + count, chosen);
    for (int64_t c = 0; c <= part.codes; ++c) ends[c] = 0;
    for (int64_t r = 0; r < count; ++r) ++ends[chosen[r] + 1];  // those of -1 first
    int32_t before = 0;
    for (int64_t c = 0; c <= part.codes; ++c) {
      const int32_t here = ends[c];
      ends[c] = before;
      before += here;
    }
    const int64_t left_out = part.codes > 0 ? ends[1] : count;
    for (int64_t r = 0; r < count; ++r) order[ends[chosen[r] + 1]++] = static_cast<int32_t>(r);
    const int64_t step = args.x.steps[0];
    int64_t at = left_out;
    for (int64_t c = 0; c < part.codes; ++c) {
      const int64_t end = ends[c + 1];
      if (end > at || begin == 0) {
        add_code(part.x + begin * step, step, order + at, end - at, count - at, begin == 0,
                 part.sums + c * part.step, part.values);
      }
      if (part.counts != nullptr) part.counts[c] = (begin == 0 ? 0 : part.counts[c]) + end - at;
      at = end;
    }
    begin += count;
  } while (begin < args.rows);
}

template <class A>
void add_rows(const A* rows, const int64_t* chosen, int64_t count, double* sums, int64_t step,
              int64_t values) {
  for (int64_t r = 0; r < count; ++r) {
    if (r + kAhead < count && chosen[r + kAhead] >= 0) {
      prefetch_write(sums + chosen[r + kAhead] * step, values);
    }
    if (chosen[r] < 0) continue;
    double* __restrict to = sums + chosen[r] * step;
    const A* __restrict row = rows + r * values;
    for (int64_t i = 0; i < values; ++i) to[i] += row[i];
  }
}

// Rows of any strides: copied block by block, and added to their codes' sums in memory.
template <class S, class T>
void copied_unit(const VqStatisticsArgs& args, const Part<S>& part, void* scratch) {
  using A = typename Arithmetic<S>::type;
  for (int64_t c = 0; c < part.codes; ++c) {
    for (int64_t i = 0; i < part.values; ++i) part.sums[c * part.step + i] = 0;
    if (part.counts != nullptr) part.counts[c] = 0;
  }
  int64_t* chosen = static_cast<int64_t*>(scratch);
  A* copies = reinterpret_cast<A*>(chosen + kVqStatisticsBlock);
  for (int64_t begin = 0; begin < args.rows; begin += kVqStatisticsBlock) {
    const int64_t rest = args.rows - begin;
    const int64_t end = begin + (rest < kVqStatisticsBlock ? rest : kVqStatisticsBlock);
    choices<S, T>(args, part, begin, end, chosen);
    for (int64_t r = 0; part.counts != nullptr && r < end - begin; ++r) {
      if (chosen[r] >= 0) ++part.counts[chosen[r]];
    }
    for_each_run(args.x, begin, end, [&](int64_t offset, int64_t step, int64_t count, int64_t r) {
      copy_pixels<A>(part.x + offset, args.x.value, step, copies, int64_t{1}, part.values,
                     part.values, count);
      add_rows(copies, chosen + (r - begin), count, part.sums, part.step, part.values);
    });
  }
}

template <class S, class T>
void statistics(const VqStatisticsArgs& args, int64_t begin, int64_t end, void* scratch) {
  for (int64_t u = begin; u < end; ++u) {
    const Part<S> part(args, u);
    if (args.x.axes == 1 && args.x.value == 1) {
      sorted_unit<S, T>(args, part, scratch);
    } else {
      copied_unit<S, T>(args, part, scratch);
    }
  }
}

}  // namespace

const VqStatisticsKernels vq_statistics_kernels = {FASTGEN_VQ_KERNELS(statistics)};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

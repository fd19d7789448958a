// Rows of D values in a tensor of any strides: the axes beside the values enumerate the rows, the
// last one fastest, and are merged where strides allow. Nothing is copied to see a tensor so.
#pragma once

#include <cstdint>

namespace fastgen {

constexpr int kMostRowAxes = 64;  // no tensor has more

struct StridedRows {
  void* data;
  int64_t value;  // elements from one value of a row to the next
  int axes;       // at least 1
  int64_t sizes[kMostRowAxes], steps[kMostRowAxes];
};

// Calls f(offset, step, count, row) for runs of rows [begin, end): `count` rows from `row` on, the
// first at `offset` elements from data, the next each `step` further.
template <class F>
void for_each_run(const StridedRows& rows, int64_t begin, int64_t end, F f) {
  const int last = rows.axes - 1;
  const int64_t length = rows.sizes[last];
  while (begin < end) {
    const int64_t within = begin % length;
    int64_t outer = begin / length, offset = within * rows.steps[last];
    for (int axis = last - 1; axis >= 0; --axis) {
      offset += outer % rows.sizes[axis] * rows.steps[axis];
      outer /= rows.sizes[axis];
    }
    const int64_t count = length - within < end - begin ? length - within : end - begin;
    f(offset, rows.steps[last], count, begin);
    begin += count;
  }
}

}  // namespace fastgen

// The normals of a tensor's elements, read in order in runs of any length.
#pragma once

#include <cstring>

#include "common/philox.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

template <class T>
class NormalStream {
 public:
  static constexpr int64_t kLongestRun = 512;

  explicit NormalStream(uint64_t seed) : key_(seed, 0) {}

  // Nothing from `last` on will be read for now.
  void stop_at(int64_t last) { last_ = last; }

  // Those of elements [first, first + count), count <= kLongestRun, valid until the next call.
  // What the run before left over is used up first.
  const T* read(int64_t first, int64_t count) {
    if (first < begin_ || first + count > end_) refill(first);
    return numbers_ + (first - begin_);
  }

 private:
  static constexpr int64_t kGroup = kPhiloxGroup<T>, kCapacity = 2 * kLongestRun;

  __attribute__((noinline)) void refill(int64_t first) {
    const int64_t begin = first / kGroup * kGroup;
    if (begin_ <= begin && begin < end_) {
      std::memmove(numbers_, numbers_ + (begin - begin_), (end_ - begin) * sizeof(T));
    } else {
      end_ = begin;
    }
    begin_ = begin;
    const int64_t full = begin_ + kCapacity;
    for (; end_ < full && end_ < last_; end_ += kGroup) {
      key_.move_to(end_ / 4);
      Vec<T> group[8];
      philox_normals<T>(key_, end_ / 4, group);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        store_vector<T>(group[j], numbers_ + (end_ - begin_) + j * kLanes<T>);
      }
    }
  }

  PhiloxKey key_;
  int64_t begin_ = 0, end_ = 0, last_ = INT64_MAX;
  T numbers_[kCapacity];
};

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

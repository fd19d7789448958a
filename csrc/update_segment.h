// What the kernels of the updates work on; torch-free.
#pragma once

#include <cstdint>

namespace fastgen {

constexpr int kMostOperands = 5;

// `count` adjacent elements of each tensor that one update reads and writes. An operand is null
// where the update leaves it out, alike for all segments of a call.
struct Segment {
  void* operands[kMostOperands];
  int64_t count;
  double own[2];  // what differs between the tensors of a step, such as Adam's corrections
};

}  // namespace fastgen

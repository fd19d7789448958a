#pragma once

#include <cstdint>

namespace fastgen {

// A (B, C, H, W) tensor of any strides, in elements.
struct StridedImages {
  void* data;
  int64_t batch, channel, row, pixel;
};

}  // namespace fastgen

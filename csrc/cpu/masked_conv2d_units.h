// What both kernels of masked_conv2d share: units of work and their pixels.
#pragma once

#include "common/pixels.h"
#include "masked_conv2d.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct Range {
  int64_t begin, end;
};

inline Range intersection(Range a, Range b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

inline bool inside(int64_t position, int64_t displacement, int64_t size) {
  return position + displacement >= 0 && position + displacement < size;
}

// Images b, rows y, columns x.
struct Box {
  Range b, y, x;
};

// Images and rows of one unit.
struct Unit {
  Range b, y;

  Unit(const MaskedConv2d& c, const ConvUnits& units, int64_t index) {
    const int64_t b0 = index / units.bands * units.images, y0 = index % units.bands * units.rows;
    b = intersection({b0, b0 + units.images}, {0, c.batch});
    y = intersection({y0, y0 + units.rows}, {0, c.height});
  }
};

// How far the taps reach up (<= 0) and down.
inline Range vertical_reach(const MaskedConv2d& c) {
  if (c.tap_count == 0) return {0, 0};
  const int64_t up = c.taps[0].dy, down = c.taps[c.tap_count - 1].dy;  // taps ascend
  return {up < 0 ? up : 0, down > 0 ? down : 0};
}

// The input rows that output rows `y` see.
inline Range rows_seen(const MaskedConv2d& c, Range y) {
  const Range reach = vertical_reach(c);
  return intersection({y.begin + reach.begin, y.end + reach.end}, {0, c.height});
}

// At most this many input rows are seen by a unit.
inline int64_t most_rows_seen(const MaskedConv2d& c, const ConvUnits& units) {
  const Range reach = vertical_reach(c);
  const int64_t rows = units.rows + reach.end - reach.begin;
  return rows < c.height ? rows : c.height;
}

template <class T, class S>
bool usable_in_place(const StridedImages& images, int64_t channels) {
  return std::is_same_v<T, S> && (images.channel == 1 || channels == 1);
}

template <class T>
Pixels<T> in_place(const StridedImages& images) {
  return {static_cast<T*>(images.data), images.batch, images.row, images.pixel, 0, 0};
}

template <class T>
Pixels<T> staged(char* memory, int64_t rows, int64_t width, int64_t channels, int64_t b0,
                 int64_t y0) {
  const int64_t row = width * channels;
  return {reinterpret_cast<T*>(memory), rows * row, row, channels, b0, y0};
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

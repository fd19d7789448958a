// The one layout inside the convolution kernels: pixels of adjacent channels in arithmetic type.
// Other layouts and storage types are converted at the door, here, in one pass.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/half.h"
#include "common/simd.h"
#include "common/strided_images.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

// Images with adjacent channels, from image b0 and row y0 on.
template <class T>
struct Pixels {
  T* data;
  int64_t batch, row, pixel;
  int64_t b0, y0;

  FASTGEN_INLINE T* at(int64_t b, int64_t y, int64_t x) const {
    return data + (b - b0) * batch + (y - y0) * row + x * pixel;
  }
};

template <class T, class S>
FASTGEN_INLINE Vec<T> load_converted(const S* from) {
  if constexpr (std::is_same_v<T, S>) {
    return load_vector<T>(from);
  } else {
    T values[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i) values[i] = load(from[i]);
    return load_vector<T>(values);
  }
}

template <class T, class S>
FASTGEN_INLINE void store_converted(Vec<T> v, S* to) {
  if constexpr (std::is_same_v<T, S>) {
    store_vector<T>(v, to);
  } else {
    T values[kLanes<T>];
    store_vector<T>(v, values);
    for (int i = 0; i < kLanes<T>; ++i) store(values[i], to + i);
  }
}

// to[p * to_step + c] = from[c * from_step + p]; both sides in vectors, tails one by one.
template <class T, class From, class To>
void transpose(const From* from, int64_t from_step, To* to, int64_t to_step, int64_t rows,
               int64_t columns) {
  constexpr int n = kLanes<T>;
  const int64_t whole_rows = rows / n * n, whole_columns = columns / n * n;
  for (int64_t c = 0; c < whole_rows; c += n) {
    for (int64_t p = 0; p < whole_columns; p += n) {
      Vec<T> v[n], w[n];
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) v[i] = load_converted<T>(from + (c + i) * from_step + p);
      // log2(n) perfect shuffles of the rows make a transposition
#pragma GCC unroll 4
      for (int round = 1; round < n; round *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < n / 2; ++i) {
          w[2 * i] = interleave<T>(v[i], v[i + n / 2], 0);
          w[2 * i + 1] = interleave<T>(v[i], v[i + n / 2], 1);
        }
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) v[i] = w[i];
      }
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) store_converted<T>(v[i], to + (p + i) * to_step + c);
    }
    for (int64_t p = whole_columns; p < columns; ++p) {
      for (int i = 0; i < n; ++i) {
        store(load(from[(c + i) * from_step + p]), to + p * to_step + c + i);
      }
    }
  }
  for (int64_t p = 0; p < columns; ++p) {
    for (int64_t c = whole_rows; c < rows; ++c) {
      store(load(from[c * from_step + p]), to + p * to_step + c);
    }
  }
}

// `count` pixels of `channels` between any strides and storage types.
template <class T, class From, class To>
void copy_pixels(const From* from, int64_t from_channel, int64_t from_pixel, To* to,
                 int64_t to_channel, int64_t to_pixel, int64_t channels, int64_t count) {
  if (channels == 1) from_channel = to_channel = 1;
  if (from_channel == 1 && to_channel == 1) {
    if (from_pixel == channels && to_pixel == channels) {
      channels *= count;
      count = 1;
    }
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t c = 0; c < channels; ++c) {
        store(load(from[p * from_pixel + c]), to + p * to_pixel + c);
      }
    }
  } else if (from_pixel == 1 && to_channel == 1) {
    transpose<T>(from, from_channel, to, to_pixel, channels, count);
  } else if (from_channel == 1 && to_pixel == 1) {
    transpose<T>(from, from_pixel, to, to_channel, count, channels);
  } else {
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t c = 0; c < channels; ++c) {
        store(load(from[p * from_pixel + c * from_channel]), to + p * to_pixel + c * to_channel);
      }
    }
  }
}

// Rows [y0, y1) of images [b0, b1), row by row or, where both sides allow, image by image.
template <class T, class S>
void import_pixels(const StridedImages& from, const Pixels<T>& to, int64_t b1, int64_t y1,
                   int64_t width, int64_t channels) {
  int64_t rows = y1 - to.y0, line = width;
  if (from.row == width * from.pixel && to.row == width * to.pixel) {
    line *= rows;
    rows = 1;
  }
  for (int64_t b = to.b0; b < b1; ++b) {
    for (int64_t y = to.y0; y < to.y0 + rows; ++y) {
      const S* pixels = static_cast<const S*>(from.data) + b * from.batch + y * from.row;
      copy_pixels<T>(pixels, from.channel, from.pixel, to.at(b, y, 0), 1, to.pixel, channels, line);
    }
  }
}

template <class T, class S>
void export_pixels(const Pixels<T>& from, const StridedImages& to, int64_t b1, int64_t y1,
                   int64_t width, int64_t channels) {
  int64_t rows = y1 - from.y0, line = width;
  if (to.row == width * to.pixel && from.row == width * from.pixel) {
    line *= rows;
    rows = 1;
  }
  for (int64_t b = from.b0; b < b1; ++b) {
    for (int64_t y = from.y0; y < from.y0 + rows; ++y) {
      S* pixels = static_cast<S*>(to.data) + b * to.batch + y * to.row;
      copy_pixels<T>(static_cast<const T*>(from.at(b, y, 0)), 1, from.pixel, pixels, to.channel,
                     to.pixel, channels, line);
    }
  }
}

}  // namespace
}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

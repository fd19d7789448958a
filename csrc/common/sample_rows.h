// Tensors (B, ...) as rows of adjacent values, one for each sample, and the fixed pieces that rows
// are summed in.
#pragma once

#include <cstdint>

#include "common/half.h"

namespace fastgen {

// Values of a row that are added in vector lanes of the arithmetic type; the sums of pieces are
// added in float64, in order, so that results do not depend on threads or on the batch.
constexpr int64_t kPieceValues = 8192;

inline int64_t pieces_of(int64_t values) { return (values + kPieceValues - 1) / kPieceValues; }

// Row i at data + i * step elements; a step of 0 is one row for all samples.
struct SampleRows {
  void* data;
  int64_t step;
};

// The values [begin, end) of one row that unit u of [sample][piece] stands for.
struct Piece {
  int64_t sample, begin, count;

  Piece(int64_t unit, int64_t values) {
    const int64_t pieces = pieces_of(values);
    sample = unit / pieces;
    begin = unit % pieces * kPieceValues;
    count = values - begin < kPieceValues ? values - begin : kPieceValues;
  }
  template <class S>
  S* in(const SampleRows& rows) const {
    return static_cast<S*>(rows.data) + sample * rows.step + begin;
  }
};

}  // namespace fastgen

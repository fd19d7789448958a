// row and attention: softmax, layer norm and reductions. Each (position, image) is worked on by
// itself; a row's present scalars are copied side by side first.
#include "common/simd_math.h"
#include "cpu/sampler_parts.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

using namespace engine;

// Lanes behind the row's end hold `filler`, which changes no result.
template <class T>
void fill_up(T* row, int64_t count, T filler) {
  for (int64_t i = count; i < count + kLanes<T>; ++i) row[i] = filler;
}

template <class T>
T sum_of(const T* row, int64_t count) {
  Vec<T> sum = {};
  for (int64_t i = 0; i < count; i += kLanes<T>) sum += load_vector<T>(row + i);
  return sum_of_lanes<T>(sum);
}

template <class T, class F>
FASTGEN_INLINE T folded(const T* row, int64_t count, T start, F f) {
  for (int64_t i = 0; i < count; ++i) start = f(start, row[i]);
  return start;
}

template <class T>
T largest(const T* row, int64_t count) {  // NaN if one is
  return folded<T>(row, count, -static_cast<T>(__builtin_inf()),
                   [](T a, T b) { return a != a || a > b ? a : b; });
}

template <class T>
T smallest(const T* row, int64_t count) {
  return folded<T>(row, count, static_cast<T>(__builtin_inf()),
                   [](T a, T b) { return a != a || a < b ? a : b; });
}

// row becomes exp(row - largest); gives their sum.
template <class T>
T exponentials(T* row, int64_t count, T most) {
  Vec<T> sum = {};
  fill_up<T>(row, count, -static_cast<T>(__builtin_inf()));
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Vec<T> e = exp<T>(load_vector<T>(row + i) - most);
    store_vector<T>(e, row + i);
    sum += e;
  }
  return sum_of_lanes<T>(sum);
}

// row becomes row - mean; gives the sum of the squares.
template <class T>
T centre(T* row, int64_t count) {
  fill_up<T>(row, count, T(0));
  const T mean = sum_of<T>(row, count) / static_cast<T>(count);
  for (int64_t i = 0; i < count; ++i) row[i] -= mean;
  Vec<T> sum = {};
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Vec<T> x = load_vector<T>(row + i);
    sum += x * x;
  }
  return sum_of_lanes<T>(sum);
}

template <class T>
T square_root(T x) {
  return static_cast<T>(__builtin_sqrt(static_cast<double>(x)));
}

// Gives a reduction's result; others change the row in place.
template <class T>
T evaluate(const Instruction& i, T* row, int64_t count) {
  switch (i.function) {
    case RowFunction::k_softmax: {
      const T sum = exponentials<T>(row, count, largest<T>(row, count));
      for (int64_t k = 0; k < count; ++k) row[k] /= sum;
      return 0;
    }
    case RowFunction::k_log_softmax: {
      const T most = largest<T>(row, count);
      T* copy = row + padded(count) + kSlack;
      for (int64_t k = 0; k < count; ++k) copy[k] = row[k];
      const T sum = exponentials<T>(copy, count, most);
      const T shift = static_cast<T>(__builtin_log(static_cast<double>(sum)));
      for (int64_t k = 0; k < count; ++k) row[k] = (row[k] - most) - shift;
      return 0;
    }
    case RowFunction::k_layer_norm: {
      const T variance = centre<T>(row, count) / static_cast<T>(count);
      const T factor = T(1) / square_root<T>(variance + static_cast<T>(i.epsilon));
      for (int64_t k = 0; k < count; ++k) row[k] *= factor;
      return 0;
    }
    case RowFunction::k_sum:
    case RowFunction::k_mean: {
      fill_up<T>(row, count, T(0));
      const T sum = sum_of<T>(row, count);
      return i.function == RowFunction::k_sum ? sum : sum / static_cast<T>(count);
    }
    case RowFunction::k_amax:
      return largest<T>(row, count);
    case RowFunction::k_amin:
      return smallest<T>(row, count);
    case RowFunction::k_prod:
      return folded<T>(row, count, T(1), [](T a, T b) { return a * b; });
    case RowFunction::k_variance:
      return centre<T>(row, count) / (static_cast<T>(count) - static_cast<T>(i.correction));
    case RowFunction::kCount:
      break;
  }
  return 0;
}

template <class T>
void run_row_as(const Instruction& i, int64_t first, int64_t count, const Images<T>& images) {
  T* row = static_cast<T*>(images.scratch->row);
  const T* weight = static_cast<const T*>(i.row_weight);
  const T* bias = static_cast<const T*>(i.row_bias);
  const bool whole = i.function == RowFunction::k_softmax ||
                     i.function == RowFunction::k_log_softmax ||
                     i.function == RowFunction::k_layer_norm;
  for (int64_t position = first; position < first + count; ++position) {
    const int32_t* slots = i.table + position * i.table_step;
    for (int64_t b = 0; b < images.count; ++b) {
      int64_t length = 0;
      for (int32_t c = 0; c < i.column_count; ++c) {
        if (slots[1 + c] < 0) continue;
        const Column& column = i.columns[c];
        const T* from =
            images.arena + slots[1 + c] * images.count + b * column.width + column.channel;
        for (int32_t k = 0; k < column.count; ++k) row[length++] = from[k];
      }
      const T result = evaluate<T>(i, row, length);
      T* out = images.arena + slots[0] * images.count + b * i.width;
      if (!whole) {
        *out = result;
        continue;
      }
      const T absent =
          i.function == RowFunction::k_log_softmax ? -static_cast<T>(__builtin_inf()) : T(0);
      const T* from = row;
      int64_t at = 0;
      for (int32_t c = 0; c < i.column_count; ++c) {
        const bool present = slots[1 + c] >= 0;
        for (int32_t k = 0; k < i.columns[c].count; ++k, ++at) {
          T value = present ? *from++ : absent;
          if (present && weight != nullptr) value *= weight[at];
          if (present && bias != nullptr) value += bias[at];
          out[at] = value;
        }
      }
    }
  }
}

template <class T>
void run_attention_as(const Instruction& i, int64_t first, int64_t count, const Images<T>& images) {
  T* scores = static_cast<T*>(images.scratch->row);
  const Column &query = i.columns[0], &key = i.columns[1], &value = i.columns[2];
  for (int64_t position = first; position < first + count; ++position) {
    const int32_t* row = i.table + position * i.table_step;
    const Pair* pairs = i.pairs + row[2];
    const int64_t length = row[3];
    for (int64_t b = 0; b < images.count; ++b) {
      const T* q = images.arena + row[1] * images.count + b * query.width + query.channel;
      const T* keys = images.arena + b * key.width + key.channel;
      for (int64_t j = 0; j < length; ++j) {
        const T product = dot<T>(q, keys + pairs[j].key * images.count, query.count);
        scores[j] = product * static_cast<T>(i.scale);
      }
      const T sum = exponentials<T>(scores, length, largest<T>(scores, length));
      for (int64_t j = 0; j < length; ++j) scores[j] /= sum;
      const T* values = images.arena + b * value.width + value.channel;
      weighted_sum<T>(
          length, [&](int64_t j) { return scores[j]; },
          [&](int64_t j) { return values + pairs[j].value * images.count; }, i.nch,
          images.arena + row[0] * images.count + b * i.width);
    }
  }
}

}  // namespace

void run_attention(const Instruction& i, int64_t first, int64_t count,
                   const Images<float>& images) {
  run_attention_as<float>(i, first, count, images);
}
void run_attention(const Instruction& i, int64_t first, int64_t count,
                   const Images<double>& images) {
  run_attention_as<double>(i, first, count, images);
}

void run_row(const Instruction& i, int64_t first, int64_t count, const Images<float>& images) {
  run_row_as<float>(i, first, count, images);
}
void run_row(const Instruction& i, int64_t first, int64_t count, const Images<double>& images) {
  run_row_as<double>(i, first, count, images);
}

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen

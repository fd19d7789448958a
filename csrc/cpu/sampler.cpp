// The instructions that mostly move values, and the table of all of the sampler's kernels.
#include "common/simd_math.h"
#include "cpu/sampler_parts.h"

namespace fastgen {
namespace FASTGEN_ISA_NS {
namespace {

using namespace engine;

// Where column c of a position is, for image b; the table's own column 0 is what is written.
template <class T>
FASTGEN_INLINE T* cell(const Instruction& i, const Images<T>& images, const int32_t* slots,
                       int64_t c, int64_t b) {
  const Column& column = i.columns[c];
  return images.arena + slots[1 + c] * images.count + b * column.width + column.channel;
}

template <class T>
FASTGEN_INLINE T* result(const Instruction& i, const Images<T>& images, const int32_t* slots,
                         int64_t b) {
  return images.arena + slots[0] * images.count + b * i.width;
}

template <class T>
void run_map(const Instruction& i, int64_t first, int64_t count, const Images<T>& images) {
  const T** pointers = reinterpret_cast<const T**>(images.scratch->pointers);
  T** out = const_cast<T**>(pointers) + i.column_count * kChunkRows;
  for (int64_t begin = 0; begin < count * images.count; begin += kCodeRows) {
    const int64_t left = count * images.count - begin;
    const Rows<T> rows(i, images, first, begin, left < kCodeRows ? left : kCodeRows);
    rows.find(0, i.width, 0, out);
    for (int32_t c = 0; c < i.column_count; ++c) {
      const Column& column = i.columns[c];
      rows.find(1 + c, column.width, column.channel, pointers + c * kChunkRows);
    }
    run_code(i,
             {rows.count, nullptr, 0, pointers, out, static_cast<T*>(images.scratch->temporaries)});
  }
}

template <class T>
void run_gather(const Instruction& i, const int32_t* slots, const Images<T>& images) {
  for (int64_t b = 0; b < images.count; ++b) {
    T* out = result(i, images, slots, b);
    for (const CopyRun* copy = i.copies; copy != i.copies + i.copy_count; ++copy) {
      const T* from = cell(i, images, slots, copy->column, b) + copy->channel;
      for (int32_t k = 0; k < copy->count; ++k) out[copy->out + k] = from[k];
    }
  }
}

template <class T>
void run_lookup(const Instruction& i, const int32_t* slots, const Images<T>& images) {
  const T* table = static_cast<const T*>(i.lookup);
  for (int64_t b = 0; b < images.count; ++b) {
    const T index = *cell(i, images, slots, 0, b);
    T* out = result(i, images, slots, b);
    if (index != index) {
      for (int32_t k = 0; k < i.nch; ++k) out[k] = index;
      continue;
    }
    const T last = static_cast<T>(i.lookup_rows - 1);
    const T inside = index < T(0) ? T(0) : index > last ? last : index;
    const T* from = table + static_cast<int64_t>(__builtin_rint(inside)) * i.nch;
    for (int32_t k = 0; k < i.nch; ++k) out[k] = from[k];
  }
}

template <class T>
void run_dot(const Instruction& i, const int32_t* slots, const Images<T>& images) {
  for (int64_t b = 0; b < images.count; ++b) {
    const T *x = cell(i, images, slots, 0, b), *y = cell(i, images, slots, 1, b);
    *result(i, images, slots, b) = dot<T>(x, y, i.columns[0].count);
  }
}

template <class T>
void run_mix(const Instruction& i, const int32_t* slots, const Images<T>& images) {
  const int64_t terms = i.column_count / 2;
  for (int64_t b = 0; b < images.count; ++b) {
    const auto weight = [&](int64_t j) {
      return slots[1 + j] < 0 ? T(0) : *cell(i, images, slots, j, b);
    };
    const auto term = [&](int64_t j) -> const T* {
      return slots[1 + j] < 0 ? nullptr : cell(i, images, slots, terms + j, b);
    };
    weighted_sum<T>(terms, weight, term, i.nch, result(i, images, slots, b));
  }
}

template <class T, void (*run_linear_with)(const Instruction&, int64_t, int64_t, const Images<T>&)>
void run(const Instruction& i, int64_t first, int64_t count, const Images<T>& images) {
  void (*run_position)(const Instruction&, const int32_t*, const Images<T>&) = nullptr;
  switch (i.kind) {
    case Kind::kLinear:
      return run_linear_with(i, first, count, images);
    case Kind::kMap:
      return run_map<T>(i, first, count, images);
    case Kind::kRow:
      return run_row(i, first, count, images);
    case Kind::kAttention:
      return run_attention(i, first, count, images);
    case Kind::kGather:
      run_position = run_gather<T>;
      break;
    case Kind::kLookup:
      run_position = run_lookup<T>;
      break;
    case Kind::kDot:
      run_position = run_dot<T>;
      break;
    case Kind::kMix:
      run_position = run_mix<T>;
      break;
  }
  for (int64_t position = first; position < first + count; ++position) {
    run_position(i, i.table + position * i.table_step, images);
  }
}

template <class T, class W,
          void (*run_linear_with)(const Instruction&, int64_t, int64_t, const Images<T>&)>
constexpr SamplerFunctions<T> functions() {
  return {packed_bytes<W>, pack<W>, run<T, run_linear_with>, any_nan, draw};
}

}  // namespace

extern const SamplerKernels sampler_kernels = {functions<float, float, run_linear>(),
                                               functions<float, BFloat16, run_linear_bfloat16>(),
                                               functions<double, double, run_linear>()};

}  // namespace FASTGEN_ISA_NS
}  // namespace fastgen
